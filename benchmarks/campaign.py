"""What is measured, in which order: one system at a time, each in a fresh process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import agreement
import networks
from networks import BenchmarkNetwork
from processes import ask_worker

Answer = dict[str, Any]
#: Most images that any measurement uses.
MOST_IMAGES = max(networks.BATCHES)
#: Memory budgets of the engine that are tried [MiB].
BUDGETS = (64, 256, 2048)
DEFAULT_MEMORY = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Parameters
    ----------
    seconds : float
        Wall time for each measurement [s].
    agree : int
        Samples on which Lava is compared with the reference.
    quick : bool
        Fewer points, shorter.
    seed : int
    spikingjelly : str
        A Python that has SpikingJelly; empty for none.
    no_spikingjelly : str
        Why there is none.
    """

    seconds: float = 5.0
    agree: int = 4
    quick: bool = False
    seed: int = 20260101
    spikingjelly: str = ""
    no_spikingjelly: str = "no environment for it: give --spikingjelly PYTHON or --make-environment DIR"


@dataclass
class Campaign:
    """Measures with some settings; students are made once, in `folder`."""

    settings: Settings
    folder: Path
    ask: Callable[..., Answer] = ask_worker
    report: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
    students: dict[str, Answer] = field(default_factory=dict)

    def request(self, network: BenchmarkNetwork) -> Answer:
        """Return what every worker is told about a network; a student is made first.

        Where it cannot be made, the request has a ``reason``.
        """
        request: Answer = {
            "seed": self.settings.seed,
            "seconds": self.settings.seconds,
            "quick": self.settings.quick,
            "agree": self.settings.agree,
            "digest": False,
            "profile": False,
            "memory": DEFAULT_MEMORY,
            "file": str(network.file or ""),
            "folder": "",
            "topology": network.topology,
            "timesteps": network.timesteps,
            "batch": network.batch,
            "rate": network.rate,
            "images": MOST_IMAGES,
        }
        if network.missing():
            return {**request, "reason": network.missing()}
        if network.topology:
            request["folder"] = str(self.folder / network.recipe)
            made = self._student(network.recipe, request)
            request = {**request, **{key: made[key] for key in ("reason", "ann_logits") if key in made}}
        return request

    def _student(self, recipe: str, request: Mapping[str, Any]) -> Answer:
        if recipe not in self.students:
            self.report(f"{recipe}: making the student")
            Path(request["folder"]).mkdir(parents=True, exist_ok=True)
            self.students[recipe] = self.ask("student", request)
        return self.students[recipe]

    def run(self, peer: str, request: Mapping[str, Any], threads: int = 1, python: str = sys.executable) -> Answer:
        """Measure one system."""
        if "reason" in request:
            return {"reason": request["reason"]}
        self.report(f"  {peer}")
        return self.ask(peer, request, threads=threads, python=python)

    def gemm(self, threads: int = 1) -> Answer:
        """Measure the peak of float32 matrix multiplication."""
        request = {"seed": self.settings.seed, "seconds": min(self.settings.seconds, 5.0)}
        return self.run("gemm", request, threads=threads)

    def kernel(self) -> Answer:
        """Measure the neuron update."""
        return self.run("lif_kernel", {"seed": self.settings.seed, "seconds": self.settings.seconds})

    def network(self, network: BenchmarkNetwork) -> Answer:
        """Measure every system on one network; those that computed something else have a ``reason``, not a speed."""
        self.report(f"{network.name}, T {network.timesteps}, batch {network.batch}")
        request = {**self.request(network), "digest": True, "profile": True}
        systems = self._integer_systems(request)
        if network.topology:
            systems.update(self._float_systems(request))
        return {
            "name": network.name, "timesteps": network.timesteps, "batch": network.batch, "systems": systems
        }  # fmt: skip

    def _integer_systems(self, request: Mapping[str, Any]) -> dict[str, Answer]:
        reference = self.run("reference", request)
        fast = checked(self.run("fast", request), reference, "every spike and final potential of the reference")
        lava = self.run("lava_steps", request)
        if "digests" in lava:
            few = self.run("reference", {**request, "batch": request["agree"], "quick": True, "seconds": 0})
            lava = checked(
                lava, few, f"every spike and final potential of the reference (samples compared: {request['agree']})"
            )
        return {"fast": fast, "reference": reference, "lava": lava}

    def _float_systems(self, request: Mapping[str, Any]) -> dict[str, Answer]:
        folded = self.run("norse_folded", request)
        stepping = self.run("norse_stepping", request)
        jelly: Answer = {"reason": self.settings.no_spikingjelly}
        if self.settings.spikingjelly:
            jelly = self.run("spikingjelly_multistep", request, python=self.settings.spikingjelly)
        onnx = self.run("onnx_ann", request)
        return {
            "norse_folded": folded,
            "norse_stepping": _like_student(stepping, folded),
            "spikingjelly": _like_student(jelly, folded),
            "onnxruntime_ann": _like_ann(onnx, request.get("ann_logits", ())),
        }

    def points(self, section: str) -> list[Answer]:
        """Measure the fast engine over one of ``batch``, ``timesteps``, ``width``, ``rate``, ``threads``, ``memory``.

        Along ``batch`` the peers are measured too: a peer may be faster at another batch.
        """
        self.report(section)
        return _SECTIONS[section](self)

    def point(self, network: BenchmarkNetwork, value: object, threads: int = 1, **changes: object) -> Answer:
        """Measure the fast engine on one network, as one point of a section."""
        answer = self.run("fast", {**self.request(network), **changes}, threads=threads)
        return {"value": value, "network": network.name, "timesteps": network.timesteps, **answer}


