"""Tensors in files: safetensors both ways, and torch files of strangers only as far as they are safe."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stars_deploy.artifacts import existing_file, written_whole
from stars_deploy.errors import ArtifactError, FormatError, TeacherError

#: Below this version ``torch.load(weights_only=True)`` can be made to run code (CVE-2025-32434).
SAFE_TORCH = (2, 6)
#: Keys under which training scripts nest the state dict in a checkpoint.
NESTED_UNDER = ("state_dict", "model_state_dict", "model")
#: What wrappers put before every name: DataParallel and DistributedDataParallel, and torch.compile.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
ALLOWED = ".safetensors, or .pt/.pth with a plain state dict"
#: Where in the metadata of a safetensors file our description is.
DESCRIPTION_KEY = "stars_deploy"


def write_tensors(tensors: Mapping[str, Tensor], description: Mapping[str, Any], path: str | Path) -> None:
    """Write tensors and a JSON description as safetensors, whole or not at all.

    Raises
    ------
    ArtifactError
        If the file cannot be written.
    """
    # Clones, because safetensors refuses tensors that share memory.
    copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    content = save(copies, metadata={DESCRIPTION_KEY: json.dumps(description, allow_nan=False)})
    with written_whole(path) as draft:
        draft.write_bytes(content)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what :func:`write_tensors` wrote: the tensors, and the description (empty if there is none).

    Raises
    ------
    ArtifactError
        If the file is missing, empty or a Git-LFS pointer.
    FormatError
        If it is not safetensors, is truncated, or its description is not a JSON object.
    """
    file = existing_file(path)
    try:
        with safe_open(str(file), framework="pt") as archive:
            description = json.loads((archive.metadata() or {}).get(DESCRIPTION_KEY, "{}"))
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise FormatError(
            str(file), f"cannot be read ({_first_line(error)})", "a whole .safetensors", "copy or write it again"
        ) from error
    if not isinstance(description, dict):
        raise FormatError(str(file), "metadata that are not a JSON object", "what stars-deploy writes")
    return tensors, description


def read_weights(path: str | Path, *, trust: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a network's weights, and the description that ``stars-deploy`` wrote beside them, if it did.

    Checkpoints that nest the weights under ``state_dict``, ``model_state_dict`` or ``model`` are understood.

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
    try:
        if Path(path).suffix == ".safetensors":
            return read_tensors(path)
        file = existing_file(path)
    except (ArtifactError, FormatError) as error:
        raise TeacherError(error.where, error.got, error.allowed or ALLOWED, error.remedy) from error
    if file.suffix not in (".pt", ".pth"):
        raise TeacherError(str(file), f"a {file.suffix or 'nameless'} file", ALLOWED)
    _check_safe_here(file, trust)
    state = _loaded_without_code(file)
    for key in NESTED_UNDER:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state:
        raise TeacherError(str(file), f"holds a {type(state).__name__} without weights", "a plain state dict")
    strange = [name for name, value in state.items() if not (isinstance(name, str) and _is_plain(value))]
    if strange:
        raise TeacherError(
            f"{file}:{strange[0]}", f"a {type(state[strange[0]]).__name__}", "names and dense tensors",
            "save model.state_dict() alone",
        )  # fmt: skip
    return dict(state), {}


def without_wrapper(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the prefix that DataParallel or torch.compile put before every name.

    A prefix is taken off only where every name has it and the network itself has no such names.
    """
    result = dict(state)
    for prefix in WRAPPER_PREFIXES:
        own = any(name.startswith(prefix) for name in expected)
        if result and not own and all(name.startswith(prefix) for name in result):
            result = {name.removeprefix(prefix): value for name, value in result.items()}
    return result


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
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


def _check_safe_here(file: Path, trust: bool) -> None:
    if _torch_version() < SAFE_TORCH and not trust:
        raise TeacherError(
            str(file),
            f"a torch file, and torch {torch.__version__} can be made to run code by one (CVE-2025-32434)",
            ".safetensors, or torch 2.6 and later",
            "convert it where you trust it: safetensors.torch.save_file(torch.load(FILE), 'weights.safetensors'); "
            "or add --trust-weights if you made the file yourself",
        )
    if zipfile.is_zipfile(file):
        # torch stores without compression: whatever unpacks to more than the file was made to fill memory.
        try:
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
        except zipfile.BadZipFile as error:
            raise _damaged(file, error) from error
        if unpacked > file.stat().st_size:
            raise TeacherError(str(file), f"unpacks to {unpacked} bytes", f"at most its {file.stat().st_size} bytes")


def _loaded_without_code(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TeacherError(
            str(file), "holds Python objects beside tensors (or is damaged); these could run code and are never loaded",
            ALLOWED, "where you trust it, save model.state_dict() alone, best as safetensors",
        ) from error  # fmt: skip
    except Exception as error:  # a damaged file raises whatever its decoder meets first
        raise _damaged(file, error) from error


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )


def _damaged(file: Path, error: Exception) -> TeacherError:
    return TeacherError(str(file), f"cannot be read ({_first_line(error)})", ALLOWED, "copy or export it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
