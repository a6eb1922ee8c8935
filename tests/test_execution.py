"""The float executor against a loop over single neurons."""

from __future__ import annotations

import numpy as np
import pytest

from stars_deploy.errors import GraphError
from stars_deploy.export.execution import apply_node, run_float
from stars_deploy.graph import LIF, BatchNorm, Conv2d, Input, Integrator, Linear, Normalize, SpikingGraph

T, DT = 6, 0.5


def residual_graph(seed=0):
    """Normalisation, two convolutions into one population, reset and leak away from 0, and a readout."""
    rng = np.random.default_rng(seed)
    lif = {"tau_mem": 0.8, "r": 1.7, "v_leak": 0.1, "v_threshold": 0.6, "v_reset": -0.2}
    nodes = (
        Input(name="image", shape=(2, 4, 3)),
        Normalize(name="normalize", mean=np.array([0.3, 0.6]), std=np.array([0.5, 0.2])),
        Conv2d(name="left", weight=rng.normal(size=(3, 2, 3, 3)), bias=rng.normal(size=3), padding=(1, 1)),
        BatchNorm(name="norm", gamma=rng.normal(size=3), beta=rng.normal(size=3), mean=rng.normal(size=3),
                  var=rng.uniform(0.5, 2, 3), eps=0.01),
        Conv2d(name="right", weight=rng.normal(size=(3, 2, 1, 1)), bias=rng.normal(size=(3, 4, 3))),
        LIF(name="hidden", **lif),
        Linear(name="dense", weight=rng.normal(size=(2, 36)), bias=rng.normal(size=2)),
        Integrator(name="readout", r=3.0),
    )  # fmt: skip
    edges = (("image", "normalize"), ("normalize", "left"), ("left", "norm"), ("norm", "hidden"),
             ("normalize", "right"), ("right", "hidden"), ("hidden", "dense"), ("dense", "readout"))  # fmt: skip
    return SpikingGraph(nodes=nodes, edges=edges, dt=DT, timesteps=T)


def scalar_run(graph, image):
    """Spikes {(t, place)} of `hidden` and final potentials of `readout` of one image."""
    node = {node.name: node for node in graph.nodes}
    norm, normalize, lif = node["norm"], node["normalize"], node["hidden"]
    x = {(c, i, j): (image[c, i, j] - normalize.mean[c]) / normalize.std[c] for c, i, j in np.ndindex(2, 4, 3)}
    current = {}
    for c, i, j in np.ndindex(3, 4, 3):
        left = node["left"].bias[c]
        for k, di, dj in np.ndindex(2, 3, 3):
            left += node["left"].weight[c, k, di, dj] * x.get((k, i + di - 1, j + dj - 1), 0.0)
        left = norm.gamma[c] * (left - norm.mean[c]) / (norm.var[c] + norm.eps) ** 0.5 + norm.beta[c]
        right = node["right"].bias[c, i, j] + sum(node["right"].weight[c, k, 0, 0] * x[k, i, j] for k in (0, 1))
        current[c, i, j] = left + right
    v, readout, spikes = dict.fromkeys(current, 0.0), [0.0, 0.0], np.zeros((T, 3, 4, 3))
    for t in range(T):
        for place, i in current.items():
            v[place] += DT / lif.tau_mem * (lif.v_leak - v[place] + lif.r * i)
            if v[place] > lif.v_threshold:
                v[place], spikes[(t, *place)] = lif.v_reset, 1
        for k in (0, 1):
            arriving = node["dense"].weight[k] @ spikes[t].reshape(-1) + node["dense"].bias[k]
            readout[k] += DT * node["readout"].r * arriving
    return spikes, np.array(readout)


def test_run_equals_a_loop_over_neurons():
    graph = residual_graph()
    images = np.random.default_rng(1).random((3, 2, 4, 3))
    record = run_float(graph, images)
    for sample, image in enumerate(images):
        spikes, potential = scalar_run(graph, image)
        np.testing.assert_array_equal(record.values["hidden"][:, sample], spikes)
        np.testing.assert_allclose(record.logits[sample], potential / T, rtol=1e-12)
        np.testing.assert_allclose(record.values["readout"][-1, sample], potential, rtol=1e-12)
    rate = record.values["hidden"].mean()
    assert 0.1 < rate < 0.9
    assert record.rate("hidden") == rate


def test_a_potential_at_the_threshold_does_not_fire():
    nodes = (
        Input(name="image", shape=(1, 1, 2)),
        Linear(name="dense", weight=np.eye(2), bias=np.zeros(2)),
        LIF(name="out", tau_mem=1.0, v_threshold=0.5),
    )
    graph = SpikingGraph(nodes=nodes, edges=(("image", "dense"), ("dense", "out")), dt=1.0, timesteps=1)
    record = run_float(graph, np.array([0.5, np.nextafter(0.5, 1)]).reshape(1, 1, 1, 2))
    assert record.values["out"].tolist() == [[[0, 1]]]
    # The logits of a firing population are its potentials after the reset, as in the integer reference.
    assert record.logits.tolist() == [[0.5, 0.0]]


def test_images_of_another_shape_are_refused():
    for shape in ((2, 4, 3), (1, 2, 3, 4)):
        with pytest.raises(GraphError, match="image: images of shape"):
            run_float(residual_graph(), np.zeros(shape))


def test_a_graph_that_ends_in_no_population_is_refused():
    graph = residual_graph()
    cut = graph.with_nodes(graph.nodes[:-1], graph.edges[:-1])
    with pytest.raises(GraphError, match="dense: a Linear at the end"):
        run_float(cut, np.zeros((1, 2, 4, 3)))


def test_a_population_is_not_applied_without_state():
    with pytest.raises(GraphError, match="out: LIF"):
        apply_node(LIF(name="out", tau_mem=1.0), np.zeros((1, 2)))
