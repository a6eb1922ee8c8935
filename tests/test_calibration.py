"""Calibration: which scale and input bits it takes, and what it reports."""

from __future__ import annotations

import itertools
from dataclasses import replace

import float_networks
import numpy as np
import pytest

from stars_deploy.errors import GraphError, QuantizationError
from stars_deploy.export.calibration import SHARES, LayerReport, calibrate_graph, compare_rates
from stars_deploy.export.execution import run_float
from stars_deploy.export.quantization import quantize_graph
from stars_deploy.graph import IF, LI, LIF, Conv2d, CubaLIF, Delay, Input, Integrator, Linear, SpikingGraph
from stars_deploy.quantized import find_difference
from stars_deploy.targets.reference import project, run_reference, update

SHAPE = (1, 6, 6)


def network(seed=0, outlier=0.0, bias=0.1, timesteps=4, channels=6):
    rng = np.random.default_rng(seed)
    weight = rng.uniform(-0.4, 0.4, (channels, 1, 3, 3))
    weight[0, 0, 0, 0] += outlier
    gain = {"tau_mem": 4e-3, "r": 5.0}  # not 1 / leak
    nodes = (
        Input(name="image", shape=SHAPE),
        Conv2d(name="conv", weight=weight, bias=rng.normal(bias, 0.1, channels), padding=(1, 1)),
        LIF(name="lif1", **gain),
        Linear(name="dense", weight=rng.normal(0.02, 0.15, (12, 36 * channels)), bias=rng.normal(0, 0.1, 12)),
        LIF(name="lif2", **gain),
        Linear(name="last", weight=rng.normal(size=(3, 12)), bias=rng.normal(size=3)),
        Integrator(name="readout", r=1e3),
    )
    edges = tuple((one.name, other.name) for one, other in itertools.pairwise(nodes))
    return SpikingGraph(nodes=nodes, edges=edges, timesteps=timesteps)


def changed(graph, **nodes):
    return graph.with_nodes(
        tuple(replace(node, **nodes[node.name]) if node.name in nodes else node for node in graph.nodes), graph.edges
    )


def images(samples=20, seed=1):
    return np.random.default_rng(seed).random((samples, *SHAPE))


def test_an_outlier_among_the_weights_is_clipped_where_that_lowers_the_error():
    # More than twice the largest of the others, on one of 216 synapses: at 3 bits the others need the steps.
    graph = network(outlier=0.8, channels=24)
    assert np.sort(np.abs(graph.node("conv").weight).reshape(-1))[-1] > 2 * 0.4
    found = calibrate_graph(graph, images(), 3, 6)
    assert found.shares["lif1"] < 0.7
    assert found.layers[0].clipped == 1 / 216
    unclipped = quantize_graph(graph, 3, found.input_bits)
    clipped = quantize_graph(graph, 3, found.input_bits, found.shares)
    record = run_float(graph, images(seed=2)).values["lif1"]
    wrong = [
        np.mean(run_reference(graph, graph.input.quantize(images(seed=2))).spikes["lif1"] != record)
        for graph in (unclipped, clipped)
    ]
    assert wrong[1] < wrong[0]


def test_at_eight_bits_nothing_is_gained_by_clipping_much():
    found = calibrate_graph(network(), images(), 8, 5)
    assert all(layer.clipped < 0.02 for layer in found.layers)
    assert all(layer.current_error < 0.03 for layer in found.layers)


def test_fewer_input_bits_are_taken_where_the_accumulator_needs_the_room():
    roomy = calibrate_graph(network(), images(), 4, 8)
    assert roomy.input_bits == 8
    # 900 synapses of 8 bits times pixels of 8 bits overrun 24 bits many times; fewer pixel bits leave weight bits.
    rng = np.random.default_rng(3)
    nodes = (Input(name="image", shape=(1, 30, 30)), Linear(name="dense", weight=rng.normal(size=(5, 900)),
             bias=np.zeros(5)), Integrator(name="readout", r=1e3))  # fmt: skip
    crowded = SpikingGraph(nodes=nodes, edges=(("image", "dense"), ("dense", "readout")))
    found = calibrate_graph(crowded, rng.random((8, 1, 30, 30)), 8, 8)
    assert 4 <= found.input_bits < 8
    assert calibrate_graph(crowded, rng.random((8, 1, 30, 30)), 8, 3).input_bits == 3


