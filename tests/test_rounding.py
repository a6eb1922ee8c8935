"""Integers at known scales: the formulas, the order, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from float_networks import DT, KINDS, SHAPE, network

from stars_deploy.errors import GraphError, QuantizationError
from stars_deploy.graph import LI, LIF, Conv2d, CubaLIF, Input, Integrator, Linear, SpikingGraph
from stars_deploy.lowering.rounding import Rounding, round_graph, rounding_of
from stars_deploy.precision import Precision
from stars_deploy.quantized import VTH_NEVER, ConvProjection, DenseProjection, QuantizedInput, find_difference

SCALES = {"first": 150.0, "second": 80.5, "third": 61.0, "readout": 33.3}
BITS = {"conv1": 8, "conv2": 6, "skip": 9, "dense": 8, "loop": 7, "last": 8, "early": 5}
PIXELS = QuantizedInput(name="image", shape=SHAPE, precision=Precision(bits=4, signed=False), scale=15.0)


def rounding(**changes):
    precisions = {name: Precision(bits=bits, signed=True) for name, bits in BITS.items()}
    return Rounding(**{"input": PIXELS, "scales": SCALES, "precisions": precisions, **changes})


@pytest.mark.parametrize("kinds", [*itertools.permutations(KINDS), (CubaLIF,) * 3])
@pytest.mark.parametrize("readout", [Integrator, LI])
def test_integers_are_the_rounded_products(kinds, readout):
    graph = network(1, kinds, readout)
    made = round_graph(graph, rounding(resets={"third": (3, 2)}))
    assert [item.name for item in made.populations] == list(SCALES)
    assert [item.name for item in made.projections] == list(BITS)
    assert (made.timesteps, made.labels, made.input) == (graph.timesteps, graph.labels, PIXELS)
    biases = dict.fromkeys(SCALES, 0.0)
    for item in made.projections:
        node, neuron, scale = graph.node(item.name), graph.node(item.target), SCALES[item.target]
        leak_v = DT / getattr(neuron, "tau_mem", DT)
        gain = leak_v * neuron.r if hasattr(neuron, "tau_mem") else DT * neuron.r
        if isinstance(neuron, CubaLIF):
            gain = gain * DT / neuron.tau_syn * neuron.w_in
        gain = np.asarray(gain)
        bias = node.bias.reshape(-1, 1, 1) if gain.ndim == 3 and node.bias.ndim == 1 else node.bias
        biases[item.target] = biases[item.target] + bias * gain * scale
        rows = gain[:, 0, 0] if gain.ndim == 3 else gain
        factor = rows.reshape(-1, *[1] * (node.weight.ndim - 1)) * scale / (15.0 if item.source == "image" else 1.0)
        high = 2 ** (BITS[item.name] - 1) - 1
        np.testing.assert_allclose(
            item.weight, np.clip(node.weight * factor, -high - 1, high), atol=0.5 + 1e-9, err_msg=item.name
        )
        assert item.precision == Precision(bits=BITS[item.name], signed=True)
        assert isinstance(item, ConvProjection if isinstance(node, Conv2d) else DenseProjection)
    for item in made.populations:
        neuron = graph.node(item.name)
        if isinstance(neuron, CubaLIF):
            biases[item.name] = neuron.v_leak * DT / neuron.tau_mem * SCALES[item.name]
            np.testing.assert_allclose(item.decay_u, 4096 * DT / neuron.tau_syn, atol=0.5)
        else:
            assert item.decay_u == 4096
        if hasattr(neuron, "tau_mem"):
            np.testing.assert_allclose(item.decay_v, 4096 * DT / neuron.tau_mem, atol=0.5)
            assert np.ptp(item.decay_v) > 0
        else:
            assert item.decay_v == 0
        if hasattr(neuron, "v_threshold"):
            np.testing.assert_allclose(item.vth, neuron.v_threshold * SCALES[item.name], atol=0.5)
        else:
            assert item.vth == VTH_NEVER
        np.testing.assert_allclose(item.bias, biases[item.name], atol=0.5 + 1e-9)
        assert item.scale == SCALES[item.name]
        assert (item.reset_interval, item.reset_offset) == ((3, 2) if item.name == "third" else (0, 0))
    delays = {item.name: item.delay for item in made.projections}
    assert delays["skip"] == round(float(graph.node("skip_delay").delay) / DT)
    assert delays["early"].tolist() == [np.rint(graph.node("early_delay").delay / DT).reshape(-1).tolist()] * 3
    assert find_difference(round_graph(graph, rounding_of(made)), made) == ""


def test_numbers_round_to_the_nearest_and_ties_to_even():
    nodes = (Input(name="image", shape=(6,)),
             Linear(name="w", weight=np.array([[0.5, 1.5, 2.5, -2.5, 2.51, 400.0]]), bias=np.array([-0.5])),
             LIF(name="n", tau_mem=1.0, v_threshold=2.5))  # fmt: skip
    graph = SpikingGraph(nodes=nodes, edges=(("image", "w"), ("w", "n")), dt=1.0)
    source = QuantizedInput(name="image", shape=(6,), precision=Precision(bits=1, signed=False), scale=1.0)
    made = round_graph(
        graph, Rounding(input=source, scales={"n": 1.0}, precisions={"w": Precision(bits=8, signed=True)})
    )
    assert made.projections[0].weight.tolist() == [[0, 2, 2, -2, 3, 127]]
    assert (made.output.bias.tolist(), made.output.vth, made.output.decay_v) == ([0], 2, 4096)


def test_rounding_of_is_all_that_a_float_graph_lacks():
    made = round_graph(network(), rounding(resets={"first": (0, 4)}))
    found = rounding_of(made)
    assert (found.input, list(found.scales.items())) == (PIXELS, list(SCALES.items()))
    assert list(found.precisions.items()) == list(rounding().precisions.items())
    assert found.resets == {"first": (0, 4)}


def test_the_rounding_sets_the_order():
    graph = network()
    backwards = dict(reversed(rounding().precisions.items()))
    made = round_graph(graph.with_nodes(graph.nodes[::-1], graph.edges), rounding(precisions=backwards))
    assert [item.name for item in made.projections] == list(BITS)[::-1]
    assert [item.name for item in made.populations] == list(SCALES)
    # A population before its undelayed source cannot be executed.
    with pytest.raises(GraphError, match="goes back without a delay"):
        round_graph(graph, rounding(scales=dict(reversed(SCALES.items()))))


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": without(SCALES, "third")}, "rounding.scales: nothing for third"),
        ({"scales": {**SCALES, "fourth": 1.0}}, "rounding.scales: unknown fourth; allowed: first, readout, sec"),
        ({"scales": {**SCALES, "third": 0.0}}, "third.scale: 0.0; allowed: a positive number"),
        ({"scales": {**SCALES, "third": np.nan}}, "third.scale: nan"),
        ({"scales": {**SCALES, "third": np.inf}}, "third.scale: inf"),
        ({"precisions": without(rounding().precisions, "loop")}, "rounding.precisions: nothing for loop"),
        ({"precisions": {**rounding().precisions, "x": PIXELS.precision}}, "rounding.precisions: unknown x"),
        ({"resets": {"fourth": (1, 1)}}, "rounding.resets: unknown fourth"),
        ({"input": replace(PIXELS, offset=1.0)}, "image.offset: 1.0; allowed: 0"),
        ({"input": replace(PIXELS, scale=-1.0)}, "image.scale: -1.0; allowed: a positive number"),
        ({"input": replace(PIXELS, precision=Precision(bits=16, signed=True), biases="first")},
         "image: feeds first, second; allowed: first alone, whose bias it is, by one projection"),
        ({"input": replace(PIXELS, name="picture")}, "rounding: the input picture .*; allowed: image of shape"),
        ({"input": replace(PIXELS, shape=(5, 4, 2))}, r"rounding: the input image of shape \(5, 4, 2\)"),
        ({"scales": {**SCALES, "first": 1.0}}, "first: its weights, bias and accumulator leave 0.4.* its threshold"),
        ({"scales": {**SCALES, "first": 1e6}}, "first.vth: values from .*; allowed: 1 to 131072"),
        ({"scales": {**SCALES, "readout": 1e6}}, "readout.bias: values from .*; allowed: -32768 to 32767"),
        ({"scales": {**SCALES, "readout": 1e300}}, "readout.bias: values from .*; allowed: -32768 to 32767"),
        ({"scales": {**SCALES, "readout": 0.1}}, "last: its largest weight is 0.* steps, so that all round to 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(QuantizationError, match=message):
        round_graph(network(), rounding(**changes))


def test_thresholds_up_to_the_one_that_nothing_exceeds():
    graph = network(each=False)
    neuron = graph.node("first")
    for steps in (1, VTH_NEVER - 1, VTH_NEVER):
        nodes = tuple(
            replace(node, v_threshold=steps / 150.0) if node.name == neuron.name else node for node in graph.nodes
        )
        made = round_graph(graph.with_nodes(nodes, graph.edges), rounding()).population("first")
        assert made.vth == steps
        assert made.fires == (steps < VTH_NEVER)
