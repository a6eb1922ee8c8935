"""Was it written as it was meant? Artefacts read back, executed, and compared spike for spike with the reference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import VerificationError
from stars_deploy.quantized import IntArray, QuantizedGraph, find_difference
from stars_deploy.targets import find_target
from stars_deploy.targets.base import Difference, compare_records
from stars_deploy.targets.reference import run_reference

_REMEDY = "the artefact was changed after it was written, or its writer is wrong: build it again"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What came of verifying one target.

    Parameters
    ----------
    target : str
    ran : bool
        False where the target cannot execute on this machine: then nothing was verified.
    reason : str
        Why it did not run, and what would make it.
    samples : int
    compared_spikes : int
        Positions compared: neuron x timestep x sample, all layers.
    mismatches : int
        Differing spikes and differing final potentials.
    first : Difference, optional
        The earliest difference, in layer order.
    seconds : float
        Reading back and executing [s], without the reference.
    classes : tuple of int
        What the target answered to each sample.
    altered : str
        The first field in which the graph read back differs from the one that was to be written, such as
        ``conv2.weight``; empty where they are equal. It is found also where no sample made it matter.
    """

    target: str
    ran: bool
    reason: str = ""
    samples: int = 0
    compared_spikes: int = 0
    mismatches: int = 0
    first: Difference | None = None
    seconds: float = 0.0
    classes: tuple[int, ...] = ()
    altered: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and nothing differed."""
        return self.ran and self.mismatches == 0 and not self.altered


def verify_target(graph: QuantizedGraph, target_name: str, path: Path, images: IntArray) -> Verification:
    """Read the artefact at `path` back, compare it with `graph`, execute it and compare every spike.

    Parameters
    ----------
    graph : QuantizedGraph
        What the artefact should mean; its ``timesteps`` are run.
    target_name : str
        See :data:`stars_deploy.targets.TARGETS`.
    path : Path
        Written earlier by that target.
    images : array of int, (B, *shape) or (T, B, *shape) [LSB]
        At least one sample, the same image at every timestep or a frame for each.

    Raises
    ------
    TargetError
        If there is no such target, or its runtime failed.
    ArtifactError, FormatError
        If the artefact is missing, damaged, or holds what cannot be executed exactly.
    VerificationError
        If there are no samples: nothing would be compared.
    """
    target = find_target(target_name)
    existing_file(path)
    if not len(images):
        raise VerificationError(target_name, "no samples to compare", "at least one image")
    available = target.availability()
    if not available.ok:
        return Verification(target=target_name, ran=False, reason=available.reason)
    expected = run_reference(graph, images)
    start = time.perf_counter()
    got = target.execute(path, images, graph.timesteps)
    seconds = time.perf_counter() - start
    comparison = compare_records(expected, got)
    return Verification(
        target=target_name,
        ran=True,
        samples=images.shape[1 if graph.input.over_time(images) else 0],
        compared_spikes=comparison.compared_spikes,
        mismatches=comparison.mismatches,
        first=comparison.first,
        seconds=seconds,
        classes=tuple(int(answer) for answer in got.classes()),
        altered=find_difference(graph, target.read(path, graph.timesteps)),
    )


def check_verified(verifications: Sequence[Verification]) -> None:
    """Refuse if any target computed something else than the reference.

    A target that did not run is not a difference; ``ran`` and ``reason`` say so and belong into the report.

    Raises
    ------
    VerificationError
        Naming the target, layer, timestep, sample, neuron, and what was expected and got.
    """
    for verification in verifications:
        if verification.mismatches:
            raise VerificationError(
                verification.target,
                f"{verification.mismatches} of {verification.compared_spikes} compared positions differ; first: "
                f"{verification.first}",
                "the reference's spikes and final potentials exactly",
                _REMEDY,
            )
        if verification.altered:
            raise VerificationError(
                verification.target,
                f"no sample shows it, but {verification.altered} is not what was to be written",
                "a graph that reads back equal",
                _REMEDY,
            )
