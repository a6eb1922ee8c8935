"""NeuroBench 2.3 itself measures our networks in snnTorch, in an environment of its own: its figures are ours, exactly.

``STARS_WRITE_GOLDEN=1 pytest -m slow tests/test_neurobench.py`` writes ``tests/data/neurobench.json`` anew, which
``tests/test_neurobench_metrics.py`` compares with where NeuroBench is not at hand.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from neurobench_networks import SAMPLES, cases

from stars_deploy.engines import recording_engine
from stars_deploy.neurobench import neurobench_metrics
from stars_deploy.simulate import run_evaluation
from stars_deploy.targets.base import SpikeRecord
from stars_deploy.targets.reference import run_reference

PEER = Path(__file__).parent / "peers" / "run_neurobench.py"
GOLDEN = Path(__file__).parent / "data" / "neurobench.json"
NAMES = {
    "effective_acs": "Effective_ACs",
    "effective_macs": "Effective_MACs",
    "dense": "Dense",
    "activation_sparsity": "ActivationSparsity",
}


@pytest.fixture(scope="module")
def measured(peer_python, tmp_path_factory):
    """For each case what NeuroBench said, and the spikes of each population, (T, B, *shape)."""
    python, folder = peer_python("neurobench"), tmp_path_factory.mktemp("neurobench")
    found = {}
    for number, (name, case) in enumerate(cases().items()):
        network, spikes, metrics = (folder / f"{number}{suffix}" for suffix in (".npz", "_spikes.npz", ".json"))
        np.savez(network, **case.exchange())
        command = [python, PEER, network, spikes, metrics]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=alone)
        assert metrics.exists(), done.stderr[-2000:]
        with np.load(spikes) as file:
            record = {p.name: file[f"spikes:{index}"] for index, p in enumerate(case.graph.populations)}
        found[name] = json.loads(metrics.read_text()), record
    if os.environ.get("STARS_WRITE_GOLDEN"):
        write_golden(found)
    return found


def write_golden(found) -> None:
    """Write what NeuroBench said of the cases that are kept."""
    (versions,) = {json.dumps(said["versions"]) for said, _ in found.values()}
    kept = {name: said["metrics"] for name, (said, _) in found.items() if cases()[name].golden}
    golden = {"command": "STARS_WRITE_GOLDEN=1 pytest -m slow tests/test_neurobench.py"}
    golden |= {"versions": json.loads(versions), "cases": kept}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_neurobench_counts_what_we_count(name, measured):
    case, (said, record) = cases()[name], measured[name]
    potential = np.zeros((SAMPLES, case.graph.output.size), np.int64)
    recorded = recording_engine(lambda graph, images: SpikeRecord(spikes=record, potential=potential))
    evaluation = run_evaluation(case.graph, case.images, engine=recorded, batch_size=SAMPLES)
    metrics = neurobench_metrics(case.graph, evaluation)
    figures = dict(said["metrics"])
    if name == "black and white":  # NeuroBench looks at the values, we at the precision
        assert figures["Effective_MACs"] == 0 < metrics.effective_macs
        figures["Effective_MACs"] = metrics.effective_macs
        figures["Effective_ACs"] -= metrics.effective_macs
    for ours, theirs in NAMES.items():
        assert getattr(metrics, ours) == pytest.approx(figures[theirs], rel=1e-12, abs=0), theirs
    assert (metrics.effective_macs == 0) == (case.graph.input.precision.bits == 1)
    assert 0.25 < figures["ConnectionSparsity"] < 0.45
    for population, spikes in record.items():
        fires = population != "last" or name != "silent readout"
        assert (0.02 < spikes.mean() < 0.6) == fires, f"{population}: {spikes.mean():.3f}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in cases().items() if case.exact])
def test_snntorch_fires_as_the_reference_where_potentials_are_whole(name, measured):
    case, (_, record) = cases()[name], measured[name]
    reference = run_reference(case.graph, case.images.swapaxes(0, 1))
    for population, spikes in reference.spikes.items():
        assert np.array_equal(spikes, record[population]), population


@pytest.mark.slow
def test_golden_figures_are_what_neurobench_says(measured):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["versions"]["neurobench"] == measured["binary"][0]["versions"]["neurobench"] == "2.3.0"
    assert golden["cases"].keys() == {name for name, case in cases().items() if case.golden}
    for name, figures in golden["cases"].items():
        assert figures == pytest.approx(measured[name][0]["metrics"], rel=1e-12), name
