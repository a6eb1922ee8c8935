"""NeuroBench's metrics without NeuroBench: against plain loops, and against the figures that it printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from neurobench_networks import cases
from synapses import synapses_of

from stars_deploy.errors import ConfigError
from stars_deploy.neurobench import neurobench_metrics
from stars_deploy.simulate import run_evaluation
from stars_deploy.targets.reference import run_reference

GOLDEN = Path(__file__).parent / "data" / "neurobench.json"
EXACT = {name: case for name, case in cases().items() if case.exact}
KEPT = {name: case for name, case in cases().items() if case.golden}


def by_loops(case):
    """NeuroBench's four figures, one synapse, timestep and sample at a time."""
    graph = case.graph
    record = run_reference(graph, case.images.swapaxes(0, 1)).spikes
    shown = {"image": case.images.swapaxes(0, 1), **record}
    operations = {"ACs": 0, "MACs": 0}
    dense = 0
    for projection in graph.projections:
        synapses = synapses_of(projection, graph.shape_of(projection.source))
        dense += graph.timesteps * len(synapses)
        kind = "MACs" if projection.source == "image" and graph.input.precision.bits > 1 else "ACs"
        fans = {}
        for source, _, weight in synapses:
            fans[source] = fans.get(source, 0) + int(weight != 0)
        for frame in shown[projection.source].reshape(-1, *graph.shape_of(projection.source)):
            operations[kind] += sum(fans.get(tuple(place), 0) for place in np.argwhere(frame))
    silent = total = 0
    for spikes in record.values():
        silent += int((spikes == 0).sum())
        total += spikes.size
    samples = len(case.images)
    return operations["ACs"] / samples, operations["MACs"] / samples, dense, silent / total


@pytest.mark.parametrize("name", EXACT)
def test_metrics_are_those_of_plain_loops(name):
    case = EXACT[name]
    metrics = neurobench_metrics(case.graph, run_evaluation(case.graph, case.images))
    acs, macs, dense, sparsity = by_loops(case)
    assert acs > 0 and (macs > 0) == (name != "binary")
    assert metrics.effective_acs == pytest.approx(acs, rel=1e-12)
    assert metrics.effective_macs == pytest.approx(macs, rel=1e-12)
    assert metrics.dense == dense
    assert metrics.activation_sparsity == pytest.approx(sparsity, rel=1e-12)


@pytest.mark.parametrize("name", KEPT)
def test_metrics_are_what_neurobench_printed(name):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["versions"]["neurobench"] == "2.3.0"
    figures, case = golden["cases"][name], KEPT[name]
    metrics = neurobench_metrics(case.graph, run_evaluation(case.graph, case.images, batch_size=2))
    assert metrics.effective_acs == pytest.approx(figures["Effective_ACs"], rel=1e-12)
    assert metrics.effective_macs == pytest.approx(figures["Effective_MACs"], rel=1e-12)
    assert metrics.dense == figures["Dense"]
    assert metrics.activation_sparsity == pytest.approx(figures["ActivationSparsity"], rel=1e-12)


def test_dense_counts_the_timesteps_that_were_run():
    case = EXACT["graded"]
    once, twice = (
        neurobench_metrics(case.graph, run_evaluation(case.graph, case.images[:, 0], timesteps=steps))
        for steps in (1, 2)
    )
    assert twice.dense == 2 * once.dense and twice.effective_macs == pytest.approx(2 * once.effective_macs)


def test_an_evaluation_of_another_network_is_refused(make_chain):
    case = EXACT["graded"]
    evaluation = run_evaluation(case.graph, case.images)
    with pytest.raises(ConfigError, match=r"(?s)evaluation.*'first'.*evaluate this graph"):
        neurobench_metrics(make_chain(1, [{"channels": 2}]), evaluation)
