"""Exporting what exists already: a student checkpoint, an integer graph or a ``.net`` file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from stars_deploy.artifacts import existing_file
from stars_deploy.bounds import prove_bounds
from stars_deploy.errors import ConfigError
from stars_deploy.pipeline.directory import FLOAT_GRAPH, IMAGES, MODEL, RunDirectory, as_pixels
from stars_deploy.pipeline.measuring import distinct_samples, noise_images, verify_targets, write_targets
from stars_deploy.pipeline.models import Model, Reading, open_model, quantize_calibrated
from stars_deploy.progress import Observer
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.serde import load_quantized, save_graph
from stars_deploy.targets import find_target
from stars_deploy.verification import Verification, check_verified

#: Noise images for calibration where a student comes without synthetic ones.
NOISE_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written, what it was calibrated on, and that it was verified."""

    files: tuple[Path, ...]
    calibrated_on: str
    verifications: tuple[Verification, ...]


def export_model(
    path: str | Path,
    targets: Sequence[str],
    out: str | Path,
    *,
    timesteps: int | None = None,
    bits: int | None = None,
    input_bits: int | None = None,
    samples: int = 16,
    observer: Observer | None = None,
) -> ExportResult:
    """Quantise (where needed), write and verify, without distilling.

    Parameters
    ----------
    path : path
        A ``student.safetensors``, a built directory, a ``model.npz`` or a ``.net``.
    targets : sequence of str
    out : path
        Folder for the files.
    timesteps : int, optional
        In place of the model's own.
    bits : int, optional
        Weight bits: 8 for a student, those of the build for its directory; a file keeps its own.
    input_bits : int, optional
        For a student the most bits of the image, for a ``.net`` that does not state them its input bits: 8.
    samples : int
        Distinct images to verify with.
    observer : Observer, optional

    Raises
    ------
    ConfigError
        If `out` holds a build, or bits are asked for that the model cannot be given any more.
    VerificationError
        If a target differs from the reference.
    """
    watch = observer or Observer()
    folder = Path(out)
    _check_request(targets, folder)
    with watch.stage("quantise"):
        if Path(path).suffix == ".safetensors":
            graph, calibrated_on = _quantise_student(Path(path), folder, timesteps, _known(bits), _known(input_bits))
        else:
            graph, calibrated_on = _opened(Path(path), timesteps, bits, input_bits)
        prove_bounds(graph)
        save_graph(graph, folder / MODEL)
    graph = load_quantized(folder / MODEL)
    with watch.stage("write"):
        files = write_targets(graph, folder, targets)
    images = distinct_samples(Model(name=folder.name, file=folder / MODEL, graph=graph), None, samples).images
    with watch.stage("verify"):
        verifications = verify_targets(graph, folder, targets, images, watch)
    check_verified(verifications)
    return ExportResult(files=(folder / MODEL, *files), calibrated_on=calibrated_on, verifications=tuple(verifications))


def _check_request(targets: Sequence[str], folder: Path) -> None:
    if not targets:
        raise ConfigError("--target", "none", "at least one target")
    for name in targets:
        find_target(name)
    if RunDirectory(folder).is_build():
        raise ConfigError(
            f"--out {folder}", "holds a build", "another folder", "its files would no longer be the build's"
        )


def _opened(path: Path, timesteps: int | None, bits: int | None, input_bits: int | None) -> tuple[QuantizedGraph, str]:
    # What is written is the network; in which time it is run is chosen when it is read.
    reading = Reading(input_bits=_known(input_bits), timing="synchronous") if path.suffix == ".net" else None
    model = open_model(path, timesteps, reading)
    if input_bits is not None and model.file.suffix != ".net":
        raise ConfigError("--input-bits", f"{input_bits} for {path}", "only for a student or a .net file")
    graph = model.at_setting(timesteps, bits)
    if model.directory is not None and graph is not model.graph:
        return graph, f"synthetic images of {path}"
    return graph, "nothing: the integers are those of the file"


def _known(bits: int | None) -> int:
    return 8 if bits is None else bits


def _quantise_student(
    path: Path, folder: Path, timesteps: int | None, bits: int, input_bits: int
) -> tuple[QuantizedGraph, str]:
    # torch is needed for this only, so the other commands do not wait for it.
    from stars_deploy.export.trace import trace_student
    from stars_deploy.lowering.passes import lower
    from stars_deploy.student import load_student

    student, plan = load_student(existing_file(path))
    if timesteps is not None:
        student.timesteps = timesteps
    graph = lower(trace_student(student, plan.labels))
    images, source = _calibration_images(path.parent, graph.input.shape)
    quantized, _ = quantize_calibrated(graph, images, bits, input_bits)
    save_graph(graph, folder / FLOAT_GRAPH)
    return quantized, source


def _calibration_images(folder: Path, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], str]:
    if (folder / IMAGES).is_file():
        return as_pixels(RunDirectory(folder).images().calibration), f"synthetic images of {folder / IMAGES}"
    return noise_images(NOISE_IMAGES, shape), "noise (no synthetic.npz beside the student)"
