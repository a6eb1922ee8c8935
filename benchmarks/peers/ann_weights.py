"""Reads the float network that :mod:`peers.student` wrote; needs NumPy only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class AnnWeights:
    """3x3 convolutions with padding 1, each with weight, bias and stride, then one linear layer."""

    convolutions: tuple[tuple[Array, Array, int], ...]
    dense: tuple[Array, Array]
    shape: tuple[int, ...]
    mean: Array
    std: Array
    decay: float

    def normalized(self, images: Array) -> Array:
        """Return images in [0, 1] as the first convolution takes them."""
        normalized: Array = ((images - self.mean) / self.std).astype(np.float32)
        return normalized


def load_ann(folder: str) -> AnnWeights:
    """Read ``ann.npz`` and ``ann.json`` in `folder`."""
    about = json.loads((Path(folder) / "ann.json").read_text(encoding="utf-8"))
    with np.load(Path(folder) / "ann.npz") as arrays:
        convolutions = tuple(
            (arrays[f"conv{index}.weight"], arrays[f"conv{index}.bias"], stride)
            for index, stride in enumerate(about["strides"])
        )
        dense = arrays["dense.weight"], arrays["dense.bias"]
    return AnnWeights(
        convolutions=convolutions,
        dense=dense,
        shape=tuple(about["shape"]),
        mean=np.array(about["mean"], np.float32).reshape(-1, 1, 1),
        std=np.array(about["std"], np.float32).reshape(-1, 1, 1),
        decay=about["decay"],
    )


def load_images(request: dict[str, Any]) -> Array:
    """Return the first ``request["batch"]`` images, (B, C, H, W) in [0, 1]."""
    images: Array = np.load(Path(request["folder"]) / "images.npy", allow_pickle=False)
    return images[: request["batch"]]
