"""``lava``: the NetX file executed by Lava itself, bit-accurate on the CPU, in a process group of its own.

This folder is the only one that imports lava, and only in the worker process (:mod:`stars_deploy.targets.lava.worker`).
Lava executes every ``.py`` file beside a custom Process when it compiles: nothing here has side effects on import.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stars_deploy.errors import TargetError
from stars_deploy.graph import SpikingGraph
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.targets.base import Availability, SpikeRecord
from stars_deploy.targets.lava.runs import LavaRun, execute_runs
from stars_deploy.targets.netx_reader import read_netx
from stars_deploy.targets.netx_writer import write_netx

__all__ = ["TARGET", "LavaTarget"]

_REMEDY = 'make an environment with Python 3.10 and run pip install "stars-deploy[lava]" in it'


@dataclass(frozen=True)
class LavaTarget:
    """Lava's own run of the file, compared spike for spike with the reference.

    Parameters
    ----------
    timeout : float
        Longest run [s], start-up of Lava included; then it is stopped.
    timing : str, optional
        ``synchronous`` (every layer answers in the timestep of its input, every sample starts anew) or ``pipelined``
        (Lava's global time from a fresh start); by default what the file allows, see
        :func:`~stars_deploy.targets.netx_reader.read_netx`.
    reset_interval, reset_offset : int
        Resets within a sample in pipelined timing, as ``hdf5.Network`` has them; 0 for none.
    """

    timeout: float = 3600.0
    name: str = "lava"
    filename: str = "model.net"
    summary: str = "Lava process graph from the NetX file, run by Lava itself (Python 3.10)"
    timing: str | None = None
    reset_interval: int = 0
    reset_offset: int = 0

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

    def write(self, graph: QuantizedGraph, path: Path, origin: SpikingGraph | None = None) -> None:
        """Write the file that ``lava.lib.dl.netx.hdf5.Network`` loads; see the ``netx`` target."""
        write_netx(graph, path)

    def read(self, path: Path, timesteps: int) -> QuantizedGraph:
        """Read `path` back as a graph, without Lava; see the ``netx`` target."""
        return read_netx(
            path,
            timesteps=timesteps,
            timing=self.timing,
            reset_interval=self.reset_interval,
            reset_offset=self.reset_offset,
        )

    def execute(self, path: Path, images: IntArray, timesteps: int) -> SpikeRecord:
        """Run `path` in Lava on `images`, (B, *shape) or one frame for each timestep, (T, B, *shape) [LSB].

        Where the file allows it, all samples share one run: each is held for `timesteps`, Lava resets each layer as the
        next image reaches it, and how late a layer answers is shifted back here. Otherwise (pipelined timing) every
        sample gets a network of its own.

        Raises
        ------
        TargetError
            If Lava is not available here, failed, or took longer than ``timeout`` (its processes are stopped); or if
            a network with loops or delays is to run in synchronous timing.
        FormatError
            If the file is damaged or holds what Lava would not execute exactly.
        QuantizationError
            If the images do not fit the file's input.
        """
        available = self.availability()
        if not available.ok:
            raise TargetError(self.name, "cannot run here", remedy=available.reason)
        return execute_runs([self.run_of(path, images, timesteps)], self.timeout, self.name)[0]

    def run_of(self, path: Path, images: IntArray, timesteps: int) -> LavaRun:
        """Return what :meth:`execute` gives to Lava, without running it; raises what it would raise."""
        graph = self.read(path, timesteps)
        # By default the reader chose: in pipelined time every synapse between two layers has a delay.
        delays = [
            int(np.min(projection.delay)) for projection in graph.projections if projection.source != projection.target
        ]
        delayed = bool(delays and min(delays) > 0)
        return LavaRun(
            path=path,
            graph=graph,
            images=images,
            pipelined=self.timing == "pipelined" or (self.timing is None and delayed),
            reset_interval=self.reset_interval,
            reset_offset=self.reset_offset,
        )


def _installed() -> bool:
    spec = importlib.util.find_spec("lava")  # only the top: looking further down would import it
    places = spec.submodule_search_locations if spec else None
    return any(Path(place, "lib", "dl", "netx").is_dir() for place in places or ())


TARGET = LavaTarget()
