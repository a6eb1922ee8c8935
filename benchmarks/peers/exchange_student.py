"""Makes what benchmarks/exchange.py measures: an integer network, images, and the float ANN of the same topology.

The network is that of a built directory, or one of the Fashion-MNIST topology with random weights, its thresholds set
so that each layer fires at the rate asked for.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stars_deploy.engine import FastEngine
from stars_deploy.populations import VTH_NEVER
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.serde import load_quantized, save_graph

SHAPE = (1, 28, 28)
CLASSES = 10
#: Channels and strides of the convolutions, 3x3 with padding 1.
CONVOLUTIONS = ((32, 1), (64, 2), (128, 2))
#: Images on which thresholds are set.
CALIBRATION_IMAGES = 16


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Write ``model.npz``, ``images.npy``, ``ann.npz`` and ``ann.json``; describe the network."""
    folder, rng = Path(request["folder"]), np.random.default_rng(request["seed"])
    if request["model"]:
        graph = load_quantized(Path(request["model"]) / "model.npz")
    else:
        graph = make_student(rng, request["timesteps"], request["decay"], request["rate"])
    np.save(folder / "images.npy", _images(graph, request["model"], request["images"], rng))
    save_graph(graph, folder / "model.npz")
    return {
        "layers": [f"{population.name} {population.shape}" for population in graph.populations],
        "timesteps": graph.timesteps,
        "weights": sum(projection.weight.size for projection in graph.projections),
        "ann": write_ann(graph, folder),
    }


def _images(graph: QuantizedGraph, model: str, count: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return float32 images: the held-out synthetic ones of a build, which drive it as real ones do, else noise."""
    synthetic = Path(model) / "synthetic.npz"
    if model and synthetic.is_file():
        with np.load(synthetic, allow_pickle=False) as archive:
            held_out = archive["held_out"]
        return (held_out[np.arange(count) % len(held_out)] / 255).astype(np.float32)
    low, high = ((limit - graph.input.offset) / graph.input.scale for limit in (0, graph.input.precision.high))
    noise = rng.random((count, *graph.input.shape))
    noise *= rng.random(noise.shape) < 0.5
    return (low + (high - low) * noise).astype(np.float32)


def make_student(rng: np.random.Generator, timesteps: int, decay: int, rate: float) -> QuantizedGraph:
    """Return a network of random weights; each membrane loses ``decay / 4096`` a timestep."""
    source = QuantizedInput(name="image", shape=SHAPE)
    images = rng.integers(0, 256, (CALIBRATION_IMAGES, *SHAPE)) * (rng.random((CALIBRATION_IMAGES, *SHAPE)) < 0.5)
    populations: list[Population] = []
    projections: list[Any] = []
    before, shape = source.name, SHAPE
    for index, (channels, stride) in enumerate(CONVOLUTIONS):
        name = f"lif{index + 1}"
        weight = _weights(rng, (channels, shape[0], 3, 3))
        conv = ConvProjection(
            name=f"conv{index + 1}", source=before, target=name, weight=weight, stride=(stride, stride), padding=(1, 1)
        )
        shape = conv.output_shape(shape)
        bias = np.broadcast_to(np.rint(rng.normal(0, 5, (channels, 1, 1))).astype(int), shape)
        projections.append(conv)
        fresh = Population(name=name, shape=shape, decay_v=decay, bias=bias, vth=VTH_NEVER)
        populations.append(fresh)
        part = QuantizedGraph(
            input=source, populations=tuple(populations), projections=tuple(projections), timesteps=timesteps
        )
        populations[-1] = _set_rate(part, images, rate)
        before = name
    readout = DenseProjection(
        name="dense", source=before, target="readout", weight=_weights(rng, (CLASSES, int(np.prod(shape))))
    )
    populations.append(Population(name="readout", shape=(CLASSES,), bias=np.zeros(CLASSES, np.int64), scale=100.0))
    return QuantizedGraph(
        input=source, populations=tuple(populations), projections=(*projections, readout), timesteps=timesteps
    )


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.clip(np.rint(rng.normal(0, 30, shape)), -127, 127).astype(np.int64)


def _set_rate(graph: QuantizedGraph, images: np.ndarray[Any, Any], rate: float) -> Population:
    """Return the last population with the least threshold at which it fires at most at `rate`."""
    low, high = 0, VTH_NEVER
    while high - low > 1:
        middle = (low + high) // 2
        population = replace(graph.output, vth=middle)
        trial = replace(graph, populations=(*graph.populations[:-1], population))
        spikes = FastEngine(trial, threads=1).run(images, record=[population.name]).spikes[population.name]
        low, high = (middle, high) if spikes.mean() > rate else (low, middle)
    return replace(graph.output, vth=high)


def write_ann(graph: QuantizedGraph, folder: Path) -> str:
    """Write the ANN that has ReLU where the network has neurons; return why not, where it is no such chain."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    strides: list[int] = []
    for projection in graph.projections[:-1]:
        if not isinstance(projection, ConvProjection) or projection.padding != (1, 1) or projection.groups != 1:
            return "the network is no chain of 3x3 convolutions with padding 1"
        arrays[f"conv{len(strides)}.weight"] = (projection.weight / 128).astype(np.float32)
        arrays[f"conv{len(strides)}.bias"] = np.zeros(len(projection.weight), np.float32)
        strides.append(projection.stride[0])
    if not isinstance(graph.projections[-1], DenseProjection):
        return "the network ends in no dense layer"
    arrays["dense.weight"] = (graph.projections[-1].weight / 128).astype(np.float32)
    arrays["dense.bias"] = np.zeros(graph.output.size, np.float32)
    np.savez(folder / "ann.npz", **arrays)  # type: ignore[arg-type]  # its stub has an option that takes a bool
    channels = graph.input.shape[0]
    about = {
        "strides": strides,
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
        "shape": graph.input.shape,
        "decay": 0.0,
    }
    (folder / "ann.json").write_text(json.dumps(about), encoding="utf-8")
    return ""
