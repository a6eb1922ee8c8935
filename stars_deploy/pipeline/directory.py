"""The run directory: what a build leaves behind, and how a later command opens it."""

from __future__ import annotations

import shutil
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
PREVIEWS = "previews"
TENSORBOARD = "tensorboard"
IMAGES = "synthetic.npz"
FLOAT_GRAPH = "graph.npz"
MODEL = "model.npz"
NETX = "model.net"
ONNX = "model.onnx"
NIR = "model.nir"
REPORT = "report.json"
PAGE = "report.html"
MANIFEST = "manifest.json"
#: What a build leaves in its folder, beside its settings.
ARTIFACTS = (CHECKPOINT, STUDENT, IMAGES, HISTORY, FLOAT_GRAPH, MODEL, NETX, ONNX, NIR, REPORT, PAGE, MANIFEST)


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
        """Make the folder ready for `config`; nothing of another build, or of no build, is written over unasked.

        Raises
        ------
        ConfigError
            If it holds a build of other settings or files that are not a build's, and `overwrite` was not asked for;
            or if there is nothing to resume.
        """
        if resume and overwrite:
            raise ConfigError("--resume", "given together with --overwrite", "one of the two")
        if resume and not self.is_build():
            raise ConfigError("--resume", f"{self.path} holds no build", "a folder with an interrupted build")
        present = [name for name in ARTIFACTS if self.file(name).exists()]
        if overwrite:
            for name in present:
                self.file(name).unlink()
            for name in (PREVIEWS, TENSORBOARD):
                shutil.rmtree(self.file(name), ignore_errors=True)
        elif self.is_build() and self.config() != config:
            raise ConfigError(
                f"--out {self.path}", "holds a build with other settings", "an empty folder, or the same settings",
                "choose another --out, or add --overwrite",
            )  # fmt: skip
        elif present and not self.is_build():
            raise ConfigError(
                f"--out {self.path}", f"holds {', '.join(present)}, but no build", "an empty folder",
                "choose another --out, or add --overwrite",
            )  # fmt: skip
        save_config(config, self.file(CONFIG))

    def is_build(self) -> bool:
        """Whether a build was started here."""
        return self.file(CONFIG).is_file()

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

    def write_report(self, report: dict[str, Any]) -> None:
        """Write the report; the folder is finished only when it is sealed."""
        write_json(self.file(REPORT), report)

    def seal(self) -> None:
        """Write the manifest of everything in the folder, which ends a build."""
        self.file(CHECKPOINT).unlink(missing_ok=True)
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and not path.name.startswith("."))
        entries = {
            path.relative_to(self.path).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in files
        }
        write_json(self.file(MANIFEST), {"files": entries, "versions": versions()})

    def report(self) -> dict[str, Any]:
        """Return the report of a finished build."""
        report: dict[str, Any] = read_json(self.file(REPORT))
        return report


def as_pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return 8-bit images as floats in [0, 1]."""
    return images.astype(np.float64) / 255
