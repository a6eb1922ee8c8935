"""What the engine has to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from figures import growth

#: Noise allowed where a cost must not grow faster than linearly.
GROWTH_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One line of the table of goals; ``figure`` is None where it was not measured."""

    work: str
    bound: float
    unit: str
    figure: float | None
    at_most: bool = False

    def described(self) -> dict[str, Any]:
        """Return the goal for the report, with ``reached``: true, false, or None where it was not measured."""
        reached = None
        if self.figure is not None:
            reached = self.figure <= self.bound if self.at_most else self.figure >= self.bound
        kind = "at most" if self.at_most else "at least"
        return {"work": self.work, "figure": self.figure, "unit": self.unit, kind: self.bound, "reached": reached}


def judge(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every goal with what was measured for it."""
    networks = {network["name"]: network for network in results.get("networks", ())}
    goals = [*_network_goals(networks), _kernel_goal(results.get("lif_kernel", {}))]
    goals += [
        _growth_goal(results.get("sections", {}).get(section, ()), name)
        for section, name in (("batch", "batch 8 to 512"), ("timesteps", "T 4 to 32"))
    ]
    return [goal.described() for goal in goals]


def _network_goals(networks: Mapping[str, Any]) -> list[Goal]:
    student = "vgg:16-128"
    share = networks.get(student, {}).get("share_of_peak")
    onnx = _ratio(networks, student, "onnxruntime_ann", "cpu")
    return [
        Goal(work="pilotnet_lif.net, T 16, batch 8, CPU time against Lava", bound=300, unit="x",
             figure=_ratio(networks, "pilotnet_lif.net", "lava", "cpu")),
        Goal(work="tiny.net, T 16, batch 64, CPU time against Lava", bound=2000, unit="x",
             figure=_ratio(networks, "tiny.net", "lava", "cpu")),
        Goal(work=f"{student}, T 4, dense-equivalent share of the float32 GEMM peak of one thread", bound=50, unit="%",
             figure=None if share is None else 100 * share),
        Goal(work=f"{student}, T 4, samples a second against norse stepping", bound=3, unit="x",
             figure=_ratio(networks, student, "norse_stepping", "speed")),
        Goal(work=f"{student}, T 4, samples a second against SpikingJelly multi-step", bound=3, unit="x",
             figure=_ratio(networks, student, "spikingjelly", "speed")),
        Goal(work=f"{student}, T 4, CPU time a sample over the float ANN in ONNX Runtime", bound=4, unit="x",
             figure=None if onnx is None else 1 / onnx, at_most=True),
    ]  # fmt: skip


def _ratio(networks: Mapping[str, Any], name: str, peer: str, kind: str) -> float | None:
    ratios = networks.get(name, {}).get("ratios", {})
    return float(ratios[peer][kind]) if peer in ratios else None


def _kernel_goal(kernel: Mapping[str, Any]) -> Goal:
    figure = None
    if "kernel" in kernel:
        figure = kernel["kernel"]["samples_per_second"] / kernel["numpy"]["samples_per_second"]
    return Goal(work="LIF kernel without current leak, against NumPy", bound=10, unit="x", figure=figure)


def _growth_goal(points: Sequence[Mapping[str, Any]], name: str) -> Goal:
    found = growth(points)
    figure = None if found is None else found["time"] / found["linear"]
    return Goal(work=f"growth of cost, {name}, over linear", bound=1 + GROWTH_TOLERANCE, unit="x linear",
                figure=figure, at_most=True)  # fmt: skip
