import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from stars_deploy.baseline import AnnLayer, AnnReference, describe_topology, estimate_baseline, same_chip_tier
from stars_deploy.cpu_measurement import not_measured
from stars_deploy.errors import ConfigError, FormatError
from stars_deploy.hardware import Interval
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.simulate import run_evaluation

TEACHER = (
    AnnLayer(name="conv", macs=1440, weights=90, inputs=64, outputs=160, zero_share=0.5, reads_image=True),
    AnnLayer(name="fc", macs=1600, weights=1600, inputs=160, outputs=10, zero_share=0.75),
)


@pytest.fixture(scope="module")
def graph():
    """A 3x3 kernel with one zero over 4x4 pixels with padding, then 16 -> 2 with every other weight 0."""
    kernel = np.full((1, 1, 3, 3), 7)
    kernel[0, 0, 0, 0] = 0
    read = np.ones((2, 16), int)
    read[:, ::2] = 0
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 4, 4)),
        populations=(
            Population(name="conv", shape=(1, 4, 4), decay_v=4096, vth=0, bias=np.zeros((1, 4, 4), int)),
            Population(name="out", shape=(2,), bias=np.zeros(2, int)),
        ),
        projections=(
            ConvProjection(name="c", source="input", target="conv", weight=kernel, padding=(1, 1)),
            DenseProjection(
                name="r", source="conv", target="out", weight=read, precision=Precision(bits=4, signed=True)
            ),
        ),
        timesteps=3,
    )


@pytest.fixture(scope="module")
def evaluation(graph):
    return run_evaluation(graph, np.full((2, 1, 4, 4), 9))


def test_the_topology_counts_zero_weights_but_no_padding(graph):
    conv, out = describe_topology(graph)
    # Along one axis of 4 pixels a 3-wide kernel meets 2 + 3 + 3 + 2 = 10 of them.
    assert conv == AnnLayer(name="conv", macs=100, weights=9, inputs=16, outputs=16, reads_image=True)
    assert out == AnnLayer(name="out", macs=32, weights=32, inputs=16, outputs=2)


def test_zero_pixels_are_counted_by_the_products_that_they_save(graph):
    images = np.zeros((2, 1, 4, 4), int)
    images[0, 0, 0, 0] = 5  # a corner, which 4 outputs read
    images[1, 0, 1, 1] = 5  # inside: 9
    conv, out = describe_topology(graph, run_evaluation(graph, images))
    assert conv.zero_share == pytest.approx(1 - (4 + 9) / 2 / 100)
    assert out.zero_share is None


def test_delayed_pixels_have_no_share_of_zeros(graph, evaluation):
    assert describe_topology(graph, evaluation)[0].zero_share == 0
    late = replace(graph, projections=(replace(graph.projections[0], delay=1), graph.projections[1]))
    assert describe_topology(late, run_evaluation(late, np.full((2, 1, 4, 4), 9)))[0].zero_share is None


def test_layers_that_join_are_one_layer(graph):
    skip = DenseProjection(name="skip", source="input", target="out", weight=np.ones((2, 16), int))
    joined = replace(graph, projections=(*graph.projections, skip))
    out = describe_topology(joined)[1]
    assert (out.macs, out.weights, out.inputs, out.outputs, out.reads_image) == (64, 64, 32, 2, False)


def test_without_a_teacher_the_figures_are_those_of_the_topology(graph, evaluation):
    baseline = estimate_baseline(graph, evaluation)
    assert (baseline.macs, baseline.macs_of) == (132, "an ANN of the deployed topology")
    assert baseline.layers == describe_topology(graph, evaluation)
    assert baseline.tier("int8_dense").energy_j.nominal > 0
    skipping = baseline.tier("int8_zero_skipping")
    assert skipping.energy_j is None and skipping.details["reason"].endswith("not measured: out")


def test_a_teacher_brings_its_own_layers(graph, evaluation):
    baseline = estimate_baseline(graph, evaluation, teacher=AnnReference(layers=TEACHER))
    assert (baseline.macs, baseline.macs_of, baseline.layers) == (3040, "the teacher", TEACHER)
    dense, skipping = (baseline.tier(name).energy_j.nominal for name in ("int8_dense", "int8_zero_skipping"))
    assert 0 < skipping < dense
    with pytest.raises(ConfigError, match="ANN layers"):
        estimate_baseline(graph, evaluation, teacher=AnnReference(layers=()))


