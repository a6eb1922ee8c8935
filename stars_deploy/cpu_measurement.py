"""What one inference takes on this machine's processor: seconds by the clock, and joules where the machine counts them.

The only figures beside the chip's that are measured and not estimated. They belong to a whole processor with the
software that runs it: for a small network and one image, calling the runtime costs more than the arithmetic.
"""

from __future__ import annotations

import datetime
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from stars_deploy.energy_counters import EnergyCounter, find_energy_counter
from stars_deploy.errors import ConfigError, FormatError

#: Runs of a batch that are timed at least, so that there is a spread to show.
FEWEST_RUNS = 3
#: Share of the time that idle power is measured for, where there is a counter.
_IDLE_SHARE = 0.1
#: A batch of one may take so many times what all batches are given together; larger batches must fit.
_PATIENCE = 4.0

Batch = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The least, the median and the most of several runs."""

    least: float
    median: float
    most: float


@dataclass(frozen=True, kw_only=True)
class InferenceEnergy:
    """Energy of one inference [J]: all that the machine counted, and what is left without its idle power."""

    total: float
    idle_subtracted: float


@dataclass(frozen=True, kw_only=True)
class BatchMeasurement:
    """What was measured at one batch size.

    Parameters
    ----------
    batch : int
        Images in one call.
    runs : int
        Calls that were timed, after one that was not.
    seconds_per_inference : Spread
        Time of a call over its images [s].
    joules_per_inference : InferenceEnergy or None
        Mean over all calls [J]; None where the machine counts no energy.
    """

    batch: int
    runs: int
    seconds_per_inference: Spread
    joules_per_inference: InferenceEnergy | None = None


@dataclass(frozen=True, kw_only=True)
class CpuMeasurement:
    """What one inference takes on a processor.

    Parameters
    ----------
    cpu : str
        Model name of the processor.
    runtime : str
        What ran the network, with its version.
    threads : int
        That it was allowed to use.
    date : str
        When, UTC.
    batches : tuple of int
        The sizes that were measured; larger ones that did not fit into the time are left out.
    batch1 : BatchMeasurement or None
        One image a call: its time is a latency. None where nothing was measured.
    best : BatchMeasurement or None
        The batch of the least median time for one inference.
    energy_zones : tuple of str
        What of the machine is in the joules, whole: everything that ran on it at the time.
    idle_watts : float or None
        Power before the measurement [W], while this process slept.
    energy_reason : str or None
        Why there are no joules.
    reason : str or None
        Why nothing was measured.
    """

    cpu: str
    runtime: str
    threads: int
    date: str
    batches: tuple[int, ...] = ()
    batch1: BatchMeasurement | None = None
    best: BatchMeasurement | None = None
    energy_zones: tuple[str, ...] = ()
    idle_watts: float | None = None
    energy_reason: str | None = None
    reason: str | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = "report.json") -> CpuMeasurement:
        """Return the measurement that :func:`dataclasses.asdict` made `content` of.

        Raises
        ------
        FormatError
            If something is missing or of another type, naming it.
        """
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise FormatError(
                where, f"a CPU measurement that cannot be read ({problems})", remedy="build again"
            ) from error


def not_measured(reason: str, runtime: str = "", threads: int = 1) -> CpuMeasurement:
    """Return what stands for a measurement that could not be made, with the `reason`."""
    return CpuMeasurement(
        cpu=processor_name(), runtime=runtime, threads=threads, date=_now(), energy_reason=reason, reason=reason
    )


def measure_cpu(
    run: Callable[[Batch], object],
    shape: Sequence[int],
    *,
    runtime: str,
    threads: int = 1,
    batches: Sequence[int] = (1, 8, 32, 128),
    seconds: float = 2.5,
    counter: EnergyCounter | None = None,
) -> CpuMeasurement:
    """Time `run` on batches of random images, and count its energy where the machine can.

    Each batch has an equal share of `seconds`: one call to warm up, then calls until the share is used, three at least.
    A batch that would not fit into its share, judged by the ones before, is left out; a batch of one is measured
    whatever it takes, with fewer calls where they would take more than four times `seconds`.

    Parameters
    ----------
    run : callable
        Takes images (B, *shape), float32 in [0, 1); answers when it is done.
    shape : sequence of int
        Of one image.
    runtime : str
        Name and version of what runs, for the record.
    threads : int
        That `run` uses; for the record.
    batches : sequence of int
        Ascending, the first is 1.
    seconds : float
        In all [s].
    counter : EnergyCounter, optional
        By default that of this machine.

    Raises
    ------
    ConfigError
        If the batches do not ascend from 1, or there is no time.
    """
    if list(batches[:1]) != [1] or list(batches) != sorted(set(batches)):
        raise ConfigError("batches", tuple(batches), "ascending, from 1")
    if not seconds > 0:
        raise ConfigError("seconds", seconds, "more than 0")
    meter = _Meter(counter or find_energy_counter())
    meter.measure_idle(_IDLE_SHARE * seconds)
    share = seconds / len(batches)
    done: list[BatchMeasurement] = []
    for batch in batches:
        if done and (FEWEST_RUNS + 1) * batch * _fastest(done).seconds_per_inference.median > share:
            break
        images = np.random.default_rng(batch).random((batch, *shape), dtype=np.float32)
        done.append(_measure_batch(run, images, share, _PATIENCE * seconds, meter))
    if meter.reason:  # it may have gone on the way: joules of all batches, or of none
        done = [replace(one, joules_per_inference=None) for one in done]
    return CpuMeasurement(
        cpu=processor_name(),
        runtime=runtime,
        threads=threads,
        date=_now(),
        batches=tuple(one.batch for one in done),
        batch1=done[0],
        best=_fastest(done),
        energy_zones=meter.zones,
        idle_watts=meter.idle_watts,
        energy_reason=meter.reason or None,
    )


def processor_name() -> str:
    """Return the model name of this machine's processor, or its architecture where that is not known."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8", errors="replace") if information.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


