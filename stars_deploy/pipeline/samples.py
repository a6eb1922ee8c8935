"""Samples to run a network on: real ones where there are any, else synthetic ones, else noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.data import EvaluationSet
from stars_deploy.errors import DataError
from stars_deploy.pipeline.directory import as_pixels
from stars_deploy.pipeline.models import Model
from stars_deploy.quantized import QuantizedGraph


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images, quantised [LSB] or as pixels, their labels if known, and where they are from.

    ``images`` is (N, *shape), or (N, T, *shape) for a frame at each timestep.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    source: str


def distinct_samples(model: Model, data: EvaluationSet | None, count: int) -> Samples:
    """Return up to `count` distinct quantised images: real ones, else synthetic ones, else noise.

    A network whose input is spikes gets noise of spikes, another frame at each timestep.

    Raises
    ------
    DataError
        If there are not even two distinct images.
    """
    graph = model.graph
    labels: npt.NDArray[np.int64] | None = None
    pixels: npt.NDArray[Any]
    if data is not None:
        pixels, labels, source = data.images, data.labels, data.name
    elif model.directory is not None:
        pixels, source = as_pixels(model.directory.images().held_out), "held-out synthetic images"
    elif takes_spikes(graph):
        # Whatever the scale of such an input is, its payloads are 0 and 1.
        pixels = noise_spikes(count, graph.timesteps, graph.input.shape) / graph.input.scale
        source = "noise of spikes"
    else:
        # Pixels of [0, 1] are what a scale and an offset of biases are for.
        largest_pixel = 1.0 if graph.input.biases else graph.input.precision.high / graph.input.scale
        pixels, source = noise_images(count, graph.input.shape) * largest_pixel, "noise"
    steps = graph.input.quantize(pixels[: 8 * count])
    _, first = np.unique(steps.reshape(len(steps), -1), axis=0, return_index=True)
    chosen = np.sort(first)[:count]
    if len(chosen) < 2:
        raise DataError(source, f"{len(chosen)} distinct images", "at least 2 distinct images to verify with")
    return Samples(images=steps[chosen], labels=None if labels is None else labels[chosen], source=source)


def takes_spikes(graph: QuantizedGraph) -> bool:
    """Whether the input's payloads are spikes: 0 or 1."""
    return not graph.input.biases and (graph.input.precision.low, graph.input.precision.high) == (0, 1)


def noise_images(count: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return noise images (`count`, *shape) in [0, 1], each of another contrast; always the same ones."""
    random = np.random.default_rng(0)
    contrast = random.random((count, *[1] * len(shape)))
    return random.random((count, *shape)) * contrast


def noise_spikes(count: int, timesteps: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return independent spikes, (`count`, `timesteps`, *shape) of 0 and 1, each sample of another rate."""
    random = np.random.default_rng(0)
    rate = random.random((count, 1, *[1] * len(shape)))
    return (random.random((count, timesteps, *shape)) < rate).astype(np.float64)