@pytest.mark.parametrize("bits", [3, 8])
def test_quantizing_with_its_shares_gives_the_layers_that_it_judged(bits):
    graph = network(outlier=0.8)
    found = calibrate_graph(graph, images(), bits, 8)
    quantized = quantize_graph(graph, bits, found.input_bits, found.shares)
    assert set(found.shares) == {"lif1", "lif2", "readout"}
    assert set(found.shares.values()) <= set(SHARES)
    for layer, projection in zip(found.layers, quantized.projections, strict=True):
        assert layer.name == projection.target
        assert layer.scale == quantized.population(layer.name).scale
        assert layer.largest_weight == np.abs(projection.weight).max()
        assert layer.allowed_weight == 2 ** (bits - 1) - 1


def test_the_same_images_give_the_same_calibration():
    first, again = (calibrate_graph(network(), images(), 4, 8) for _ in range(2))
    assert first == again
    assert (
        find_difference(quantize_graph(network(), 4, 8, first.shares), quantize_graph(network(), 4, 8, again.shares))
        == ""
    )
    assert calibrate_graph(network(), images(seed=7), 4, 8) != first


def test_rates_and_errors_are_those_of_an_own_computation():
    graph = network()
    found = calibrate_graph(graph, images(), 5, 8)
    record = run_float(graph, images())
    quantized = quantize_graph(graph, 5, found.input_bits, found.shares)
    reference = run_reference(quantized, quantized.input.quantize(images()))
    first, second, readout = found.layers
    assert 0.02 < record.rate("lif1") < 0.9
    assert [layer.rate for layer in found.layers] == [record.rate("lif1"), record.rate("lif2"), 0.0]
    # The first layer gets the images themselves: its rate is that of the integer network.
    assert first.quantized_rate == pytest.approx(reference.spikes["lif1"].mean(), rel=1e-12)
    assert first.quantized_rate != first.rate
    assert (readout.fires, readout.rate, readout.quantized_rate) == (False, 0.0, 0.0)
    # Current of the second layer, spikes of the float network as input, against its rounded threshold.
    spikes = record.values["lif1"].reshape(-1, 216)
    dense, unit = graph.node("dense"), quantized.population("lif2").vth
    wanted = 1.25 * (spikes @ dense.weight.T + dense.bias)  # r / tau_mem * dt
    got = (spikes @ quantized.projections[1].weight.T + quantized.population("lif2").bias) / unit
    expected = np.sqrt(np.mean((got - wanted) ** 2)) / np.sqrt(np.mean(wanted**2))
    assert second.current_error == pytest.approx(expected, rel=1e-9)
    assert second.current_error > 0.01
    # Weights against floats of as many steps.
    steps = dense.weight * 1.25 * quantized.population("lif2").scale
    expected = np.linalg.norm(quantized.projections[1].weight - steps) / np.linalg.norm(steps)
    assert second.weight_error == pytest.approx(expected, rel=1e-9)
    assert second.weight_error > 0.02


def test_a_sound_network_has_no_warnings():
    assert calibrate_graph(network(), images(), 8, 6).warnings == ()


def test_warnings_name_what_is_wrong():
    silent = calibrate_graph(changed(network(), lif2={"v_threshold": 100.0}), images(), 8, 8)
    assert "lif2 never fires, not even before quantisation" in silent.warnings
    saturated = calibrate_graph(changed(network(), dense={"bias": np.full(12, 9.0)}), images(), 8, 8)
    assert "lif2 is saturated: it fires at 100% of all timesteps" in saturated.warnings
    crushed = calibrate_graph(changed(network(), conv={"bias": np.full(6, 90.0)}), images(), 8, 8)
    assert any("lif1 uses weights up to" in text for text in crushed.warnings)
    coarse = calibrate_graph(network(), images(), 2, 8)
    assert any("lif1 has its input current changed by" in text for text in coarse.warnings)


REPORT = LayerReport(name="lif", fires=True, scale=1.0, largest_weight=1, allowed_weight=1, clipped=0.0,
                     weight_error=0.1, current_error=0.1, rate=0.25, quantized_rate=0.2)  # fmt: skip


def test_a_layer_that_quantisation_silences_says_so():
    report = replace(REPORT, quantized_rate=0.0)
    assert report.warnings == ("lif goes silent: it fired at a rate of 0.25 before quantisation",)
    assert replace(report, quantized_rate=0.2).warnings == ()
    assert replace(report, fires=False, rate=0.0).warnings == ()


