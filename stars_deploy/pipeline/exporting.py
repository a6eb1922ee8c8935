"""Exporting what exists already: a student, a network of another tool, or integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stars_deploy.artifacts import staged_folder
from stars_deploy.bounds import find_overflow, prove_bounds
from stars_deploy.config import OnnxConfig
from stars_deploy.errors import ConfigError, VerificationError
from stars_deploy.export.calibration import LayerReport
from stars_deploy.pipeline.directory import FLOAT_GRAPH, MODEL, RunDirectory
from stars_deploy.pipeline.models import Model
from stars_deploy.pipeline.quantising import Importing, Quantised, quantise_model
from stars_deploy.pipeline.samples import distinct_samples
from stars_deploy.pipeline.verifying import verify_targets, write_targets
from stars_deploy.progress import Observer
from stars_deploy.serde import load_quantized, save_graph
from stars_deploy.targets import find_target
from stars_deploy.verification import Verification, check_verified


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written, what it was calibrated on, what quantisation did, and that it was verified.

    ``layers`` is empty and ``warnings`` too where the integers were those of a file.
    """

    files: tuple[Path, ...]
    calibrated_on: str
    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...]
    verifications: tuple[Verification, ...]


def export_model(
    path: str | Path,
    targets: Sequence[str],
    out: str | Path,
    *,
    timesteps: int | None = None,
    bits: int | None = None,
    input_bits: int | None = None,
    importing: Importing | None = None,
    onnx: OnnxConfig | None = None,
    samples: int = 16,
    observer: Observer | None = None,
) -> ExportResult:
    """Quantise (where needed), write and verify, without distilling.

    Parameters
    ----------
    path : path
        A ``student.safetensors``, a built directory, or a ``.nir``, ``.net``, ``.onnx`` or ``model.npz``.
    targets : sequence of str
    out : path
        Folder for the files.
    timesteps : int, optional
        In place of the model's own.
    bits : int, optional
        Weight bits: 8 for a student or another tool's network, those of the build for its directory; a file of integers
        keeps its own.
    input_bits : int, optional
        For a float network the most bits of its input, 1 for spikes; for a ``.net`` that does not state them its input
        bits: 8.
    importing : Importing, optional
        How a ``.nir`` of another tool is read and calibrated.
    onnx : OnnxConfig, optional
        How the ``onnx`` target writes.
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
        quantised = quantise_model(Path(path), timesteps, bits, input_bits, importing or Importing())
        _check_quantised(quantised, watch)
    with staged_folder(folder, keep=VerificationError) as draft:
        names, verifications = _write_verified(quantised, draft, targets, onnx, samples, watch)
    if quantised.origin is None and folder != Path(path).parent:
        (folder / FLOAT_GRAPH).unlink(missing_ok=True)  # what an earlier export left would be another network's
    return ExportResult(
        files=tuple(folder / name for name in names),
        calibrated_on=quantised.calibrated_on,
        layers=quantised.layers,
        warnings=quantised.warnings,
        verifications=tuple(verifications),
    )


def _write_verified(
    quantised: Quantised,
    folder: Path,
    targets: Sequence[str],
    onnx: OnnxConfig | None,
    samples: int,
    watch: Observer,
) -> tuple[list[str], list[Verification]]:
    """Write everything into `folder` and verify it there; return the names of the files and what was found."""
    with watch.stage("write"):
        if quantised.origin is not None:
            save_graph(quantised.origin, folder / FLOAT_GRAPH)
        save_graph(quantised.graph, folder / MODEL)
        graph = load_quantized(folder / MODEL)
        files = write_targets(graph, folder, targets, origin=quantised.origin, onnx=onnx)
    with watch.stage("verify"):
        model = Model(name=folder.name, file=folder / MODEL, graph=graph)
        verifications = verify_targets(graph, folder, targets, distinct_samples(model, None, samples), watch)
    check_verified(verifications)
    return [MODEL, *(file.name for file in files)], verifications


def _check_quantised(quantised: Quantised, watch: Observer) -> None:
    """Prove the bounds of what was quantised here; of integers that were there before, say where they may overflow."""
    if quantised.calibration is not None:
        prove_bounds(quantised.graph)
    elif overflow := find_overflow(quantised.graph):
        watch.noted(f"not proven: {overflow}")
    for warning in quantised.warnings:
        watch.noted(warning)


def _check_request(targets: Sequence[str], folder: Path) -> None:
    if not targets:
        raise ConfigError("--target", "none", "at least one target")
    for name in targets:
        find_target(name)
    if RunDirectory(folder).is_build():
        raise ConfigError(
            f"--out {folder}", "holds a build", "another folder", "its files would no longer be the build's"
        )
