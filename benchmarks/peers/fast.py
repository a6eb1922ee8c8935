"""The project's fast engine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numba
import numpy as np
from digests import digest_record, firing_rates
from timing import measure_runs

from peers.integer_network import count_macs, open_network
from stars_deploy.engine import FastEngine
from stars_deploy.quantized import QuantizedGraph

#: Runs of each part of a network for the profile.
PROFILE_RUNS = 9


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time the engine with counts and potentials; compiling is in the warm-up. Then digest a run that keeps spikes."""
    graph, images = open_network(request)
    engine = FastEngine(graph, threads=request["threads"], memory=request["memory"])
    figures = measure_runs(lambda: engine.run(images), len(images), request["seconds"], warm_up=2)
    answer: dict[str, Any] = {**figures, "version": f"numba {numba.__version__}"}
    answer["macs_first"], answer["macs_rest"] = count_macs(graph)
    if request["digest"]:
        run = engine.run(images, record=[population.name for population in graph.populations])
        answer["digests"] = digest_record(run.spikes, run.potential)
        answer["rates"] = firing_rates(run.spikes)
    if request["profile"]:
        answer["layers"] = profile_layers(graph, images, request["threads"])
    return answer


def profile_layers(graph: QuantizedGraph, images: np.ndarray[Any, Any], threads: int) -> list[dict[str, Any]]:
    """Return what each layer adds to the CPU time of a sample [s] when the network is cut off after it.

    Differences of the least of some runs, so that small layers may come out at or below 0. With the
    multiply-accumulates of one sample over all timesteps, dense equivalents. Empty for a network with loops, which
    cannot be cut.
    """
    layers: list[dict[str, Any]] = []
    spent, macs = 0.0, 0
    for count in range(1, len(graph.populations) + 1):
        names = {population.name for population in graph.populations[:count]}
        entering = tuple(projection for projection in graph.projections if projection.target in names)
        if any(projection.source not in names | {graph.input.name} for projection in entering):
            return []
        part = replace(graph, populations=graph.populations[:count], projections=entering, labels=())
        engine = FastEngine(part, threads=threads)
        engine.run(images)
        seconds = min(_cpu_seconds(engine, images) for _ in range(PROFILE_RUNS)) / len(images)
        first, rest = count_macs(part)
        total = first + rest * graph.timesteps
        layers.append({"layer": part.output.name, "cpu_seconds_per_sample": seconds - spent, "macs": total - macs})
        spent, macs = seconds, total
    return layers


def _cpu_seconds(engine: FastEngine, images: np.ndarray[Any, Any]) -> float:
    before = time.process_time()
    engine.run(images)
    return time.process_time() - before
