"""The meaning of the integer graph, in plain NumPy: short, slow, obvious.

Every other way to execute a :class:`~stars_deploy.quantized.QuantizedGraph` must equal this one exactly. The update
equations are those of Lava's fixed-point CUBA LIF (lava-nc 0.10.0, ``PyLifModelBitAcc``), measured by running it.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from stars_deploy.errors import QuantizationError
from stars_deploy.quantized import (
    DECAY_BITS,
    DECAY_ONE,
    STATE_EXP,
    STATE_LIMIT,
    ConvProjection,
    DenseProjection,
    IntArray,
    Population,
    Projection,
    QuantizedGraph,
)
from stars_deploy.targets.base import SpikeRecord


def run_reference(graph: QuantizedGraph, images: IntArray) -> SpikeRecord:
    """Execute `graph` on a batch of quantised images.

    In order, at each timestep and for each population: sum the activations ``a`` of the projections that enter it;
    ``u = trunc(u (4096 - decay_u) / 4096) + (a << 6)``, wrapped once at +-2**23;
    ``v = clip(trunc(v (4096 - decay_v) / 4096) + u + (bias << 6), +-(2**23 - 1))``;
    spike where ``v > (vth << 6)``, strictly, and then ``v = 0``. ``trunc`` rounds toward zero.

    Parameters
    ----------
    graph : QuantizedGraph
    images : array of int, (B, C, H, W) [LSB]
        Presented at every timestep.

    Returns
    -------
    SpikeRecord

    Raises
    ------
    QuantizationError
        If the images do not fit the graph's input.
    """
    if images.ndim != len(graph.input.shape) + 1 or images.shape[1:] != graph.input.shape:
        raise QuantizationError(graph.input.name, f"images of shape {images.shape}", f"(samples, {graph.input.shape})")
    graph.input.precision.check(images, graph.input.name)
    batch = images.shape[0]
    emitted: dict[str, list[IntArray]] = {graph.input.name: [images] * graph.timesteps}
    emitted.update({population.name: [] for population in graph.populations})
    current = {p.name: np.zeros((batch, *p.shape), np.int64) for p in graph.populations}
    membrane = {p.name: np.zeros((batch, *p.shape), np.int64) for p in graph.populations}
    for step in range(graph.timesteps):
        for population in graph.populations:
            name = population.name
            activation = np.zeros((batch, *population.shape), np.int64)
            for projection in graph.into(name):
                if step >= projection.delay:
                    activation += project(projection, emitted[projection.source][step - projection.delay])
            current[name], membrane[name], spikes = update(population, current[name], membrane[name], activation)
            emitted[name].append(spikes)
    spikes_of = {p.name: np.stack(emitted[p.name]).astype(bool) for p in graph.populations}
    return SpikeRecord(spikes=spikes_of, potential=membrane[graph.output.name].reshape(batch, -1))


def update(
    population: Population, u: IntArray, v: IntArray, activation: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Advance one population by one timestep; return the new current, membrane and spikes (0 or 1), [LSB]."""
    u = decayed(u, population.decay_u) + (activation << STATE_EXP)
    u = np.where(u > STATE_LIMIT, u - 2 * STATE_LIMIT, np.where(u <= -STATE_LIMIT, u + 2 * STATE_LIMIT, u))
    v = decayed(v, population.decay_v) + u + (population.bias << STATE_EXP)
    v = np.clip(v, -(STATE_LIMIT - 1), STATE_LIMIT - 1)
    spikes = v > (population.vth << STATE_EXP)
    return u, np.where(spikes, 0, v), spikes.astype(np.int64)


def decayed(state: IntArray, decay: int) -> IntArray:
    """Return ``trunc(state * (4096 - decay) / 4096)``, rounded toward zero."""
    return np.sign(state) * ((np.abs(state) * (DECAY_ONE - decay)) >> DECAY_BITS)


def project(projection: Projection, values: IntArray) -> IntArray:
    """Return the activation that a batch of source values, (B, *source shape), makes in the target.

    Products are summed in float64, where they are exact: |weight| < 2**9, |value| < 2**8 and fewer than 2**35 terms.
    """
    apply = partial(_convolved, projection) if isinstance(projection, ConvProjection) else partial(_dense, projection)
    return np.rint(apply(values.astype(np.float64))).astype(np.int64)


def _dense(projection: DenseProjection, values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1) @ projection.weight.T.astype(np.float64)


def _convolved(projection: ConvProjection, values: np.ndarray) -> np.ndarray:
    """Cross-correlate by gathering, for each kernel position, the input that it meets."""
    out, per_group, rows, columns = projection.weight.shape
    _, height, width = projection.output_shape(values.shape[1:])
    (pad_y, pad_x), (step_y, step_x), (dilate_y, dilate_x) = projection.padding, projection.stride, projection.dilation
    padded = np.pad(values, ((0, 0), (0, 0), (pad_y, pad_y), (pad_x, pad_x)))
    groups = projection.groups
    weight = projection.weight.astype(np.float64).reshape(groups, out // groups, per_group, rows, columns)
    result = np.zeros((groups, out // groups, len(values), height, width))
    for y in range(rows):
        for x in range(columns):
            seen = padded[
                :,
                :,
                y * dilate_y : y * dilate_y + step_y * (height - 1) + 1 : step_y,
                x * dilate_x : x * dilate_x + step_x * (width - 1) + 1 : step_x,
            ]
            for group in range(groups):
                channels = seen[:, group * per_group : (group + 1) * per_group]
                result[group] += np.tensordot(weight[group, :, :, y, x], channels, axes=(1, 1))
    return result.reshape(out, len(values), height, width).swapaxes(0, 1)
