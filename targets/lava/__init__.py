"""``lava``: the NetX file executed by Lava itself, bit-accurate on the CPU, in a process group of its own.

This folder is the only one that imports lava, and only in the worker process (:mod:`stars_deploy.targets.lava.worker`).
Lava executes every ``.py`` file beside a custom Process when it compiles: nothing here has side effects on import.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stars_deploy.errors import TargetError
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.targets.base import Availability, SpikeArray, SpikeRecord
from stars_deploy.targets.lava.isolation import run_isolated
from stars_deploy.targets.netx_reader import read_netx
from stars_deploy.targets.netx_writer import write_netx
from stars_deploy.targets.reference import check_images

__all__ = ["TARGET", "LavaTarget"]

_REMEDY = 'make an environment with Python 3.10 and run pip install "stars-deploy[lava]" in it'


@dataclass(frozen=True)
class LavaTarget:
    """Lava's own run of the file, compared spike for spike with the reference.

    Parameters
    ----------
    timeout : float
        Longest run [s], start-up of Lava included; then it is stopped.
    """

    timeout: float = 3600.0
    name: str = "lava"
    filename: str = "model.net"
    summary: str = "Lava process graph from the NetX file, run by Lava itself (Python 3.10)"

    def availability(self) -> Availability:
        """Say whether Lava can run here, without importing it."""
        version = ".".join(str(part) for part in sys.version_info[:2])
        if sys.version_info >= (3, 11):
            reason = f"this is Python {version}, and Lava needs Python 3.10; {_REMEDY}"
        elif not hasattr(os, "killpg"):
            reason = f"{sys.platform} has no process groups, without which Lava cannot be stopped; use Linux or macOS"
        elif not _installed():
            reason = f"lava-dl is not installed in this Python {version} environment; {_REMEDY}"
        else:
            return Availability(ok=True)
        return Availability(ok=False, reason=reason)

    def write(self, graph: QuantizedGraph, path: Path) -> None:
        """Write the file that ``lava.lib.dl.netx.hdf5.Network`` loads; see the ``netx`` target."""
        write_netx(graph, path)

    def read(self, path: Path, timesteps: int) -> QuantizedGraph:
        """Read `path` back as a graph, without Lava; see the ``netx`` target."""
        return read_netx(path, timesteps=timesteps)

    def execute(self, path: Path, images: IntArray, timesteps: int) -> SpikeRecord:
        """Run `path` in Lava on `images`, (B, C, H, W) [LSB].

        Each image is held for `timesteps`; Lava resets each layer as the next image reaches it. Layer i answers i + 1
        steps late, which is shifted back here.

        Raises
        ------
        TargetError
            If Lava is not available here, failed, or took longer than ``timeout``. Its processes are stopped.
        FormatError
            If the file is damaged or holds what Lava would not execute exactly.
        QuantizationError
            If the images do not fit the file's input.
        """
        available = self.availability()
        if not available.ok:
            raise TargetError(self.name, "cannot run here", remedy=available.reason)
        graph = self.read(path, timesteps)
        check_images(graph, images)
        with tempfile.TemporaryDirectory(prefix="stars-deploy-lava-") as name:
            folder = Path(name)
            np.save(folder / "images.npy", images.astype(np.int32))
            request = {
                "net": str(Path(path).resolve()),
                "timesteps": timesteps,
                "message_bits": graph.input.precision.bits,
                "flat": len(graph.input.shape) == 1 or len(graph.populations[0].shape) == 1,
            }
            (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
            command = [sys.executable, "-m", "stars_deploy.targets.lava.worker", "."]
            run_isolated(command, folder, self.timeout, self.name)
            return _collect(graph, folder, len(images))


def _installed() -> bool:
    spec = importlib.util.find_spec("lava")  # only the top: looking further down would import it
    places = spec.submodule_search_locations if spec else None
    return any(Path(place, "lib", "dl", "netx").is_dir() for place in places or ())


def _collect(graph: QuantizedGraph, folder: Path, samples: int) -> SpikeRecord:
    spikes = {
        population.name: _read_spikes(folder / f"layer{index}.bits", index, population.shape, samples, graph.timesteps)
        for index, population in enumerate(graph.populations)
    }
    depth, output = len(graph.populations), graph.output
    steps = samples * graph.timesteps + depth
    potential = np.fromfile(folder / "potential.i32", dtype=np.int32).reshape(steps, *output.shape[::-1])
    last = np.arange(1, samples + 1) * graph.timesteps + depth - 1  # the output answers `depth` steps late
    order = (0, *range(len(output.shape), 0, -1))  # Lava's arrays are (W, H, C)
    return SpikeRecord(spikes=spikes, potential=potential[last].transpose(order).reshape(samples, -1).astype(np.int64))


def _read_spikes(path: Path, index: int, shape: tuple[int, ...], samples: int, timesteps: int) -> SpikeArray:
    """Return the spikes of layer `index` as (T, B, *shape), from the bits that its sink wrote for each step."""
    size = math.prod(shape)
    bits = np.fromfile(path, dtype=np.uint8).reshape(-1, (size + 7) // 8)
    ours = bits[index + 1 : index + 1 + samples * timesteps]
    flat = np.unpackbits(ours, axis=1, count=size).astype(bool)
    order = (1, 0, *range(len(shape) + 1, 1, -1))
    spikes: SpikeArray = flat.reshape(samples, timesteps, *shape[::-1]).transpose(order)
    return spikes


TARGET = LavaTarget()
