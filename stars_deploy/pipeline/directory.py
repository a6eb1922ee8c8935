"""The run directory: what a build leaves behind, and how a later command opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.artifacts import existing_file, read_json, sha256, write_arrays, write_json
from stars_deploy.config import BuildConfig, load_config, save_config
from stars_deploy.errors import ArtifactError, ConfigError
from stars_deploy.provenance import versions

CONFIG = "config.yaml"
CHECKPOINT = "checkpoint.safetensors"
STUDENT = "student.safetensors"
HISTORY = "distill.jsonl"
IMAGES = "synthetic.npz"
FLOAT_GRAPH = "graph.npz"
MODEL = "model.npz"
NETX = "model.net"
REPORT = "report.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class SyntheticImages:
    """Images made from the teacher alone, uint8 (N, C, H, W).

    Parameters
    ----------
    calibration : array
        From the pool that the student was trained on.
    held_out : array
        Made after training: no student was trained on them.
    teacher_classes : array of int
        The teacher's answers to ``held_out``.
    """

    calibration: npt.NDArray[np.uint8]
    held_out: npt.NDArray[np.uint8]
    teacher_classes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class RunDirectory:
    """A build's folder."""

    path: Path

    def file(self, name: str) -> Path:
        """Return the path of an artefact."""
        return self.path / name

    def start(self, config: BuildConfig, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for `config`; a finished build of other settings is never written over.

        Raises
        ------
        ConfigError
            If it holds a finished build of other settings and neither `overwrite` nor another folder was asked for,
            or if there is nothing to resume.
        """
        known = self.file(CONFIG)
        if resume and not known.is_file():
            raise ConfigError("--resume", f"{self.path} holds no build", "a folder with an interrupted build")
        if known.is_file() and not overwrite and load_config(known, {}) != config:
            raise ConfigError(
                f"--out {self.path}", "holds a build with other settings", "an empty folder, or the same settings",
                "choose another --out, or add --overwrite",
            )  # fmt: skip
        if known.is_file() and load_config(known, {}) != config:
            for name in (CHECKPOINT, STUDENT, IMAGES, HISTORY, FLOAT_GRAPH, MODEL, NETX, REPORT, MANIFEST):
                self.file(name).unlink(missing_ok=True)
        save_config(config, known)

    def unseal(self) -> None:
        """Take the report and the manifest away before artefacts are replaced: both come back last."""
        self.file(MANIFEST).unlink(missing_ok=True)
        self.file(REPORT).unlink(missing_ok=True)

    def config(self) -> BuildConfig:
        """Return the resolved configuration of the build."""
        return load_config(existing_file(self.file(CONFIG)), {})

    def save_images(self, images: SyntheticImages) -> None:
        """Write the synthetic images."""
        write_arrays(
            self.file(IMAGES),
            {
                "calibration": images.calibration,
                "held_out": images.held_out,
                "teacher_classes": images.teacher_classes,
            },
        )

    def images(self) -> SyntheticImages:
        """Read the synthetic images.

        Raises
        ------
        ArtifactError
            If the file is missing or damaged.
        """
        path = existing_file(self.file(IMAGES))
        try:
            with np.load(path, allow_pickle=False) as archive:
                return SyntheticImages(
                    calibration=archive["calibration"],
                    held_out=archive["held_out"],
                    teacher_classes=archive["teacher_classes"],
                )
        except Exception as error:  # a damaged zip raises whatever its decoder met first
            raise ArtifactError(str(path), f"not readable ({error})", remedy="build again") from error

    def finish(self, report: dict[str, Any]) -> None:
        """Write the report, then the manifest of everything in the folder."""
        write_json(self.file(REPORT), report)
        self.file(CHECKPOINT).unlink(missing_ok=True)
        files = sorted(path for path in self.path.iterdir() if path.is_file() and not path.name.startswith("."))
        entries = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files}
        write_json(self.file(MANIFEST), {"files": entries, "versions": versions()})

    def report(self) -> dict[str, Any]:
        """Return the report of a finished build."""
        report: dict[str, Any] = read_json(self.file(REPORT))
        return report


def as_pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return 8-bit images as floats in [0, 1]."""
    return images.astype(np.float64) / 255
