"""Integer networks in float: rounded at their own scales they are themselves again, also by way of float32."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.bounds import find_overflow
from stars_deploy.errors import GraphError, QuantizationError, StarsDeployError
from stars_deploy.export.execution import run_float
from stars_deploy.graph import IF, LI, LIF, Conv2d, CubaLIF, Delay, Integrator
from stars_deploy.lowering.dequantization import dequantize
from stars_deploy.lowering.passes import canonicalize, lower
from stars_deploy.lowering.rounding import round_graph, rounding_of
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
    find_difference,
)
from stars_deploy.targets.nir_graph import NirTarget
from stars_deploy.targets.reference import run_reference

#: What dequantize may refuse, as it says it.
REASONS = ("whose current lasts", "all weights are 0", "at least 1 step", "differs between synapses of one source",
           "ends in", "leads nowhere", "the last population to be executed")  # fmt: skip


def single(value):
    if isinstance(value, (float, np.ndarray)):
        return np.asarray(value).astype(np.float32).astype(np.float64)
    return value


def through_float32(graph, dt=True):
    """The graph as a file of float32 keeps it; times may be in a file that keeps ``dt`` as it is."""
    nodes = tuple(
        replace(node, **{f.name: single(getattr(node, f.name)) for f in fields(node)}) for node in graph.nodes
    )
    return replace(graph, nodes=nodes, dt=float(np.float32(graph.dt)) if dt else graph.dt)


def rounded_again(graph, quantized):
    """The integers that a float graph becomes at the scales of `quantized`."""
    return round_graph(lower(graph), rounding_of(quantized))


def scaled(graph, scale):
    """The graph with another scale for each population."""
    populations = (replace(item, scale=scale * (1 + index)) for index, item in enumerate(graph.populations))
    return replace(graph, populations=tuple(populations))


def test_every_network_comes_back_or_is_refused_for_a_reason():
    found = Counter()

    @settings(max_examples=800, deadline=None, database=None, derandomize=True)
    @given(random_graphs.graphs(), st.sampled_from([2.0**-9, 0.37, 1.0, 61.3, 5e4]), st.booleans())
    def check(drawn, scale, exact_dt):
        graph = scaled(drawn[0], scale)
        try:
            made = dequantize(graph)
        except StarsDeployError as refused:
            assert any(reason in str(refused) for reason in REASONS), refused
            found["refused"] += 1
            return
        assert find_difference(rounded_again(made, graph), graph) == ""
        assert find_difference(rounded_again(through_float32(made, not exact_dt), graph), graph) == ""
        found["equal"] += 1
        found.update(type(node).__name__ for node in made.nodes)
        found["current"] += any(item.leaks_current for item in graph.populations)
        found["delays of each neuron"] += any(not isinstance(item.delay, int) for item in graph.projections)
        found["decays of each neuron"] += any(np.ndim(item.decay_v) > 0 for item in graph.populations)
        found["resets"] += any(item.reset_interval > 0 for item in graph.populations)
        found["loops"] += any(item.source == item.target for item in graph.projections)

    check()
    assert found["equal"] >= 200, found  # of 800
    assert found["refused"] >= 100, found
    assert found["Integrator"] + found["LI"] >= 3, found
    features = ("CubaLIF", "LIF", "IF", "Delay", "Conv2d", "Linear", "current", "resets", "loops",
                "decays of each neuron", "delays of each neuron")  # fmt: skip
    assert all(found[feature] >= 3 for feature in features), found


def test_the_float_network_spikes_as_the_integer_network_does():
    """Where no state is truncated: neither decays nor currents, and scales that are powers of two."""
    seen = Counter()
    narrow = st.sampled_from([(1, False), (4, False), (8, True)])

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(random_graphs.graphs(decays="plain", resets=False, payload=narrow), st.booleans())
    def check(drawn, reads_potentials):
        graph, images = drawn
        whole = [replace(item, decay_u=4096, scale=2.0**index) for index, item in enumerate(graph.populations)]
        if reads_potentials:
            whole[-1] = replace(whole[-1], vth=VTH_NEVER)
        graph = replace(graph, populations=tuple(whole), input=replace(graph.input, scale=16.0, offset=0.0))
        seen["biases"] += bool(graph.input.biases)
        try:
            made = dequantize(graph, dt=2.0**-10)
        except StarsDeployError:
            return
        if find_overflow(graph):
            return
        record, reference = run_float(made, images / 16.0), run_reference(graph, images)
        for item in graph.populations:
            if item.fires:
                assert np.array_equal(record.values[item.name], reference.spikes[item.name])
                seen["spikes"] += reference.spikes[item.name].sum()
        if not graph.output.fires and isinstance(made.node(graph.output.name), (LI, Integrator)):
            logits = record.logits * graph.timesteps * graph.output.scale * 64
            assert np.array_equal(logits, reference.potential)
            seen["potentials"] += bool(reference.potential.any())

    check()
    assert seen["spikes"] > 500, seen
    assert seen["potentials"] >= 10, seen
    assert seen["biases"] >= 10, seen


SHAPE = (2, 4, 3)


def small(**readout):
    """Image, convolution, population with all that it can have, dense readout."""
    rng = np.random.default_rng(0)
    neurons = Population(name="n", shape=SHAPE, decay_u=1024, decay_v=rng.integers(0, 4097, SHAPE), scale=20.0,
                         vth=rng.integers(50, 90, SHAPE), bias=rng.integers(-9, 9, SHAPE))  # fmt: skip
    last = Population(**{"name": "out", "shape": (3,), "bias": np.array([5, -7, 0]), "scale": 11.0, **readout})
    conv = ConvProjection(name="conv", source="image", target="n", weight=rng.integers(-50, 50, (2, 2, 3, 3)),
                          padding=(1, 1), delay=2)  # fmt: skip
    dense = DenseProjection(name="dense", source="n", target="out", weight=rng.integers(-99, 99, (3, 24)),
                            delay=np.arange(24) % 3)  # fmt: skip
    source = QuantizedInput(name="image", shape=SHAPE, precision=Precision(bits=4, signed=False), scale=15.0)
    return QuantizedGraph(
        input=source, populations=(neurons, last), projections=(conv, dense), timesteps=6, labels=("a", "b", "c")
    )


def plain(**options):
    """The same without current and decays."""
    graph = small()
    neurons = replace(graph.populations[0], **{"decay_u": 4096, "decay_v": 0, "vth": 70, **options})
    return replace(graph, populations=(neurons, graph.output))


def test_names_labels_and_times_carry_over():
    graph = small()
    made = dequantize(graph, dt=5e-4)
    assert (made.dt, made.timesteps, made.labels, made.output.name) == (5e-4, 6, ("a", "b", "c"), "out")
    assert (made.input.name, made.input.shape, made.input.low, made.input.high) == ("image", SHAPE, 0.0, 1.0)
    assert [node.name for node in made.nodes] == ["image", "conv_delay", "conv", "dense_delay", "dense", "n", "out"]
    assert made.node("conv_delay").delay == 1e-3
    assert made.node("dense_delay").delay.shape == SHAPE
    assert find_difference(rounded_again(through_float32(made), graph), graph) == ""


@pytest.mark.parametrize(
    ("options", "kind", "parameters"),
    [
        ({}, IF, {"r": 1e3, "v_threshold": 3.5}),
        ({"decay_v": 1024}, LIF, {"tau_mem": 4e-3, "r": 1.0, "v_threshold": 3.5}),
        ({"decay_v": 4096}, LIF, {"tau_mem": 1e-3, "r": 1.0}),
        ({"vth": VTH_NEVER}, IF, {"v_threshold": VTH_NEVER / 20}),  # heard by others, who must hear nothing
        ({"decay_u": 2048, "decay_v": 1024}, CubaLIF, {"tau_syn": 2e-3, "tau_mem": 4e-3, "r": 4.0, "w_in": 2.0}),
        ({"decay_u": 2048, "decay_v": 0}, CubaLIF, {"tau_syn": 2e-3, "tau_mem": 2**30 * 1e-3, "r": 2.0**30}),
        ({"decay_u": 0, "decay_v": 4096}, CubaLIF, {"tau_syn": 2**30 * 1e-3, "tau_mem": 1e-3, "w_in": 2.0**30}),
    ],
)
def test_each_population_becomes_the_plainest_neuron(options, kind, parameters):
    graph = plain(**options)
    made = dequantize(graph)
    assert type(made.node("n")) is kind
    for name, value in parameters.items():
        assert getattr(made.node("n"), name) == pytest.approx(value, rel=1e-12)
    assert isinstance(made.node("out"), Integrator)
    assert find_difference(rounded_again(through_float32(made), graph), graph) == ""
    # What other tools can load is the same network.
    assert find_difference(rounded_again(canonicalize(made), graph), graph) == ""


@pytest.mark.parametrize(
    ("readout", "kind"),
    [
        ({}, Integrator),
        ({"decay_v": 9}, LI),
        ({"decay_u": 9}, CubaLIF),
        ({"vth": 9}, IF),
        ({"decay_v": 1, "vth": 9}, LIF),
    ],
)
def test_a_readout_has_no_threshold_unless_it_has_a_current(readout, kind):
    graph = small(**readout)
    made = dequantize(graph)
    assert type(made.node("out")) is kind
    assert find_difference(rounded_again(through_float32(made), graph), graph) == ""


def test_weights_and_biases_are_steps_over_scales():
    graph = plain(decay_v=1024)
    made = dequantize(graph)
    conv, dense = made.node("conv"), made.node("dense")
    np.testing.assert_allclose(conv.weight, graph.projections[0].weight * 15.0 / 20.0 * 4, rtol=1e-12)
    np.testing.assert_allclose(conv.bias, graph.populations[0].bias / 20.0 * 4, rtol=1e-12)
    np.testing.assert_allclose(dense.weight, graph.projections[1].weight / 11.0, rtol=1e-12)
    np.testing.assert_allclose(dense.bias, graph.output.bias / 11.0, rtol=1e-12)
    even = dequantize(plain(bias=np.full(SHAPE, 7)))
    assert even.node("conv").bias.tolist() == [7 / 20.0] * 2
    current = dequantize(small())
    assert not current.node("conv").bias.any()
    # A membrane that forgets nothing, in LSB.
    steps = current.node("n").v_leak * (1e-3 / current.node("n").tau_mem) * 20.0
    np.testing.assert_allclose(steps, small().populations[0].bias, rtol=1e-9, atol=1e-9)


def test_decays_that_differ_within_a_channel_leave_the_convolution_one():
    for decay_u in (4096, 1024):
        graph = plain(decay_u=decay_u, decay_v=small().populations[0].decay_v)
        low = lower(through_float32(dequantize(graph)))
        assert isinstance(low.node("conv"), Conv2d)
        assert low.shapes["n"] == SHAPE


def test_several_projections_share_one_bias():
    graph = small()
    twin = replace(graph.projections[1], name="twin", delay=0)
    graph = replace(graph, projections=(*graph.projections, twin))
    made = dequantize(graph)
    assert made.node("dense").bias.any()
    assert not made.node("twin").bias.any()
    assert find_difference(rounded_again(made, graph), graph) == ""


def test_a_delay_gets_a_name_that_is_free():
    graph = small()
    conv, dense = graph.projections
    graph = replace(graph, projections=(conv, replace(dense, name="conv_delay")))
    assert [node.name for node in dequantize(graph).nodes][1:4] == ["conv_delay.1", "conv", "conv_delay_delay"]


def swapped(graph, **projections):
    """The graph with the fields in ``projections[name]`` replaced."""
    changed = (replace(item, **projections.get(item.name, {})) for item in graph.projections)
    return replace(graph, projections=tuple(changed))


WIDE = Precision(bits=24, signed=True)
BIAS = QuantizedInput(
    name="image", shape=SHAPE, precision=Precision(bits=16, signed=True), scale=37.0, offset=-5.0, biases="n"
)


def shown(**options):
    """The small network behind an image that sets biases, and that population's own loop."""
    graph = plain(bias=np.zeros(SHAPE, int), **options)
    loop = ConvProjection(name="n.image", source="n", target="n", weight=np.full((2, 2, 1, 1), -9), delay=1)
    return replace(graph, input=BIAS, projections=(loop, graph.projections[1]))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (shown(decay_u=4095), "image: is the bias of n, whose current lasts; allowed: decay_u of 4096"),
        (replace(shown(), input=replace(BIAS, scale=-3.0)), "image.scale: -3.0; allowed: a positive number"),
        (replace(small(), input=replace(small().input, offset=0.5)), "image.offset: 0.5; allowed: 0"),
        (replace(small(), input=replace(small().input, scale=0.0)), "image.scale: 0.0; allowed: a positive number"),
        (plain(scale=-1.0), "n.scale: -1.0; allowed: a positive number"),
        (plain(scale=float("nan")), "n.scale: nan"),
        (plain(vth=0), "n.vth: 0; allowed: at least 1 step"),
        (plain(vth=np.arange(24).reshape(SHAPE)), "n.vth: 0"),
        (swapped(small(), conv={"weight": np.zeros((2, 2, 3, 3), int)}), "conv.weight: all weights are 0"),
        (swapped(small(), dense={"weight": np.full((3, 24), -(2**20) - 1), "precision": WIDE}),
         "dense.weight: a weight of 1048577; allowed: at most 1048576"),
        (swapped(small(), dense={"delay": np.arange(72).reshape(3, 24)}),
         "dense.delay: differs between synapses of one source"),
        (swapped(small(), dense={"name": "n"}), "names: several parts are called n;"),
        (plain(scale=1e-39), "conv.weight: magnitudes from .*; allowed: those of 32-bit floats"),
        (plain(scale=1e42), "conv.weight: magnitudes from .*; allowed: those of 32-bit floats"),
    ],
)  # fmt: skip
def test_what_a_float_graph_cannot_say_is_refused_by_name(graph, message):
    with pytest.raises(QuantizationError, match=message):
        dequantize(graph)


