"""The machine's float32 matrix multiplication: the peak that convolutions are held against."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

#: Rows, columns and depth: large enough to run at full speed, three times 16 MB.
SIZE = 2048


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return the best and the median speed of ``sgemm`` [GFLOP/s], with ``2 SIZE**3`` operations a product."""
    generator = np.random.default_rng(request["seed"])
    left, right = (generator.standard_normal((SIZE, SIZE), np.float32) for _ in range(2))
    result = np.empty((SIZE, SIZE), np.float32)
    speeds: list[float] = []
    with threadpool_limits(request["threads"]):
        np.matmul(left, right, out=result)
        end = time.perf_counter() + request["seconds"]
        while len(speeds) < 5 or time.perf_counter() < end:
            before = time.perf_counter()
            np.matmul(left, right, out=result)
            speeds.append(2 * SIZE**3 / (time.perf_counter() - before) / 1e9)
    return {"best_gflops": max(speeds), "median_gflops": statistics.median(speeds), "runs": len(speeds), "size": SIZE}
