"""The doors out of the integer graph: file formats and runtimes, each written, read back and executed.

Nothing heavy is imported here: a target's module (and with it h5py) is loaded when the target is first looked up, and
Lava only inside the process that runs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import cast

from stars_deploy.errors import TargetError
from stars_deploy.targets.base import Target

#: The module that holds each target, as its ``TARGET``.
_MODULES: Mapping[str, str] = {
    "netx": "stars_deploy.targets.netx",
    "lava": "stars_deploy.targets.lava",
    "onnx": "stars_deploy.targets.onnx_model",
    "nir": "stars_deploy.targets.nir_graph",
}


class _Registry(Mapping[str, Target]):
    """Targets by name, imported when they are first looked up."""

    def __getitem__(self, name: str) -> Target:
        return cast(Target, importlib.import_module(_MODULES[name]).TARGET)

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


#: Every target by name.
TARGETS: Mapping[str, Target] = _Registry()


def find_target(name: str) -> Target:
    """Return the target called `name`.

    Raises
    ------
    TargetError
        If there is none, listing those that exist.
    """
    if name not in _MODULES:
        raise TargetError("target", repr(name), ", ".join(TARGETS), "choose one of them with --target")
    return TARGETS[name]