@pytest.mark.parametrize(
    "options", [{}, {"decay_v": 1024}, {"decay_v": small().populations[0].decay_v}, {"vth": VTH_NEVER - 1}]
)
def test_an_image_that_sets_biases_is_an_identity(options):
    graph = shown(**options)
    made = dequantize(graph)
    node = made.node("n.image.1")
    assert (made.sources(node.name), made.targets(node.name)) == (("image",), ("n",))
    assert (node.weight.shape, node.groups, node.bias.shape) == ((2, 1, 1, 1), 2, (2,))
    for way in (made, through_float32(made), *([] if np.ndim(options.get("decay_v")) else [canonicalize(made)])):
        assert find_difference(rounded_again(way, graph), graph) == ""
    images = np.random.default_rng(4).uniform(-1, 3, (5, *SHAPE))
    record, reference = run_float(made, images), run_reference(graph, BIAS.quantize(images))
    if not options:  # nothing is truncated but pixels
        assert 0.05 < record.rate("n") < 0.95
        assert np.mean(record.values["n"] != reference.spikes["n"]) < 0.03


def with_node(graph, name, **changes):
    return graph.with_nodes(tuple(replace(n, **changes) if n.name == name else n for n in graph.nodes), graph.edges)


def delayed(graph):
    edges = [edge for edge in graph.edges if edge != ("image", "n.image.1")]
    late = Delay(name="late", delay=np.array(graph.dt))
    return graph.with_nodes((*graph.nodes, late), (*edges, ("image", "late"), ("late", "n.image.1")))


