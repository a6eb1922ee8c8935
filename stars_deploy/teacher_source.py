"""From the text that names a network to the network itself, as a module without weights."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from stars_deploy.errors import StarsDeployError, TeacherError

ALLOWED = "digits, vgg:C1-C2-..., package.module:factory, path/to/file.py:factory, torchvision:NAME, or a .safetensors"


def make_module(spec: str, classes: int | None = None) -> nn.Module:
    """Make the network that ``package.module:factory``, ``file.py:factory`` or ``torchvision:NAME`` names.

    Parameters
    ----------
    spec : str
    classes : int, optional
        Number of classes of a torchvision network (its own default otherwise); a factory knows its own.

    Raises
    ------
    TeacherError
        If it is not found, raises, or makes something else than a module.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise TeacherError("--teacher", spec, ALLOWED)
    if place == "torchvision":
        return _torchvision_module(name, classes)
    factory = getattr(_imported(place), name, None)
    if not callable(factory):
        raise TeacherError("--teacher", f"{place} has no callable {name}", ALLOWED, "check the name after the colon")
    try:
        built = factory()
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise TeacherError(
            "--teacher", f"{spec}() raised {type(error).__name__}: {error}", "a factory without arguments"
        ) from error
    if not isinstance(built, nn.Module):
        raise TeacherError("--teacher", f"{spec}() made a {type(built).__name__}", "a torch.nn.Module")
    return built


def _torchvision_module(name: str, classes: int | None) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)  # classifiers only
    if name not in known:
        raise TeacherError("--teacher", f"torchvision has no classifier {name}", ", ".join(known))
    built: nn.Module = models.get_model(name, weights=None, **({"num_classes": classes} if classes else {}))
    return built


def _imported(place: str) -> Any:
    """Import a module by name or by file; its neighbours, and packages of the working folder, can be imported by it."""
    path = Path(place)
    is_file = place.endswith(".py")
    if is_file and not path.is_file():
        raise TeacherError("--teacher", f"{place} does not exist", ALLOWED, "check the path")
    try:
        with _import_path(path.parent if is_file else Path()):
            return _executed(path) if is_file else importlib.import_module(place)
    except StarsDeployError:
        raise
    except (Exception, SystemExit) as error:  # importing a stranger's file may raise anything
        raise TeacherError("--teacher", f"importing {place} raised {type(error).__name__}: {error}", ALLOWED) from error


def _executed(path: Path) -> Any:
    name = f"stars_deploy_teacher_{path.stem}"
    description = importlib.util.spec_from_file_location(name, path)
    if description is None or description.loader is None:
        raise TeacherError("--teacher", f"{path} cannot be imported", ALLOWED)
    module = importlib.util.module_from_spec(description)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        description.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
