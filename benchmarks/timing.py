"""Time and memory of what runs in this process. Imports the standard library only: every peer's environment has it.

A figure is the median of several runs after warm-up; the fastest and the slowest stand beside it.
"""

from __future__ import annotations

import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Most runs of one measurement: more add nothing to a median.
MOST_RUNS = 200
#: Fewest runs, so that there is a spread to show.
FEWEST_RUNS = 3


def measure_runs(
    run: Callable[[], object], samples: int, seconds: float, warm_up: int = 1, fewest: int = FEWEST_RUNS
) -> dict[str, Any]:
    """Time `run` at least `fewest` times and for about `seconds` [s] of wall time, each time on `samples` samples.

    Returns
    -------
    dict
        ``runs``; ``wall`` and ``cpu``, each with ``median``, ``least``, ``most`` [s a run]; ``samples_per_second``,
        ``cpu_seconds_per_sample`` (both from the medians); ``peak_mb`` and ``loaded_mb``, the resident memory at its
        highest and before the first run [MB].
    """
    loaded = resident_mb("VmRSS")
    for _ in range(warm_up):
        run()
    wall: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + seconds
    while len(wall) < fewest or (time.perf_counter() < end and len(wall) < MOST_RUNS):
        before, used = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - before)
        cpu.append(time.process_time() - used)
    return {**summarise_runs(wall, cpu, samples), "peak_mb": resident_mb("VmHWM"), "loaded_mb": loaded}


def summarise_runs(wall: list[float], cpu: list[float], samples: int) -> dict[str, Any]:
    """Return the figures of several runs of `samples` samples each, from their wall and CPU times [s]."""
    return {
        "runs": len(wall),
        "samples": samples,
        "wall": spread(wall),
        "cpu": spread(cpu),
        "samples_per_second": samples / statistics.median(wall),
        "cpu_seconds_per_sample": statistics.median(cpu) / samples,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the least and the most of some values."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def resident_mb(field: str) -> float:
    """Return this process's resident memory [MB]: now (``VmRSS``) or at its highest (``VmHWM``).

    ``ru_maxrss`` would be at least the size of the process that started this one: Linux carries it over ``exec``. It
    stands in where there is no ``/proc``.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
