"""The meaning of the integer graph, in plain NumPy: short, slow, obvious.

Every other way to execute a :class:`~stars_deploy.quantized.QuantizedGraph` must equal this one exactly. The update
equations are those of Lava's fixed-point CUBA LIF (lava-nc 0.10.0, ``PyLifModelBitAcc``), measured by running it.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from stars_deploy.convolution import correlate
from stars_deploy.errors import QuantizationError
from stars_deploy.quantized import (
    STATE_EXP,
    STATE_LIMIT,
    ConvProjection,
    IntArray,
    Population,
    Projection,
    QuantizedGraph,
    decayed,
)
from stars_deploy.targets.base import SpikeRecord

Pixel = TypeVar("Pixel", bound=np.generic)


def run_reference(graph: QuantizedGraph, images: IntArray) -> SpikeRecord:
    """Execute `graph` on a batch of quantised images.

    In order, at each timestep and for each population: where it is due, reset ``u = v = 0``; sum the activations ``a``
    of the projections that enter it;
    ``u = trunc(u (4096 - decay_u) / 4096) + (a << 6)``, wrapped once at +-2**23;
    ``v = clip(trunc(v (4096 - decay_v) / 4096) + u + (bias << 6), +-(2**23 - 1))``;
    spike where ``v > (vth << 6)``, strictly, and then ``v = 0``. ``trunc`` rounds toward zero. Where the input sets the
    biases of a population, its pixels are added to them.

    Parameters
    ----------
    graph : QuantizedGraph
    images : array of int, (B, *shape) or (T, B, *shape) [LSB]
        Presented at every timestep, or one frame for each.

    Returns
    -------
    SpikeRecord

    Raises
    ------
    QuantizationError
        If the images do not fit the graph's input.
    """
    check_images(graph, images)
    frames = present(graph, images.astype(np.int64))
    batch = frames.shape[1]
    emitted: dict[str, list[IntArray]] = {graph.input.name: list(frames)}
    emitted.update({population.name: [] for population in graph.populations})
    current = {p.name: np.zeros((batch, *p.shape), np.int64) for p in graph.populations}
    membrane = {p.name: np.zeros((batch, *p.shape), np.int64) for p in graph.populations}
    entering = {p.name: [part for item in graph.into(p.name) for part in item.by_delay()] for p in graph.populations}
    for step in range(graph.timesteps):
        for population in graph.populations:
            name = population.name
            if population.resets_at(step + 1):
                current[name], membrane[name] = np.zeros_like(current[name]), np.zeros_like(membrane[name])
            activation = np.zeros((batch, *population.shape), np.int64)
            for delay, synapses in entering[name]:
                if step >= delay:
                    activation += project(synapses, emitted[synapses.source][step - delay])
            bias = population.bias + (frames[step] if name == graph.input.biases else 0)
            current[name], membrane[name], spikes = update(population, current[name], membrane[name], activation, bias)
            emitted[name].append(spikes)
    spikes_of = {p.name: np.stack(emitted[p.name]).astype(bool) for p in graph.populations}
    return SpikeRecord(spikes=spikes_of, potential=membrane[graph.output.name].reshape(batch, graph.output.size))


def check_images(graph: QuantizedGraph, images: IntArray) -> None:
    """Refuse images that do not fit the input of `graph`.

    Raises
    ------
    QuantizationError
        For a shape other than (B, *shape) or (T, B, *shape), another T than the graph's, something else than integers,
        or payloads out of range.
    """
    if not graph.input.fits(images.shape):
        raise QuantizationError(graph.input.name, f"images of shape {images.shape}", f"(samples, {graph.input.shape})")
    if graph.input.over_time(images) and len(images) != graph.timesteps:
        raise QuantizationError(graph.input.name, f"{len(images)} frames", f"{graph.timesteps}, one for each timestep")
    if not np.issubdtype(images.dtype, np.integer):
        raise QuantizationError(graph.input.name, f"images of dtype {images.dtype}", "integers")
    graph.input.precision.check(images, graph.input.name)


def present(graph: QuantizedGraph, images: npt.NDArray[Pixel]) -> npt.NDArray[Pixel]:
    """Return what the input shows at each timestep, (T, B, *shape): the same image, or one frame after another."""
    return images if graph.input.over_time(images) else np.broadcast_to(images, (graph.timesteps, *images.shape))


def update(
    population: Population, u: IntArray, v: IntArray, activation: IntArray, bias: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Advance one population by one timestep; return the new current, membrane and spikes (0 or 1), [LSB]."""
    u = decayed(u, population.decay_u) + (activation << STATE_EXP)
    u = np.where(u > STATE_LIMIT, u - 2 * STATE_LIMIT, np.where(u <= -STATE_LIMIT, u + 2 * STATE_LIMIT, u))
    v = decayed(v, population.decay_v) + u + (bias << STATE_EXP)
    v = np.clip(v, -(STATE_LIMIT - 1), STATE_LIMIT - 1)
    spikes = v > np.left_shift(population.vth, STATE_EXP)
    return u, np.where(spikes, 0, v), spikes.astype(np.int64)


def project(projection: Projection, values: IntArray) -> IntArray:
    """Return the activation that a batch of source values, (B, *source shape), makes in the target.

    Products are summed in float64, where they are exact: |weight| < 2**9, |value| < 2**24 and fewer than 2**20
    terms.
    """
    weight, numbers = projection.weight.astype(np.float64), values.astype(np.float64)
    if isinstance(projection, ConvProjection):
        sums = correlate(numbers, weight, projection.stride, projection.padding, projection.dilation, projection.groups)
    else:
        sums = numbers.reshape(len(numbers), -1) @ weight.T
    activation: IntArray = np.rint(sums).astype(np.int64)
    return activation
