"""Networks run by Lava, many in one worker process: importing Lava takes longer than running a small network.

Where samples can share one run of the network they follow one another in it, and Lava resets each layer as the next
image reaches it. In global time, and where spikes are in flight between layers that no reset clears (recurrence,
delays), every sample gets a network of its own.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stars_deploy.errors import TargetError
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.targets.base import SpikeArray, SpikeRecord
from stars_deploy.targets.lava.isolation import run_isolated
from stars_deploy.targets.reference import check_images

WORKER = "stars_deploy.targets.lava.worker"


@dataclass(frozen=True, kw_only=True)
class LavaRun:
    """One NetX file and what it is shown.

    Parameters
    ----------
    path : path
        The file that Lava loads.
    graph : QuantizedGraph
        What it holds, for the names and shapes of the answer.
    images : array of int, (B, *shape) or (T, B, *shape) [LSB]
    pipelined : bool
        Lava's global time, from a fresh start for each sample, in place of layer-synchronous time.
    reset_interval, reset_offset : int
        As given to ``hdf5.Network``; only in global time, 0 for no reset.

    Raises
    ------
    QuantizationError
        If the images do not fit the graph's input.
    TargetError
        If the graph has delays or loops and is to run in synchronous time, or resets there.
    """

    path: Path
    graph: QuantizedGraph
    images: IntArray
    pipelined: bool = False
    reset_interval: int = 0
    reset_offset: int = 0

    def __post_init__(self) -> None:
        check_images(self.graph, self.images)
        if self.pipelined:
            return
        for projection in self.graph.projections:
            if np.max(projection.delay):
                raise TargetError(
                    projection.name,
                    "a loop or delay, and Lava's reset between samples does not clear the spikes in flight",
                    'synchronous time for networks without them, timing="pipelined" for all',
                    'choose timing="pipelined"',
                )
        if self.reset_interval:
            raise TargetError(
                "reset_interval", self.reset_interval, "0 in synchronous time, where every sample starts anew",
                'choose timing="pipelined"',
            )  # fmt: skip

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.images.shape[1 if self.graph.input.over_time(self.images) else 0])

    def lag(self, index: int) -> int:
        """Return how many steps later than the images layer `index` answers.

        Each synapse sends what it summed in the previous step; pixels that are biases need none. Global time counts
        these steps as the network's own.
        """
        return 0 if self.pipelined else index + (not self.graph.input.biases)

    def request(self, folder: str) -> dict[str, object]:
        """Return what the worker needs to know."""
        graph, spikes = self.graph, not self.graph.input.biases
        payload = graph.input.precision
        timesteps = graph.timesteps
        return {
            "folder": folder,
            "net": str(Path(self.path).resolve()),
            "timesteps": timesteps,
            "message_bits": payload.bits if payload.bits > 1 or payload.signed else 0,  # 0: spikes are there or not
            "biased": bool(graph.input.biases),
            "flat": len(graph.input.shape) == 1 or (spikes and len(graph.populations[0].shape) == 1),
            "over_time": graph.input.over_time(self.images),
            "fresh": self.pipelined,
            "lag": self.lag(len(graph.populations) - 1),
            "reset_interval": self.reset_interval if self.pipelined else timesteps,
            # Spikes arrive one step after the image is shown; NetX adds one for each layer.
            "reset_offset": self.reset_offset if self.pipelined else self.lag(0),
        }


def execute_runs(runs: Sequence[LavaRun], timeout: float, where: str) -> list[SpikeRecord]:
    """Run all of `runs` in one worker process, and return a record for each.

    Raises
    ------
    TargetError
        Named `where`, if Lava failed or took longer than `timeout` [s] in all. Its processes are stopped.
    """
    with tempfile.TemporaryDirectory(prefix="stars-deploy-lava-") as name:
        folder = Path(name)
        for number, run in enumerate(runs):
            (folder / str(number)).mkdir()
            np.save(folder / str(number) / "images.npy", run.images.astype(np.int32))
        requests = [run.request(str(number)) for number, run in enumerate(runs)]
        (folder / "request.json").write_text(json.dumps(requests), encoding="utf-8")
        run_isolated([sys.executable, "-m", WORKER, "."], folder, timeout, where)
        return [_collect(run, folder / str(number)) for number, run in enumerate(runs)]


def _collect(run: LavaRun, folder: Path) -> SpikeRecord:
    starts = [folder / str(number) for number in range(run.samples if run.pipelined else 1)]
    spikes = {
        population.name: np.concatenate(
            [_read_spikes(start / f"layer{index}.bits", run, index, population.shape) for start in starts], axis=1
        )
        for index, population in enumerate(run.graph.populations)
    }
    potential = np.concatenate([_read_potential(start / "potential.i32", run) for start in starts])
    return SpikeRecord(spikes=spikes, potential=potential)


def _read_spikes(path: Path, run: LavaRun, index: int, shape: tuple[int, ...]) -> SpikeArray:
    """Return the spikes of layer `index` as (T, B, *shape), from the bits that its sink wrote for each step."""
    size, timesteps, lag = math.prod(shape), run.graph.timesteps, run.lag(index)
    steps = timesteps * (1 if run.pipelined else run.samples)
    bits = np.fromfile(path, dtype=np.uint8).reshape(-1, (size + 7) // 8)
    flat = np.unpackbits(bits[lag : lag + steps], axis=1, count=size).astype(bool)
    order = (1, 0, *range(len(shape) + 1, 1, -1))  # Lava's arrays are (W, H, C)
    spikes: SpikeArray = flat.reshape(-1, timesteps, *shape[::-1]).transpose(order)
    return spikes


def _read_potential(path: Path, run: LavaRun) -> IntArray:
    """Return the potentials of the output after the last timestep of each sample, (B, N)."""
    shape = run.graph.output.shape
    lag = run.lag(len(run.graph.populations) - 1)
    states = np.fromfile(path, dtype=np.int32).reshape(-1, *shape[::-1])
    last = states[lag + run.graph.timesteps - 1 :: run.graph.timesteps]
    ours: IntArray = last.transpose(0, *range(len(shape), 0, -1)).reshape(len(last), -1).astype(np.int64)
    return ours