def with_current(graph, name, **options):
    neuron = CubaLIF(name=name, tau_syn=2 * graph.dt, tau_mem=graph.dt, w_in=2.0)
    return graph.with_nodes(tuple(neuron if n.name == name else n for n in graph.nodes), graph.edges)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: with_node(g, "n.image.1", weight=1.001 * g.node("n.image.1").weight),
         r"n\.image\.1: pixels times 37.037, plus -5; allowed: 37 and -5 \[LSB\], as image says"),
        (lambda g: with_node(g, "n.image.1", bias=np.array([0.25, 0.3])), r"n\.image\.1: pixels .* plus 5 to 6;"),
        (lambda g: with_node(g, "n", r=1001.0), r"n\.image\.1: pixels times 37.037, plus -5.005"),
        (lambda g: with_node(g, "n.image.1", weight=np.ones((2, 1, 3, 3)), padding=(1, 1)),
         r"n\.image\.1: with a delay, a kernel, .*; allowed: each pixel into its neuron"),
        (lambda g: with_node(g, "n.image.1", weight=np.ones((2, 2, 1, 1)), groups=1), "with a delay, a kernel"),
        (delayed, r"n\.image\.1: with a delay, a kernel"),
        (lambda g: with_current(with_node(g, "n.image.1", bias=np.zeros(2)), "n"), "or a current of n that lasts"),
        (lambda g: with_current(with_node(g, "dense", bias=np.ones(3)), "out"),
         "image: is a bias, and a current has another"),
    ],
)  # fmt: skip
def test_what_no_longer_is_the_image_of_the_integers_is_refused(change, message):
    graph = shown()
    with pytest.raises(QuantizationError, match=message):
        rounded_again(change(dequantize(graph)), graph)