def test_a_candidate_that_does_not_fit_leaves_the_others():
    # With 8-bit pixels no scale leaves weights between a threshold and the 24 bits; with fewer there is one.
    graph = changed(network(), conv={"bias": np.full(6, 200.0)})
    with pytest.raises(QuantizationError, match="conv: its largest weight"):
        quantize_graph(graph, 8, 8)
    assert calibrate_graph(graph, images(), 8, 8).input_bits < 8


def test_nothing_that_fits_is_refused_with_the_first_reason():
    with pytest.raises(QuantizationError, match="lif2: its weights, bias and accumulator leave"):
        calibrate_graph(changed(network(), lif2={"v_threshold": 1e-5}), images(), 4, 8)
    with pytest.raises(QuantizationError, match="bits: 9"):
        calibrate_graph(network(), images(), 9, 8)
    with pytest.raises(QuantizationError, match=r"image\.precision"):
        calibrate_graph(network(), images(), 8, 9)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(QuantizationError, match="calibration: no images"):
        calibrate_graph(network(), images(0), 8, 8)
    with pytest.raises(GraphError, match="image: images of shape"):
        calibrate_graph(network(), np.zeros((2, 3, 6, 6)), 8, 8)
    with pytest.raises(QuantizationError, match="image: values from 0 to 510"):
        calibrate_graph(network(), 2 * np.ones((1, *SHAPE)) * np.eye(6), 8, 8)


def test_rates_of_the_deployed_network_are_compared():
    other = replace(REPORT, name="out", fires=False, rate=0.0, quantized_rate=0.0)
    assert compare_rates([REPORT, other], {"lif": 0.1, "out": 0.0}) == ()
    change = ": its rate is 0, and was 0.25 before quantisation"
    assert compare_rates([REPORT], {"lif": 0.0}) == (f"lif goes silent in the deployed network{change}",)
    change = ": its rate is 0.95, and was 0.25 before quantisation"
    assert compare_rates([REPORT], {"lif": 0.95}) == (f"lif is saturated in the deployed network{change}",)
    # What the layer's own warnings say already is not said again.
    silent, saturated = replace(REPORT, quantized_rate=0.0), replace(REPORT, quantized_rate=0.92)
    assert silent.warnings
    assert saturated.warnings
    assert compare_rates([silent], {"lif": 0.0}) == compare_rates([saturated], {"lif": 0.95}) == ()
    with pytest.raises(QuantizationError, match="out: has no deployed rate"):
        compare_rates([REPORT, other], {"lif": 0.1})


def test_errors_that_add_up_silence_a_deployed_population_that_is_sound_by_itself():
    graph = network()
    found = calibrate_graph(graph, images(), 2, 8)
    quantized = quantize_graph(graph, 2, found.input_bits, found.shares)
    record = run_reference(quantized, quantized.input.quantize(0.0 * images()))
    deployed = {name: float(spikes.mean()) for name, spikes in record.spikes.items()}
    assert compare_rates(found.layers, deployed) == tuple(
        f"{layer.name} goes silent in the deployed network: its rate is 0, and was {layer.rate:.2g} before quantisation"
        for layer in found.layers
        if layer.fires and deployed[layer.name] == 0
    )
    assert 0 in [deployed["lif1"], deployed["lif2"]]


def activations(graph, record, name):
    """Sum of weights times what the float network sends, delays included, for each timestep; bias included."""
    quantized = {item.name: item for item in graph.into(name)}
    total = 0
    for item in quantized.values():
        sent = record.values[item.source]
        payloads = graph.input.quantize(sent) if item.source == graph.input.name else sent.astype(np.int64)
        for delay, synapses in item.by_delay():
            late = np.concatenate([np.zeros_like(payloads[:1])] * delay + [payloads])[: len(payloads)]
            total = total + np.stack([project(synapses, step) for step in late])
    return total


