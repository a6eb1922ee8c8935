"""The float executor against a loop over single neurons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stars_deploy.errors import GraphError
from stars_deploy.export.execution import apply_node, initial_state, run_float, step_neuron
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    BatchNorm,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Integrator,
    Linear,
    Normalize,
    Pool2d,
    Scale,
    SpikingGraph,
)

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
    v, readout, spikes = dict.fromkeys(current, lif.v_reset), [0.0, 0.0], np.zeros((T, 3, 4, 3))
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
    # The logits of a population that fires are its rates.
    assert record.logits.tolist() == [[0.0, 1.0]]


def test_images_of_another_shape_are_refused():
    for shape in ((2, 4, 3), (1, 2, 3, 4)):
        with pytest.raises(GraphError, match="image: images of shape"):
            run_float(residual_graph(), np.zeros(shape))


def test_a_graph_that_ends_in_no_population_is_refused():
    graph = residual_graph()
    cut = graph.with_nodes(graph.nodes[:-1], graph.edges[:-1])
    with pytest.raises(GraphError, match=r"graph: ends in dense \(Linear\)"):
        run_float(cut, np.zeros((1, 2, 4, 3)))


def test_a_population_is_not_applied_without_state():
    with pytest.raises(GraphError, match="out: LIF"):
        apply_node(LIF(name="out", tau_mem=1.0), np.zeros((1, 2)))


def frames_of_other_lengths():
    for shape in ((T - 1, 2, 2, 4, 3), (T + 1, 2, 2, 4, 3)):
        yield shape, f"image: {shape[0]} frames; allowed: {T}, one for each timestep"
    yield (1, T, 2, 2, 4, 3), "image: images of shape"


@pytest.mark.parametrize(("shape", "message"), list(frames_of_other_lengths()))
def test_frames_of_another_length_are_refused(shape, message):
    with pytest.raises(GraphError, match=message):
        run_float(residual_graph(), np.zeros(shape))


def test_frames_are_shown_one_after_another():
    graph = residual_graph()
    frames = np.random.default_rng(2).random((T, 2, 2, 4, 3))
    record = run_float(graph, frames)
    np.testing.assert_array_equal(record.values["image"], frames)
    still = run_float(graph, np.broadcast_to(frames[0], frames.shape))
    np.testing.assert_array_equal(still.logits, run_float(graph, frames[0]).logits)
    assert np.abs(still.logits - record.logits).max() > 1e-3


def single(kind, size=2, image=(0.0, 0.0), timesteps=4, dt=0.5, **parameters):
    """A population behind an identity, and what it does with one image of `size` pixels."""
    nodes = (Input(name="image", shape=(size,)), kind(name="out", **parameters))
    graph = SpikingGraph(nodes=nodes, edges=(("image", "out"),), dt=dt, timesteps=timesteps)
    return run_float(graph, np.array([image, np.zeros(size)]))


def test_each_population_follows_its_equations():
    """Worked out by hand, at dt = 0.5 with powers of 2, for a drive of 1 and 2; the second sample has none."""
    record = single(Integrator, r=2.0, image=(1.0, 2.0))
    assert record.values["out"][:, 0].tolist() == [[1, 2], [2, 4], [3, 6], [4, 8]]
    assert record.logits.tolist() == [[1, 2], [0, 0]]
    record = single(LI, tau_mem=1.0, r=4.0, v_leak=-2.0, image=(1.0, 2.0))
    assert record.values["out"][:2, 0].tolist() == [[1, 3], [1.5, 4.5]]
    assert record.values["out"][:2, 1].tolist() == [[-1, -1], [-1.5, -1.5]]
    # Potentials of the IF: 1, 2 and then 0.5, 1.5: it fires above 1.5, and falls to -0.5.
    record = single(IF, r=2.0, v_threshold=1.5, v_reset=-0.5, image=(1.0, 2.0), timesteps=5)
    assert record.values["out"][:, 0].tolist() == [[0, 0], [0, 1], [1, 0], [0, 1], [0, 0]]
    assert record.logits[0].tolist() == [0.2, 0.4] and record.rate("out") == 3 / 20


def test_a_current_outlasts_its_input_and_a_spike():
    # u: 1, 1.75, 2.3125, 2.734375; v before the reset: 0.5, 1.125, 1.71875 (fires above 1.25), 1.3671875 (fires)
    record = single(CubaLIF, tau_syn=2.0, tau_mem=1.0, w_in=4.0, v_threshold=1.25, image=(1.0, 0.0))
    assert record.values["out"][:, 0].tolist() == [[0, 0], [0, 0], [1, 0], [1, 0]]
    node = CubaLIF(name="out", tau_syn=1.0, tau_mem=1.0, w_in=2.0, v_threshold=1.25, v_reset=-0.25, v_leak=0.5)
    state = initial_state(node, (3, 1))
    assert [part.tolist() for part in state] == [[[0.0]] * 3, [[-0.25]] * 3]
    spikes, (current, potential) = step_neuron(node, np.array([[1.0], [4.0], [0.0]]), state, 0.5)
    assert spikes.ravel().tolist() == [0, 1, 0]
    assert current.ravel().tolist() == [1, 4, 0]
    assert potential.ravel().tolist() == [0.625, -0.25, 0.125]
    spikes, (current, potential) = step_neuron(node, np.zeros((3, 1)), (current, potential), 0.5)
    assert current.ravel().tolist() == [0.5, 2, 0] and potential.ravel().tolist() == [0.8125, 1.125, 0.3125]
    slow = replace(node, tau_syn=2.0)
    assert step_neuron(slow, np.zeros((3, 1)), (current, potential), 0.5)[1][0].ravel().tolist() == [0.375, 1.5, 0]


def test_parameters_of_each_neuron_are_its_own():
    many = {"tau_mem": np.array([1.0, 2.0, 4.0]), "r": np.array([2.0, 1.0, -1.0]), "v_leak": np.array([0.0, 0.2, 3.0]),
            "v_threshold": np.array([0.9, 0.3, 0.8]), "v_reset": np.array([0.0, -0.5, 0.1])}  # fmt: skip
    image = (0.7, 0.9, 0.4)
    together = single(LIF, 3, image, **many).values["out"]
    for index in range(3):
        one = {name: float(values[index]) for name, values in many.items()}
        alone = single(LIF, 1, (image[index],), **one).values["out"]
        np.testing.assert_array_equal(together[:, 0, index], alone[:, 0, 0])
    assert len(np.unique(together[:, 0], axis=1).T) > 1
    for kind in (CubaLIF, LI, IF, Integrator):
        fits = {key: values for key, values in many.items() if key in kind.__dataclass_fields__}
        if kind is CubaLIF:
            fits |= {"tau_syn": np.array([0.5, 1.0, 2.0]), "w_in": np.array([1.0, 3.0, 2.0])}
        together = single(kind, 3, image, **fits).values["out"]
        for index in range(3):
            one = {name: float(values[index]) for name, values in fits.items()}
            np.testing.assert_array_equal(
                together[:, 0, index], single(kind, 1, (image[index],), **one).values["out"][:, 0, 0]
            )


def test_delays_loops_and_sums_of_several_sources():
    """y(t) = x + 2 s(t - 1) + x(t - [0, 2]) with s = y > 3, for x = t + 1 in frames."""
    nodes = (
        Input(name="image", shape=(2,)),
        Delay(name="late", delay=np.array([0.0, 1.0])),
        Delay(name="back", delay=0.5),
        Scale(name="twice", scale=np.array([2.0, 4.0])),
        IF(name="fires", r=2.0, v_threshold=3.0),
        Integrator(name="sum", r=2.0),
    )
    edges = (("image", "sum"), ("image", "late"), ("late", "sum"), ("image", "fires"), ("fires", "back"),
             ("back", "twice"), ("twice", "sum"))  # fmt: skip
    graph = SpikingGraph(nodes=nodes, edges=edges, dt=0.5, timesteps=4)
    frames = np.arange(1.0, 5).reshape(4, 1, 1) * np.array([[[1.0, 1.0], [0.5, 10.0]]]).reshape(1, 2, 2)
    record = run_float(graph, frames)
    # Sample 0 fires where 1, 3, 6, 4 is above 3: at t = 2 and 3. Sample 1 fires at 3 (0.5, 1.5, 3, 5), and always.
    assert record.values["fires"][:, 0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert record.values["fires"][:, 1].tolist() == [[0, 1], [0, 1], [0, 1], [1, 1]]
    assert record.values["late"][:, 0].tolist() == [[1, 0], [2, 0], [3, 1], [4, 2]]
    assert record.values["twice"][:, 1].tolist() == [[0, 0], [0, 4], [0, 4], [0, 4]]
    steps = np.diff(record.values["sum"], axis=0, prepend=0)
    np.testing.assert_array_equal(steps, frames + record.values["late"] + record.values["twice"])


def test_a_population_that_feeds_itself_sees_its_spikes_of_before():
    nodes = (
        Input(name="image", shape=(1,)),
        IF(name="fires", r=1.0, v_threshold=1.0),
        Delay(name="back", delay=2.0),
        Scale(name="stop", scale=-3.0),
    )
    edges = (("image", "fires"), ("fires", "back"), ("back", "stop"), ("stop", "fires"))
    graph = SpikingGraph(nodes=nodes, edges=edges, dt=1.0, timesteps=6)
    record = run_float(graph, np.array([[2.0], [0.75]]))
    # 2 fires at once and again at 2; then -1, -2 and so on of its spikes two steps ago: 2 - 3 = -1, -2, 0, 2.
    assert record.values["fires"][:, 0].ravel().tolist() == [1, 1, 0, 0, 0, 1]
    assert record.values["fires"][:, 1].ravel().tolist() == [0, 1, 0, 0, 0, 0]
    assert record.logits.tolist() == [[0.5], [1 / 6]]


def test_pools_scales_and_flattens():
    values = np.random.default_rng(4).normal(size=(2, 3, 5, 4))
    for average in (False, True):
        pool = Pool2d(name="p", kernel=(3, 2), stride=(2, 1), padding=(1, 1), average=average)
        pooled = apply_node(pool, values)
        assert pooled.shape == (2, 3, 3, 5)
        for b, c, y, x in np.ndindex(pooled.shape):
            window = [
                values[b, c, i, j]
                for i in range(2 * y - 1, 2 * y + 2)
                for j in range(x - 1, x + 1)
                if 0 <= i < 5 and 0 <= j < 4
            ]
            assert pooled[b, c, y, x] == pytest.approx(sum(window) / (6 if average else 1), abs=1e-12)
    scale = np.random.default_rng(5).normal(size=(3, 5, 4))
    np.testing.assert_array_equal(apply_node(Scale(name="s", scale=scale), values)[1], values[1] * scale)
    np.testing.assert_array_equal(apply_node(Scale(name="s", scale=2.0), values), 2 * values)
    flat = apply_node(Flatten(name="f"), values)
    assert flat.shape == (2, 60) and flat[1, 23] == values[1, 1, 0, 3]


def test_the_logits_of_an_image_output_are_flat():
    nodes = (Input(name="image", shape=(1, 2, 3)), LI(name="out", tau_mem=1.0))
    graph = SpikingGraph(nodes=nodes, edges=(("image", "out"),), dt=1.0, timesteps=2)
    logits = run_float(graph, np.arange(12.0).reshape(2, 1, 2, 3)).logits
    np.testing.assert_array_equal(logits, np.arange(12).reshape(2, 6) / 2)