def test_what_stands_beside_it_reaches_the_tiers(graph, evaluation):
    given = Interval(nominal=2, low=1, high=3)
    single = same_chip_tier(accuracy=0.9, energy=given, latency=given, profile="loihi2")
    teacher = AnnReference(layers=TEACHER, measured=not_measured("no ONNX of this teacher"))
    baseline = estimate_baseline(graph, evaluation, teacher=teacher, same_chip=single)
    assert baseline.tier("same_chip_t1") is single
    assert baseline.measured is teacher.measured
    assert baseline.tier("cpu_batch_1").details["reason"] == "no ONNX of this teacher"


@pytest.mark.parametrize(("decays", "met"), [({}, True), ({"decay_v": 410}, None), ({"decay_u": 2048}, None)])
def test_leaks_and_lasting_currents_are_no_if_neurons(graph, decays, met):
    conv = replace(graph.populations[0], **{"decay_v": 0, "vth": 131_070, **decays})
    quiet = replace(graph, populations=(conv, graph.populations[1]))
    baseline = estimate_baseline(quiet, run_evaluation(quiet, np.full((1, 1, 4, 4), 1)))
    assert baseline.spikes_per_synapse == 0
    assert baseline.break_even[0].met is met


def test_the_matched_ann_has_the_bits_of_this_network(graph, evaluation):
    bits = estimate_baseline(graph, evaluation).tier("bit_matched_dense").details["bits"]
    # T = 3: spike counts 0 to 3 are 2 bits; the wider of 8- and 4-bit weights; 8-bit pixels.
    assert bits == {"weights": 8, "activations": 2, "pixels": 8}


def test_rates_of_the_spiking_network(graph, evaluation):
    # Every conv neuron sees a lit pixel and fires at each of 3 timesteps: each non-zero synapse meets 3 spikes.
    baseline = estimate_baseline(graph, evaluation)
    assert baseline.spikes_per_synapse == 3.0
    assert baseline.spike_rate == 1.0, "a readout that never fires must not lower the rate"
    synapses, rate, _ = baseline.break_even
    assert (synapses.value, synapses.met) == (3.0, False)
    assert (rate.value, rate.met) == (1.0, None)


def test_without_spiking_synapses_there_is_no_rate():
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 1, 2)),
        populations=(Population(name="out", shape=(2,), bias=np.zeros(2, int)),),
        projections=(DenseProjection(name="p", source="input", target="out", weight=np.ones((2, 2), int)),),
        timesteps=1,
    )
    baseline = estimate_baseline(graph, run_evaluation(graph, np.ones((1, 1, 1, 2), int)))
    assert baseline.spikes_per_synapse is None and baseline.spike_rate == 0
    assert baseline.break_even[0].met is None and baseline.break_even[0].ours == "no figure"


def test_everything_survives_json(graph, evaluation):
    baseline = estimate_baseline(graph, evaluation, teacher=AnnReference(layers=TEACHER))
    plain = json.loads(json.dumps(asdict(baseline), allow_nan=False))
    assert tuple(AnnLayer.from_json(layer) for layer in plain["layers"]) == TEACHER
    assert {tier["tier"] for tier in plain["tiers"]} == {"analytic", "measured"}
    names = [tier["name"] for tier in plain["tiers"]]
    assert len(set(names)) == len(names) == 6
    assert {constant["key"] for constant in plain["constants"]} >= {"multiply_8x8", "sram_1_mib", "dram", "reuse"}
    assert all(constant["source"] and constant["evidence"] for constant in plain["constants"])


def test_no_ratio_of_chip_and_ann_is_taken(graph, evaluation):
    for tier in estimate_baseline(graph, evaluation, teacher=AnnReference(layers=TEACHER)).tiers:
        if tier.tier == "analytic":
            assert tier.label.startswith("estimate: ") and "at 45 nm" in tier.label
            assert any("not to be divided" in text for text in tier.assumptions)


def test_an_unknown_tier_is_named(graph, evaluation):
    with pytest.raises(ConfigError, match=r"fp32.*int8_dense"):
        estimate_baseline(graph, evaluation).tier("fp32")


@pytest.mark.parametrize(
    ("change", "named"),
    [({"macs": 0}, "macs: 0"), ({"inputs": -1}, "inputs: -1"), ({"zero_share": 1.5}, "zero_share: 1.5")],
)
def test_impossible_layers_are_refused(change, named):
    with pytest.raises(ConfigError, match=f"ANN layer conv: {named}"):
        replace(TEACHER[0], **change)
    with pytest.raises(ConfigError, match=f"ANN layer conv: {named}"):
        AnnLayer.from_json({**asdict(TEACHER[0]), **change})


def test_damaged_layers_are_refused():
    whole = asdict(TEACHER[0])
    with pytest.raises(FormatError, match="layers: macs"):
        AnnLayer.from_json({key: value for key, value in whole.items() if key != "macs"})
    with pytest.raises(FormatError, match="layers: weights"):
        AnnLayer.from_json({**whole, "weights": "many"})
