"""Weights from files: safetensors, and torch files only as far as they are safe."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import StarsDeployError, TeacherError

#: Below this version ``torch.load(weights_only=True)`` can be made to run code (CVE-2025-32434).
SAFE_TORCH = (2, 6)
ALLOWED = ".safetensors, or .pt/.pth with a plain state dict"


def read_weights(path: str | Path, *, trust: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` or of a torch state dict.

    Parameters
    ----------
    path : path
    trust : bool
        Load a torch file even where torch is older than 2.6, whose ``weights_only`` has a known hole.

    Raises
    ------
    TeacherError
        If the file is missing, damaged, unsafe here or not a state dict.
    """
    file = _present(path)
    if file.suffix == ".safetensors":
        try:
            with safe_open(str(file), framework="pt") as archive:
                return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118  (not a mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(file, error) from error
    if file.suffix not in (".pt", ".pth"):
        raise TeacherError(str(file), f"a {file.suffix or 'nameless'} file", ALLOWED)
    if _torch_version() < SAFE_TORCH and not trust:
        raise TeacherError(
            str(file),
            f"a torch file, and torch {torch.__version__} can be made to run code by one (CVE-2025-32434)",
            ".safetensors, or torch 2.6 and later",
            "convert it where you trust it: safetensors.torch.save_file(torch.load(FILE), 'weights.safetensors'); "
            "or add --trust-weights if you made the file yourself",
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(file, error) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TeacherError(str(file), f"holds a {type(state).__name__}", "a plain state dict of tensors")
    return state


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return the description that ``stars-deploy`` wrote beside the weights, or an empty one."""
    file = _present(path)
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(str(file), framework="pt") as archive:
            metadata = json.loads((archive.metadata() or {}).get("stars_deploy", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if not isinstance(metadata, dict):
        raise TeacherError(str(file), "metadata that are not a JSON object", "what stars-deploy writes")
    return metadata


def check_finite(state: dict[str, Tensor], where: str) -> None:
    """Refuse tensors with NaN or infinite values, naming the first.

    Raises
    ------
    TeacherError
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise TeacherError(
                f"{where}:{name}", f"{bad} of {value.numel()} values are NaN or infinite", "finite weights",
                "train or export the network again",
            )  # fmt: skip


def _present(path: str | Path) -> Path:
    try:
        return existing_file(path)
    except StarsDeployError as error:
        raise TeacherError(error.where, error.got, error.allowed, error.remedy) from error


def _damaged(file: Path, error: Exception) -> TeacherError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return TeacherError(str(file), f"cannot be read ({first_line})", ALLOWED, "copy or export it again")


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