class _Meter:
    """Energy between two moments, as long as the machine's counter can be read."""

    def __init__(self, counter: EnergyCounter) -> None:
        self._counter = counter
        self.reason = counter.reason
        self.idle_watts: float | None = None

    @property
    def zones(self) -> tuple[str, ...]:
        """What is counted."""
        return () if self.reason else tuple(zone.name for zone in self._counter.zones)

    def read(self) -> tuple[int, ...]:
        """Return a reading; an empty one once the counter could not be read."""
        if self.reason:
            return ()
        try:
            return self._counter.read()
        except (OSError, ValueError) as error:
            self.reason = f"the energy counter could not be read any more ({error})"
            self.idle_watts = None
            return ()

    def measure_idle(self, seconds: float) -> None:
        """Measure the power while this process sleeps."""
        if self.reason:
            return
        start, before = time.perf_counter(), self.read()
        time.sleep(seconds)
        joules = self.joules_since(before)
        if joules is not None:
            self.idle_watts = joules / (time.perf_counter() - start)

    def joules_since(self, before: tuple[int, ...]) -> float | None:
        """Return the energy since a reading [J], None where there is none."""
        after = self.read()
        return self._counter.joules(before, after) if before and after else None


def _measure_batch(
    run: Callable[[Batch], object], images: Batch, share: float, patience: float, meter: _Meter
) -> BatchMeasurement:
    start = time.perf_counter()
    run(images)
    taken: list[float] = []
    began, before = time.perf_counter(), meter.read()
    moment = began
    while moment - start < share or (len(taken) < FEWEST_RUNS and moment - start < patience) or not taken:
        run(images)
        ended = time.perf_counter()
        taken.append(ended - moment)
        moment = ended
    joules = meter.joules_since(before)
    elapsed = time.perf_counter() - began
    inferences = len(images) * len(taken)
    energy = None
    if joules is not None and meter.idle_watts is not None:
        rest = joules - meter.idle_watts * elapsed
        energy = InferenceEnergy(total=joules / inferences, idle_subtracted=rest / inferences)
    least, median, most = min(taken), statistics.median(taken), max(taken)
    return BatchMeasurement(
        batch=len(images),
        runs=len(taken),
        seconds_per_inference=Spread(least=least / len(images), median=median / len(images), most=most / len(images)),
        joules_per_inference=energy,
    )


def _fastest(done: Sequence[BatchMeasurement]) -> BatchMeasurement:
    return min(done, key=lambda one: one.seconds_per_inference.median)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
