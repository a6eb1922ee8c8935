from dataclasses import asdict

import numpy as np
import pytest

from stars_deploy.baseline import BREAK_EVEN, estimate_baseline
from stars_deploy.errors import ConfigError
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.simulate import run_evaluation


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
            DenseProjection(name="r", source="conv", target="out", weight=read),
        ),
        timesteps=3,
    )


@pytest.fixture(scope="module")
def evaluation(graph):
    return run_evaluation(graph, np.full((2, 1, 4, 4), 9))


def test_macs_count_zero_weights_but_no_padding(graph, evaluation):
    baseline = estimate_baseline(graph, evaluation)
    # Along one axis of 4 pixels a 3-wide kernel meets 2 + 3 + 3 + 2 = 10 of them.
    assert baseline.macs_per_layer == {"conv": 100, "out": 32}
    assert baseline.macs == 132
    assert baseline.macs_of == "an ANN of the deployed topology"
    assert baseline.energy_j == pytest.approx(132 * 0.23e-12)


def test_a_teacher_of_another_topology_brings_its_own_macs(graph, evaluation):
    baseline = estimate_baseline(graph, evaluation, teacher_macs=1_000_000)
    assert (baseline.macs, baseline.macs_of) == (1_000_000, "the teacher")
    assert baseline.energy_j == pytest.approx(0.23e-6)
    assert baseline.macs_per_layer == {"conv": 100, "out": 32}
    with pytest.raises(ConfigError, match="teacher_macs"):
        estimate_baseline(graph, evaluation, teacher_macs=0)


def test_spikes_per_synapse(graph, evaluation):
    # Every conv neuron sees a lit pixel and fires at each of 3 timesteps: each non-zero synapse meets 3 spikes.
    baseline = estimate_baseline(graph, evaluation)
    assert baseline.spikes_per_synapse == 3.0
    assert baseline.spike_rate == pytest.approx(16 * 3 / (18 * 3))


def test_without_spiking_synapses_there_is_no_rate():
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 1, 2)),
        populations=(Population(name="out", shape=(2,), bias=np.zeros(2, int)),),
        projections=(DenseProjection(name="p", source="input", target="out", weight=np.ones((2, 2), int)),),
        timesteps=1,
    )
    assert estimate_baseline(graph, run_evaluation(graph, np.ones((1, 1, 1, 2), int))).spikes_per_synapse is None


def test_the_figure_is_named_for_what_it_is(graph, evaluation):
    plain = asdict(estimate_baseline(graph, evaluation))
    assert plain["label"] == "analytic 45 nm int8 MAC energy, arithmetic only"
    assert "Horowitz" in plain["source"]
    assert "ISSCC 2014" in plain["source"]
    assert "no memory traffic" in plain["caveat"]
    assert len(plain["break_even"]) == len(BREAK_EVEN) == 3
    assert all(item["statement"] and item["source"] for item in plain["break_even"])
