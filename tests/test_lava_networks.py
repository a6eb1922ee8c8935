"""Trained networks of others, in Lava, the reference and the engine: every layer, spike for spike."""

from __future__ import annotations

import numpy as np
import pytest

from stars_deploy.engine import run_fast
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.lava import LavaTarget
from stars_deploy.targets.lava.runs import execute_runs
from stars_deploy.targets.reference import run_reference


def shown(graph, samples, seed, frames=None):
    """Return images between the ends of what the networks were trained on, [-0.9, 0.75]; the last is silent."""
    shape = (samples, *graph.input.shape) if frames is None else (frames, samples, *graph.input.shape)
    images = graph.input.quantize(np.random.default_rng(seed).uniform(-0.9, 0.75, shape))
    if samples > 1:
        np.moveaxis(images, 0 if frames is None else 1, 0)[-1] = 0
    return images


def run_in_lava(path, asked, timeout):
    """Run (target, images, timesteps) of `asked` in one worker; return the graph, images and record of each."""
    runs = []
    for target, make_images, timesteps in asked:
        graph = target.read(path, timesteps)
        runs.append(target.run_of(path, make_images(graph), timesteps))
    records = execute_runs(runs, timeout, "lava")
    return [(run.graph, run.images, record) for run, record in zip(runs, records, strict=True)]


def check(graph, images, lava):
    for run in (run_reference, run_fast):
        comparison = compare_records(lava, run(graph, images))
        assert comparison.mismatches == 0, f"{run.__name__}: {comparison.first}"
    assert list(lava.spikes) == [population.name for population in graph.populations]
    return {name: float(spikes.mean()) for name, spikes in lava.spikes.items()}


@pytest.mark.lava
@pytest.mark.shared
def test_tiny(shared):
    """Its own image, a random and a silent one, at once; and frames over time, with resets, in Lava's global time."""
    folder = shared / "networks"
    own = np.load(folder / "tiny" / "input_bias.npy").transpose(2, 1, 0).astype(np.int64)  # (W, H, C)
    late = LavaTarget(timing="pipelined", reset_interval=7, reset_offset=2)
    answers = run_in_lava(
        folder / "tiny.net",
        [
            (LavaTarget(), lambda graph: np.concatenate([own[np.newaxis], shown(graph, 2, seed=0)]), 16),
            (late, lambda graph: shown(graph, 2, seed=1, frames=18), 18),
        ],
        300,
    )
    rates = [check(*answer) for answer in answers]
    assert all(0.02 < rate < 0.9 for found in rates for rate in found.values()), rates
    # The ground truth in lava-dl's repository.
    truth = np.load(folder / "tiny" / "output.npy")  # (1, C, H, W, T)
    got = answers[0][2].spikes[answers[0][0].output.name][:, :1]
    assert (got[:-1] == np.moveaxis(truth, -1, 0)[1:]).all() and not truth[..., 0].any()  # its time begins at 0


@pytest.mark.lava
@pytest.mark.shared
@pytest.mark.slow
def test_pilotnet(shared):
    """158,509 neurons in ten layers: a random and a silent image at once, and frames in Lava's global time."""
    answers = run_in_lava(
        shared / "networks" / "pilotnet_lif.net",
        [
            (LavaTarget(), lambda graph: shown(graph, 2, seed=0), 6),
            (LavaTarget(timing="pipelined"), lambda graph: shown(graph, 1, seed=1, frames=14), 14),
        ],
        900,
    )
    rates = [check(*answer) for answer in answers]
    for (graph, _, lava), found in zip(answers, rates, strict=True):
        assert len(graph.populations) == 10 and sum(population.size for population in graph.populations) == 158509
        # The readout's threshold is one that it never reaches; what it sums up is compared.
        assert all(rate > 0.001 for name, rate in found.items() if name != graph.output.name), found
        assert lava.potential.any()