@pytest.mark.parametrize("biases", ["out", "nothing"])
def test_an_image_sets_biases_of_the_population_that_it_feeds(biases):
    graph = shown()
    rounding = rounding_of(graph)
    rounding = replace(rounding, input=replace(rounding.input, biases=biases))
    with pytest.raises(QuantizationError, match=f"image: feeds n; allowed: {biases} alone"):
        round_graph(lower(dequantize(graph)), rounding)


def test_a_flat_image_that_sets_biases_is_a_small_identity():
    neurons = Population(name="n", shape=(7,), bias=np.zeros(7, int), vth=99, decay_v=512, scale=3.0)
    source = QuantizedInput(name="x", shape=(7,), precision=BIAS.precision, scale=11.0, offset=4.0, biases="n")
    graph = QuantizedGraph(input=source, populations=(neurons,), projections=(), timesteps=3)
    made = dequantize(graph)
    assert find_difference(rounded_again(through_float32(made), graph), graph) == ""
    np.testing.assert_allclose(np.diag(made.node("n.image").weight) / 8 * 3, 11.0)
    np.testing.assert_allclose(made.node("n.image").bias / 8 * 3, 4.0)
    wide = Population(name="n", shape=(2049,), bias=np.zeros(2049, int), vth=99)
    with pytest.raises(GraphError, match=r"n\.image: would need 4198401 weights"):
        dequantize(replace(graph, input=replace(source, shape=(2049,)), populations=(wide,)))