def checked(got: Answer, expected: Answer, name: str) -> Answer:
    """Return `got`, or a reason in its place where its digests are not those of `expected`, which is `name`."""
    if "digests" not in got or "digests" not in expected:
        return got
    layer = agreement.find_disagreement(expected["digests"], got["digests"])
    return agreed(got, f"layer {layer} differs" if layer else "", name)


def agreed(got: Answer, difference: str, name: str) -> Answer:
    """Return `got` with what it agrees with, or only a reason: no speed of a wrong answer is reported."""
    if difference:
        return {"reason": f"WRONG ANSWER: {difference} ({name})", "wrong": True}
    return {**got, "agrees_with": name}


def _like_student(got: Answer, student: Answer) -> Answer:
    if "logits" not in got or "logits" not in student:
        return got
    return agreed(got, agreement.compare_spiking(student, got), "the student's spikes and logits, up to rounding")


def _like_ann(got: Answer, logits: Sequence[Sequence[float]]) -> Answer:
    if "logits" not in got:
        return got
    difference = agreement.compare_logits(logits, got["logits"], agreement.ANN_TOLERANCE)
    return agreed(got, difference, "torch's logits of the same ANN, up to rounding")


def open_campaign(settings: Settings, report: Callable[[str], None] | None = None) -> tuple[Campaign, Any]:
    """Return a campaign and the temporary folder that holds its students, to be cleaned up."""
    place = tempfile.TemporaryDirectory(prefix="stars-deploy-benchmark-")
    campaign = Campaign(settings=settings, folder=Path(place.name))
    if report is not None:
        campaign.report = report
    return campaign, place


def _batches(campaign: Campaign) -> list[Answer]:
    found = []
    for batch in networks.BATCHES:
        network = networks.with_batch(batch)
        point = campaign.point(network, batch)
        request = campaign.request(network)
        point["peers"] = {}
        if not campaign.settings.quick:
            point["peers"] = {
                name: campaign.run(name, request) for name in ("norse_folded", "norse_stepping", "onnx_ann")
            }
            if campaign.settings.spikingjelly:
                answer = campaign.run("spikingjelly_multistep", request, python=campaign.settings.spikingjelly)
                point["peers"]["spikingjelly"] = answer
        found.append(point)
    return found


def _timesteps(campaign: Campaign) -> list[Answer]:
    return [campaign.point(networks.with_timesteps(steps), steps) for steps in networks.TIMESTEPS]


def _widths(campaign: Campaign) -> list[Answer]:
    return [campaign.point(networks.with_topology(topology), topology) for topology in networks.WIDTHS]


def _rates(campaign: Campaign) -> list[Answer]:
    return [campaign.point(networks.with_rate(rate), rate, digest=True) for rate in networks.RATES]


def _threads(campaign: Campaign) -> list[Answer]:
    chosen = (networks.TINY, networks.PILOTNET, networks.STUDENT)
    return [campaign.point(network, threads, threads) for network in chosen for threads in (1, 2)]


def _memory(campaign: Campaign) -> list[Answer]:
    network = replace(networks.STUDENT, name=f"batch {MOST_IMAGES}", batch=MOST_IMAGES)
    return [campaign.point(network, budget, memory=budget << 20) for budget in BUDGETS]


_SECTIONS: dict[str, Callable[[Campaign], list[Answer]]] = {
    "batch": _batches,
    "timesteps": _timesteps,
    "width": _widths,
    "rate": _rates,
    "threads": _threads,
    "memory": _memory,
}
SECTIONS = tuple(_SECTIONS)
