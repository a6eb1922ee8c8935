"""Figures derived from what was measured: ratios, shares of the peak, growth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Answer = Mapping[str, Any]


def is_measured(answer: Answer | None) -> bool:
    """Whether a system has figures."""
    return bool(answer) and "cpu_seconds_per_sample" in (answer or {})


def ratios_to(peer: Answer, fast: Answer) -> dict[str, float]:
    """Return how many times as much a peer needs: CPU time a sample, and wall time a sample."""
    return {
        "cpu": peer["cpu_seconds_per_sample"] / fast["cpu_seconds_per_sample"],
        "speed": fast["samples_per_second"] / peer["samples_per_second"],
    }


def dense_flops(answer: Answer, timesteps: int) -> float:
    """Return the floating-point operations of one sample if it were dense: two for each multiply-accumulate.

    The projections from a constant image count once, all others at every timestep, whether or not the engine skips
    what does not spike.
    """
    return float(2 * (answer["macs_first"] + timesteps * answer["macs_rest"]))


def share_of_peak(answer: Answer, timesteps: int, gflops: float) -> float:
    """Return the dense-equivalent speed as a share of the peak of matrix multiplication on one thread.

    By CPU time, which other programs on the machine disturb less than the clock's.
    """
    return dense_flops(answer, timesteps) / float(answer["cpu_seconds_per_sample"]) / (gflops * 1e9)


def complete_network(network: dict[str, Any], gflops: float) -> dict[str, Any]:
    """Return a measured network with its ``ratios`` (peer over fast), ``share_of_peak`` and ``rates``."""
    systems = network["systems"]
    fast = systems.get("fast", {})
    done = {**network, "ratios": {}, "share_of_peak": None, "rates": systems.get("reference", {}).get("rates", {})}
    done["systems"] = {name: without_bulk(answer) for name, answer in systems.items()}
    if is_measured(fast):
        done["share_of_peak"] = share_of_peak(fast, network["timesteps"], gflops)
        done["ratios"] = {
            name: ratios_to(answer, fast) for name, answer in systems.items() if name != "fast" and is_measured(answer)
        }
    return done


def without_bulk(answer: Answer) -> dict[str, Any]:
    """Return figures without what served only to compare them."""
    return {name: value for name, value in answer.items() if name not in ("digests", "logits")}


def complete_points(points: Sequence[dict[str, Any]], gflops: float) -> list[dict[str, Any]]:
    """Return the points of a section, each with its ``share_of_peak`` where it was measured."""
    done = []
    for point in points:
        peers = {name: without_bulk(answer) for name, answer in point.get("peers", {}).items()}
        share = share_of_peak(point, point["timesteps"], gflops) if is_measured(point) else None
        done.append({**without_bulk(point), "peers": peers, "share_of_peak": share})
    return done


def growth(points: Sequence[Answer]) -> dict[str, float] | None:
    """Return how the CPU time of a run grew from the first to the last point, beside linear; None if not measured.

    ``exponent`` is 1 where time is proportional to the value.
    """
    measured = [point for point in points if is_measured(point)]
    if len(measured) < 2 or measured[0] is not points[0] or measured[-1] is not points[-1]:
        return None
    first, last = measured[0], measured[-1]
    time = last["cpu"]["median"] / first["cpu"]["median"]
    value = last["value"] / first["value"]
    return {"from": first["value"], "to": last["value"], "time": time, "linear": value,
            "exponent": math.log(time) / math.log(value)}  # fmt: skip


def best_ratios(points: Sequence[Answer]) -> dict[str, float]:
    """Return, for each peer, how many times its samples a second the engine reaches, both at their best point."""
    speeds = [point["samples_per_second"] for point in points if is_measured(point)]
    peers: dict[str, float] = {}
    for point in points:
        for name, answer in point.get("peers", {}).items():
            if is_measured(answer):
                peers[name] = max(peers.get(name, 0.0), answer["samples_per_second"])
    return {name: max(speeds) / speed for name, speed in peers.items()} if speeds else {}