def test_weights_of_twenty_bits_come_back():
    rng = np.random.default_rng(1)
    weight = rng.integers(-(2**20), 2**20 + 1, (3, 24))
    graph = swapped(small(decay_v=513, decay_u=77), dense={"weight": weight, "precision": WIDE})
    assert find_difference(rounded_again(through_float32(dequantize(graph)), graph), graph) == ""


def test_an_output_that_others_come_after_is_refused():
    graph = plain()
    back = DenseProjection(name="back", source="out", target="side", weight=np.ones((2, 3), int))
    more = DenseProjection(name="more", source="side", target="out", weight=np.ones((3, 2), int), delay=1)
    side = Population(name="side", shape=(2,), bias=np.zeros(2, int), vth=5)
    firing = replace(graph.output, vth=50)
    graph = replace(
        graph, projections=(*graph.projections, back, more), populations=(graph.populations[0], firing, side)
    )
    assert find_difference(rounded_again(dequantize(graph), graph), graph) == ""
    late = replace(graph, projections=(*graph.projections[:2], replace(back, delay=1), replace(more, delay=0)),
                   populations=(graph.populations[0], side, firing))  # fmt: skip
    assert find_difference(rounded_again(dequantize(late), late), late) == ""
    # Both ways late: either could be last, and a float graph has only its own order.
    both = replace(late, projections=(*graph.projections[:2], replace(back, delay=1), more))
    other = replace(both, populations=(graph.populations[0], firing, side))
    answers = []
    for one in (both, other):
        try:
            answers.append(find_difference(rounded_again(dequantize(one), one), one) or "equal")
        except QuantizationError as refused:
            answers.append(re.sub(".*allowed: ", "", str(refused)))
    assert sorted(answers) == ["equal", "the last population to be executed"]
    late_back = replace(back, delay=1)
    unheard = replace(both, projections=(*graph.projections[:2], late_back))
    with pytest.raises(QuantizationError, match="graph: out is read out, before side"):
        dequantize(unheard)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tiny.net", "pilotnet_lif.net"])
def test_real_networks_come_back(shared, name, tmp_path):
    from stars_deploy.targets.netx_reader import read_netx

    graph = read_netx(shared / "networks" / name, 4)
    made = dequantize(graph)
    assert (made.node("input.image").groups, made.input.low) == (3, (-(2**15) - graph.input.offset) / graph.input.scale)
    assert find_difference(rounded_again(through_float32(made), graph), graph) == ""
    assert find_difference(rounded_again(canonicalize(made), graph), graph) == ""
    NirTarget().write(graph, tmp_path / "m.nir")
    again = NirTarget().read(tmp_path / "m.nir", 4)
    assert find_difference(again, graph) == ""
    assert again.input == graph.input  # its offset, too
    # Behind the image that is a bias they are networks of graded or binary input.
    first, *others = graph.populations
    source = QuantizedInput(name=first.name, shape=first.shape, precision=Precision(bits=1, signed=False), scale=1.0)
    graph = replace(graph, input=source, populations=tuple(others))
    made = dequantize(graph)
    assert find_difference(rounded_again(through_float32(made), graph), graph) == ""
    assert {type(made.node(item.name)) for item in others[:-1]} == {LIF}