@pytest.mark.parametrize("kinds", [(LIF, CubaLIF, IF), (CubaLIF, IF, LIF), (IF, LIF, CubaLIF)])
@pytest.mark.parametrize("frames", [0, 6])
def test_sums_loops_delays_and_currents_are_calibrated(kinds, frames):
    """Each population against the reference's own dynamics, fed by the float network."""
    graph = float_networks.network(4, kinds, LI)
    shown = float_networks.images(frames=frames)
    bits = 1 if frames else 4
    found = calibrate_graph(graph, shown, 6, bits)
    assert found.input_bits == bits
    assert list(found.shares) == [layer.name for layer in found.layers] == [*float_networks.FIRING, "readout"]
    quantized = quantize_graph(graph, 6, found.input_bits, found.shares)
    record = run_float(graph, shown)
    for layer in found.layers:
        population = quantized.population(layer.name)
        assert layer.scale == population.scale
        assert layer.largest_weight == max(np.abs(item.weight).max() for item in quantized.into(layer.name))
        sums = activations(quantized, record, layer.name)
        u = v = np.zeros(sums.shape[1:], np.int64)
        spikes = []
        for step in sums:
            u, v, fired = update(population, u, v, step, population.bias)
            spikes.append(fired)
        assert layer.quantized_rate == pytest.approx(np.mean(spikes), rel=1e-12)
        assert layer.rate == (record.rate(layer.name) if layer.fires else 0)
        assert 0.001 < layer.current_error < 0.1
        assert 0.001 < layer.weight_error < 0.1
    assert [layer.fires for layer in found.layers] == [True, True, True, False]
    assert found.warnings == ()


def test_the_current_error_of_many_thresholds_is_measured_against_each():
    graph = float_networks.network(4, (IF, IF, IF))
    shown = float_networks.images(frames=6)
    found = calibrate_graph(graph, shown, 6, 1)
    quantized = quantize_graph(graph, 6, 1, found.shares)
    record = run_float(graph, shown)
    third, population = graph.node("third"), quantized.population("third")
    assert np.ptp(third.v_threshold) > 0
    got = (activations(quantized, record, "third") + population.bias) / (population.vth / third.v_threshold)
    wanted = (record.values["dense"] + record.values["loop"]) * float_networks.DT * third.r
    expected = np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2))
    assert found.layers[2].current_error == pytest.approx(expected, rel=1e-9)


def test_input_bits_serve_all_layers_that_the_image_enters():
    graph = float_networks.network(2)
    alone = {"image", "conv1", "first"}
    first = graph.with_nodes(tuple(node for node in graph.nodes if node.name in alone),
                             tuple(edge for edge in graph.edges if set(edge) <= alone))  # fmt: skip
    assert calibrate_graph(first, float_networks.images(), 5, 8).input_bits == 8
    # Beside those of spikes, the image's weights at 8 bits round to nothing.
    with pytest.raises(QuantizationError, match="skip: its largest weight"):
        quantize_graph(graph, 5, 8)
    assert 4 <= calibrate_graph(graph, float_networks.images(), 5, 8).input_bits < 8
    with pytest.raises(QuantizationError, match="second: its weights, bias and accumulator leave"):
        calibrate_graph(
            changed(graph, conv2={"weight": 1e4 * graph.node("conv2").weight}), float_networks.images(), 8, 8
        )


def test_a_population_that_only_hears_the_image_late_is_calibrated_on_what_it_hears():
    rng = np.random.default_rng(0)
    nodes = (Input(name="image", shape=(1, 1, 8)), Delay(name="late", delay=np.array(3e-3)),
             Linear(name="w", weight=rng.normal(size=(5, 8)), bias=np.zeros(5)),
             IF(name="n", r=1e3, v_threshold=0.3))  # fmt: skip
    edges = tuple((one.name, other.name) for one, other in itertools.pairwise(nodes))
    shown = rng.random((10, 1, 1, 8))
    late, never = (SpikingGraph(nodes=nodes, edges=edges, timesteps=steps) for steps in (4, 3))
    (report,) = calibrate_graph(late, shown, 8, 8).layers
    assert 0 < report.rate <= 0.25
    assert report.quantized_rate == pytest.approx(report.rate, abs=0.05)
    assert "n never fires, not even before quantisation" in calibrate_graph(never, shown, 8, 8).warnings


def test_frames_that_do_not_fit_are_refused():
    graph = float_networks.network()
    with pytest.raises(QuantizationError, match="calibration: no images"):
        calibrate_graph(graph, np.zeros((6, 0, *float_networks.SHAPE)), 8, 1)
    with pytest.raises(GraphError, match="image: 5 frames"):
        calibrate_graph(graph, float_networks.images(frames=5), 8, 1)
    with pytest.raises(QuantizationError, match="image: values from 0 to 3"):
        calibrate_graph(graph, 3 * float_networks.images(frames=6), 8, 1)
