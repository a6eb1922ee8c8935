"""Versions of everything that a result can depend on."""

from __future__ import annotations

import importlib.metadata
import platform

from stars_deploy import __version__

#: In the order in which ``stars-deploy doctor`` shows them.
DISTRIBUTIONS = (
    "torch",
    "torchvision",
    "norse",
    "numpy",
    "h5py",
    "safetensors",
    "scikit-learn",
    "pydantic",
    "onnx",
    "onnxruntime",
    "nir",
    "lava-nc",
    "lava-dl",
)


def versions() -> dict[str, str]:
    """Return package versions by name; packages that are not installed are left out."""
    found = {"stars-deploy": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in DISTRIBUTIONS:
        version = installed_version(name)
        if version is not None:
            found[name] = version
    return found


def installed_version(name: str) -> str | None:
    """Return the version of a distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
