"""Recorded spikes of a mapped network, replayed in SANA-FE: what tests/peers/run_sanafe.py reads, and running it.

SANA-FE is GPL-3. It runs in an environment of its own (:func:`environments.make_peer_environment`), in a process of its
own, and is never imported.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping as Mapped
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from environments import PEERS

from stars_deploy.hardware.mapping import Mapping
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, Projection, QuantizedGraph
from stars_deploy.schedule import find_lags
from stars_deploy.targets.reference import project

Arrays = dict[str, npt.NDArray[Any]]
#: Neurons of a core of SANA-FE's Loihi.
NEURONS_PER_CORE = 1024
#: Longest run [s].
LONGEST = 1800.0


class ReplayError(Exception):
    """A network that SANA-FE cannot hold, or a run that failed; the message says why."""


def places_of(graph: QuantizedGraph, mapping: Mapping, input_cores: int = 4) -> tuple[Arrays, int]:
    """Return where each neuron is, (N, 3) tile x, tile y and core of the tile, and how many cores a tile needs.

    The input enters at the first tile. SANA-FE wants its neurons on cores, and lets these take time for what they send,
    which no core of ours does: they are spread over `input_cores` more, so that others take longer.
    """
    if mapping.chips > 1:
        raise ReplayError(f"{mapping.chips} chips: SANA-FE's Loihi is one")
    per_tile = mapping.profile.mesh.cores_per_tile
    places: Arrays = {population.name: np.zeros((population.size, 3), np.int64) for population in graph.populations}
    for core in mapping.cores:
        population = graph.population(core.layer)
        own = np.zeros(population.shape, np.bool_)
        own[tuple(slice(*span) for span in core.box)] = True
        places[core.layer][own.ravel()] = (core.place.x, core.place.y, core.index % per_tile)
    if graph.input.biases:
        return places, per_tile
    size = math.prod(graph.input.shape)
    count = max(input_cores, math.ceil(size / NEURONS_PER_CORE))
    places[graph.input.name] = np.zeros((size, 3), np.int64)
    places[graph.input.name][:, 2] = per_tile + np.arange(size) * count // size
    return places, per_tile + count


def first_inference(graph: QuantizedGraph, sent: Mapped[str, npt.NDArray[np.bool_]]) -> Arrays:
    """Return the spikes (T, N) of one sample when an idle chip emits them, (T + depth, N).

    Every layer lags behind those before it: see :mod:`stars_deploy.schedule`.
    """
    lags = find_lags(graph)
    longest = max(lags.values())
    return {name: np.pad(spikes, ((lags[name], longest - lags[name]), (0, 0))) for name, spikes in sent.items()}


def steady(graph: QuantizedGraph, sent: Mapped[str, npt.NDArray[np.bool_]], times: int = 2) -> Arrays:
    """Return the spikes (T, N) of one sample when a chip emits them that gets it again and again, (times x T, N)."""
    lags = find_lags(graph)
    return {name: np.tile(np.roll(spikes, lags[name], axis=0), (times, 1)) for name, spikes in sent.items()}


def exchange(
    graph: QuantizedGraph, spikes: Arrays, places: Arrays, *, convolution: str = "conv", cores_per_tile: int = 4
) -> tuple[dict[str, Any], Arrays]:
    """Return the layout and the arrays that tests/peers/run_sanafe.py reads; it explains them.

    Only non-zero weights become synapses; `convolution` names the unit that holds those of kernels.
    """
    lags = find_lags(graph)
    units, projections, arrays = {}, [], {}
    for index, one in enumerate(graph.projections):
        late = {lags[one.target] - lags[one.source] + delay for delay, _ in one.by_delay()}
        if late != {1}:
            raise ReplayError(f"{one.name}: a spike takes {sorted(late)} timesteps, and 1 in SANA-FE")
        unit = convolution if isinstance(one, ConvProjection) else "dense"
        if units.setdefault(one.target, unit) != unit:
            raise ReplayError(f"{one.target}: kernels and single synapses enter it")
        arrays[f"synapses:{index}"] = find_synapses(one, graph.shape_of(one.source))
        projections.append({"source": one.source, "target": one.target})
    populations = []
    for name in places:
        populations.append({"name": name, "input": name == graph.input.name, "synapse": units.get(name, "dense")})
        arrays[f"spikes:{name}"], arrays[f"place:{name}"] = spikes[name], places[name]
    return {"populations": populations, "projections": projections, "cores_per_tile": cores_per_tile}, arrays


def find_synapses(projection: Projection, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return source and target neuron of every synapse with a non-zero weight, (E, 2), by one spike of each source."""
    weight = (projection.weight != 0).astype(np.int64)
    ones = replace(projection, weight=weight, precision=Precision(bits=1, signed=False))
    size, found = math.prod(shape), []
    for first in range(0, size, 256):
        spikes = np.eye(size, dtype=np.int64)[first : first + 256].reshape(-1, *shape)
        pairs = np.argwhere(project(ones, spikes).reshape(len(spikes), -1))
        found.append(pairs + np.array([first, 0]))
    return np.concatenate(found)


def run_sanafe(python: Path, layout: Mapped[str, Any], arrays: Mapped[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Return what SANA-FE counts and charges, as tests/peers/run_sanafe.py writes it."""
    with tempfile.TemporaryDirectory() as folder:
        network, out = Path(folder) / "network.npz", Path(folder) / "out.json"
        np.savez(network, layout=np.array(json.dumps(layout)), **arrays)
        command = [str(python), str(PEERS / "run_sanafe.py"), str(network), str(out)]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, env=alone, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ReplayError(f"SANA-FE did not run ({error})") from error
        if done.returncode or not out.exists():
            raise ReplayError(f"SANA-FE failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found
