"""Lava as the oracle: random networks of everything that a NetX file holds, in Lava, the reference and the engine."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from graph_features import observed_run
from netx_networks import random_case

from stars_deploy.engine import run_fast
from stars_deploy.quantized import find_difference
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.lava import LavaTarget
from stars_deploy.targets.lava.runs import execute_runs
from stars_deploy.targets.netx_writer import write_netx
from stars_deploy.targets.reference import run_reference

#: Networks of the ordinary run, and those of the longer checks in groups.
SEEDS = range(352, 416)
MORE_SEEDS = [range(first, first + 50) for first in range(1000, 1250, 50)]
#: Features and events that at least so many of the networks of `SEEDS` must show.
NOT_TAME = {
    "conv and dense": 5,
    "stride": 12,
    "padding": 20,
    "dilation that matters": 15,
    "groups": 5,
    "depthwise": 10,
    "rectangular kernel": 15,
    "flatten": 20,
    "self loop": 10,
    "loop with a synaptic delay": 5,
    "synaptic delay": 8,
    "delay past the end": 6,
    "current leaks": 35,
    "current never leaks": 10,
    "decay for each neuron": 14,
    "decay truncates a negative membrane": 30,
    "decay truncates a negative current": 15,
    "bias at its limit": 14,
    "no bias": 20,
    "threshold 0": 10,
    "threshold maximal": 6,
    "threshold never": 6,
    "at the threshold": 12,
    "membrane clips below": 6,
    "membrane clips above": 2,
    "current wraps up": 2,
    "current wraps down": 3,
    "image as bias": 15,
    "frames over time": 16,
    "binary payload": 7,
    "signed payload": 5,
    "a silent sample": 5,
    "a saturated sample": 5,
    "flat input": 8,
    "one neuron": 8,
    "one timestep": 6,
    "40 timesteps": 1,
    "pipelined": 20,
    "synchronous": 25,
    "resets in pipelined time": 6,
    "distinct samples": 64,
    "a population between 5 % and 95 %": 35,
    "a silent population": 20,
}


def execute(cases, folder):
    """Write each case, read it back and run it in Lava; return {seed: (graph as read, record)}."""
    runs = []
    for case in cases:
        path = folder / f"{case.seed}.net"
        write_netx(case.graph, path)
        target = LavaTarget(
            timing="pipelined" if case.pipelined else "synchronous",
            reset_interval=case.reset_interval,
            reset_offset=case.reset_offset,
        )
        runs.append(target.run_of(path, case.images, case.graph.timesteps))
    with ThreadPoolExecutor(2) as pool:  # two workers: Lava spends half of its time starting processes
        halves = list(pool.map(lambda half: execute_runs(half, 900, "lava"), [runs[::2], runs[1::2]]))
    records = {}
    for half, done in zip([cases[::2], cases[1::2]], halves, strict=True):
        records.update({case.seed: record for case, record in zip(half, done, strict=True)})
    return {case.seed: (run.graph, records[case.seed]) for case, run in zip(cases, runs, strict=True)}


def check_agreement(case, graph, lava):
    assert find_difference(case.timed, graph) == ""
    for name, run in (("reference", run_reference), ("engine", run_fast)):
        ours = run(graph, case.images)
        assert list(ours.spikes) == list(lava.spikes)
        comparison = compare_records(lava, ours)
        assert comparison.mismatches == 0, f"seed {case.seed}: {name} differs from Lava: {comparison.first}"
        assert comparison.compared_spikes == sum(spikes.size for spikes in lava.spikes.values()) > 0


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return execute([random_case(seed) for seed in SEEDS], tmp_path_factory.mktemp("oracle"))


@pytest.mark.lava
@pytest.mark.parametrize("seed", SEEDS)
def test_lava_equals_reference_and_engine(seed, answers):
    check_agreement(random_case(seed), *answers[seed])


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize("seeds", MORE_SEEDS, ids=str)
def test_lava_equals_reference_and_engine_on_more(seeds, tmp_path):
    cases = [random_case(seed) for seed in seeds]
    answers = execute(cases, tmp_path)
    for case in cases:
        check_agreement(case, *answers[case.seed])


def test_networks_are_not_tame():
    found = Counter()
    for case in map(random_case, SEEDS):
        _, seen = observed_run(case.timed, case.images)
        found.update(seen.keys())
        shapes = [case.graph.shape_of(item.source) for item in case.graph.projections if item.weight.ndim == 2]
        found["flatten"] += any(len(shape) == 3 for shape in shapes)
        found["pipelined" if case.pipelined else "synchronous"] += 1
        samples = np.moveaxis(case.images, int(case.graph.input.over_time(case.images)), 0)
        precision = case.graph.input.precision
        found["a silent sample"] += any(not sample.any() for sample in samples)
        found["a saturated sample"] += any(
            bool(np.isin(sample, (precision.low, precision.high)).all() and sample.any()) for sample in samples
        )
        found["resets in pipelined time"] += case.reset_interval > 0
        found["40 timesteps"] += case.graph.timesteps == 40
    lacking = {name: found[name] for name, least in NOT_TAME.items() if found[name] < least}
    assert not lacking, lacking


def test_cases_are_the_same_each_time():
    one, other = random_case(5), random_case(5)
    assert find_difference(one.timed, other.timed) == ""
    assert np.array_equal(one.images, other.images)
