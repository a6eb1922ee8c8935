"""Opens the integer network of a request and makes its images: the same ones in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peers.ann_weights import load_images
from stars_deploy.quantized import ConvProjection, QuantizedGraph
from stars_deploy.serde import load_quantized
from stars_deploy.targets.netx_reader import read_netx


def open_network(request: dict[str, Any]) -> tuple[QuantizedGraph, np.ndarray[Any, Any]]:
    """Return the graph and its images, (B, *shape) [LSB].

    A NetX file whose image is the bias of its first neurons gets uniform noise from 0 to twice their threshold, so
    that they fire at medium rates; one that takes spikes gets uniform noise over the whole range of its input.
    """
    if not request["file"]:
        graph = load_quantized(Path(request["folder"]) / "model.npz")
        return graph, graph.input.quantize(load_images(request))
    graph = read_netx(Path(request["file"]), request["timesteps"])
    low, high = graph.input.precision.low, graph.input.precision.high
    if graph.input.biases:
        low, high = 0, min(high, 2 * int(np.max(graph.population(graph.input.biases).vth)))
    generator = np.random.default_rng(request["seed"])
    return graph, generator.integers(low, high + 1, (request["batch"], *graph.input.shape))


def count_macs(graph: QuantizedGraph) -> tuple[int, int]:
    """Return the multiply-accumulates of one image: in projections from the input, and in the others each timestep.

    Dense equivalents, padding included: every kernel position of every output. A constant image makes the same
    activation at every timestep, so the first number counts once.
    """
    first = rest = 0
    for projection in graph.projections:
        macs = projection.weight.size
        if isinstance(projection, ConvProjection):
            _, height, width = graph.shape_of(projection.target)
            macs *= height * width
        if projection.source == graph.input.name:
            first += macs
        else:
            rest += macs
    return first, rest
