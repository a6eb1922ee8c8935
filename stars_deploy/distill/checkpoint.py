"""The state of a distillation as tensors and a header, written whole and read back without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stars_deploy.errors import ArtifactError, FormatError
from stars_deploy.weights import read_tensors, write_tensors

#: What Adam keeps for each parameter.
MOMENTS = frozenset({"step", "exp_avg", "exp_avg_sq"})


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything of a distillation that changes: by name, so that a file says what is whose."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    generators: Mapping[str, torch.Generator]


def collect(parts: Parts) -> dict[str, Tensor]:
    """Return the state of all parts, not copied."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in parts.modules.items():
        tensors.update({f"{prefix}/{name}": value for name, value in module.state_dict().items()})
    for prefix, optimizer in parts.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"{prefix}/{index}/{name}": torch.as_tensor(value) for name, value in state.items()})
    tensors.update({f"draws/{name}": generator.get_state() for name, generator in parts.generators.items()})
    return tensors


def distribute(tensors: Mapping[str, Tensor], parts: Parts) -> None:
    """Put a state that :func:`collect` returned back into all parts.

    Raises
    ------
    Exception
        Whatever torch says to a state that does not fit.
    """
    for prefix, module in parts.modules.items():
        module.load_state_dict(_under(prefix, tensors))
    for prefix, optimizer in parts.optimizers.items():
        _load_moments(optimizer, _under(prefix, tensors))
    for name, generator in parts.generators.items():
        generator.set_state(tensors[f"draws/{name}"])


def save_checkpoint(tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: Path) -> None:
    """Write a state, whole or not at all.

    Raises
    ------
    ArtifactError
        If the file cannot be written; an older one stays as it was.
    """
    write_tensors(tensors, {"distiller": header}, path)


def read_checkpoint(path: Path, fingerprint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and header of a checkpoint whose header says ``run: fingerprint``.

    Raises
    ------
    ArtifactError
        If it is missing or damaged, or belongs to another run.
    """
    try:
        tensors, description = read_tensors(path)
        header = description["distiller"]
        found = header["run"]
    except (FormatError, KeyError, TypeError) as error:
        raise unreadable(path, error) from error
    if found != fingerprint:
        raise ArtifactError(
            str(path), "belongs to a run with other settings, another teacher or seed",
            "the settings it was started with", "resume with the same options, or build without --resume",
        )  # fmt: skip
    return tensors, header


def unreadable(path: Path, error: Exception) -> ArtifactError:
    """Return the error that says that a checkpoint is of no use, and why."""
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return ArtifactError(str(path), f"not a readable checkpoint ({first_line})", remedy="build again without --resume")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _load_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load a state of Adam: none, as before the first step, or that of all its parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if state:
        _check_moments(state, parameters)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_moments(state: Mapping[int, Mapping[str, Tensor]], parameters: list[Tensor]) -> None:
    """Refuse a state that torch would take and fail on at the next step."""
    for index, parameter in enumerate(parameters):
        moments = state.get(index, {})
        if moments.keys() != MOMENTS or any(
            moments[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")
        ):
            raise ValueError(f"the optimiser's state of parameter {index} is not of this network")
