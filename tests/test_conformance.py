"""One suite over every target: what it writes reads back equal and computes the same, or it says why it cannot.

The reasons here are those of docs/formats.md; a target that learns to carry a graph makes its exclusion fail.
"""

from __future__ import annotations

import numpy as np
import pytest
from conformance_graphs import GRAPHS, SAMPLES, samples_of

from stars_deploy.errors import QuantizationError, TargetError
from stars_deploy.quantized import find_difference
from stars_deploy.targets import TARGETS
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.lava import LavaTarget
from stars_deploy.targets.lava.runs import execute_runs
from stars_deploy.targets.nir_graph import NirTarget
from stars_deploy.targets.onnx_model import OnnxTarget
from stars_deploy.targets.reference import run_reference

WRITERS = {
    "netx": TARGETS["netx"],
    "nir": NirTarget(),
    "onnx": OnnxTarget(),
    "onnx of payloads": OnnxTarget(source="payloads"),
    "onnx step": OnnxTarget(mode="step"),
    "onnx step of payloads": OnnxTarget(mode="step", source="payloads"),
}

#: Why a target cannot carry a graph, as a part of what it says when asked.
EXCLUDED = {
    ("netx", "residual sum"): "one projection into each population",
    ("netx", "convolution with a delay"): "no delay of a convolution",
    ("netx", "resets"): "reset_interval",
    ("netx", "wide weights"): "acts as -256 in Lava",
    ("netx", "wraps and clips"): "Lava's integers wrap",
    ("nir", "synaptic delays"): "one delay for each source",
    ("nir", "extreme thresholds"): "a float threshold lies above the reset",
}


def runs_frames(writer):
    return "payloads" in writer or writer in ("netx", "nir")


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("writer", WRITERS)
def test_target_carries_the_graph_or_says_why_not(writer, name, tmp_path):
    graph, target = GRAPHS[name], WRITERS[writer]
    path = tmp_path / target.filename
    if reason := EXCLUDED.get((writer, name)):
        with pytest.raises((TargetError, QuantizationError), match=reason):
            target.write(graph, path)
        assert not list(tmp_path.iterdir())
        return
    target.write(graph, path)
    assert find_difference(graph, target.read(path, graph.timesteps)) == ""
    images = samples_of(graph, frames=None if runs_frames(writer) else False)
    expected = run_reference(graph, images)
    comparison = compare_records(expected, target.execute(path, images, graph.timesteps))
    assert comparison.mismatches == 0, comparison.first
    assert comparison.compared_spikes == SAMPLES * graph.timesteps * sum(p.size for p in graph.populations)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_show_what_they_are_named_for(name):
    """Samples differ, every population that can fire does, and not always: a comparison of silence proves nothing."""
    graph = GRAPHS[name]
    record = run_reference(graph, samples_of(graph))
    rates = {population: spikes.mean() for population, spikes in record.spikes.items()}
    assert all(0.02 < rate < 0.98 for population, rate in rates.items() if graph.population(population).fires), rates
    assert len(np.unique(record.potential, axis=0)) == SAMPLES


def test_exclusions_name_what_exists():
    assert {writer for writer, _ in EXCLUDED} <= set(WRITERS)
    assert {name for _, name in EXCLUDED} <= set(GRAPHS)


#: Lava's reset between samples does not clear the spikes in flight: loops and delays run in its global time.
PIPELINED = ("loop", "synaptic delays")


@pytest.mark.lava
@pytest.mark.slow
def test_lava_runs_what_its_files_carry(tmp_path):
    """All in one worker: Lava itself, every layer of every graph that a NetX file can hold."""
    carried = [name for name in GRAPHS if ("netx", name) not in EXCLUDED]
    runs = []
    for name in carried:
        path, graph = tmp_path / f"{len(runs)}.net", GRAPHS[name]
        WRITERS["netx"].write(graph, path)
        if name in PIPELINED:
            with pytest.raises(TargetError, match="pipelined"):
                LavaTarget().run_of(path, samples_of(graph), graph.timesteps)
        target = LavaTarget(timing="pipelined") if name in PIPELINED else LavaTarget()
        runs.append(target.run_of(path, samples_of(graph), graph.timesteps))
    for name, run, record in zip(carried, runs, execute_runs(runs, 900, "lava"), strict=True):
        comparison = compare_records(run_reference(run.graph, run.images), record)
        assert comparison.mismatches == 0, f"{name}: {comparison.first}"
    assert len(carried) >= 12
