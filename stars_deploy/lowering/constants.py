"""Biases of currents: the chip's biases act on membranes, so that these are synapses that are always active.

One neuron fires at every timestep; from it comes one weight for each neuron whose current has a bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from stars_deploy.graph import FloatArray
from stars_deploy.lowering.chains import fresh_name
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    DECAY_ONE,
    ConvProjection,
    DenseProjection,
    IntArray,
    Population,
    Projection,
    QuantizedInput,
)

#: What the neuron that always fires is called, where no node has that name.
ONES = "ones"


@dataclass(frozen=True, kw_only=True)
class CurrentBias:
    """What a layer's current gets at every timestep.

    Parameters
    ----------
    name : str
        The synapses from the neuron that always fires.
    source : str
        That neuron, the same for all layers.
    feed : str
        The synapses of weight 0 from the input to that neuron: a population needs some.
    values : array, of the population's shape [unit of potential]
        With the gain of the population, as weights are.
    """

    name: str
    source: str
    feed: str
    values: FloatArray

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return float(np.abs(self.values).max())


def name_biases(values: Mapping[str, FloatArray], names: Iterable[str]) -> dict[str, CurrentBias]:
    """Return the current bias of each population in `values`; what it needs gets names that are not in `names`."""
    taken = set(names)
    source = fresh_name(ONES, taken)
    feed = fresh_name(f"{source}.input", taken)
    return {
        population: CurrentBias(name=fresh_name(f"{population}.bias", taken), source=source, feed=feed, values=bias)
        for population, bias in values.items()
    }


def bias_projection(bias: CurrentBias, target: str, scale: float, precision: Precision) -> Projection:
    """Return the synapses ``clip(rint(b S))`` from the neuron that always fires.

    For a population of (C, H, W) they are a kernel of (C, 1, H, W) over the one element, padded by (H - 1, W - 1): the
    neuron at (y, x) meets it with the weight at (H - 1 - y, W - 1 - x).
    """
    steps = np.clip(np.rint(bias.values * scale), precision.low, precision.high).astype(np.int64)
    if steps.ndim == 1:
        return DenseProjection(
            name=bias.name, source=bias.source, target=target, weight=steps[:, None], precision=precision
        )
    return ConvProjection(
        name=bias.name,
        source=bias.source,
        target=target,
        weight=steps[:, None, ::-1, ::-1],
        precision=precision,
        padding=(steps.shape[1] - 1, steps.shape[2] - 1),
    )


def bias_steps(projection: Projection) -> IntArray:
    """Return what :func:`bias_projection` adds to each neuron's current, of the population's shape [LSB]."""
    steps: IntArray = projection.weight[:, 0]
    return steps if steps.ndim == 1 else steps[:, ::-1, ::-1]


def always_firing(
    name: str, spatial: bool, scale: float = 1.0, reset_interval: int = 0, reset_offset: int = 0
) -> Population:
    """Return the neuron that fires at every timestep: it keeps nothing, and its bias is above its threshold."""
    shape = (1, 1, 1) if spatial else (1,)
    return Population(
        name=name,
        shape=shape,
        decay_u=DECAY_ONE,
        decay_v=DECAY_ONE,
        vth=1,
        bias=np.full(shape, 2),
        reset_interval=reset_interval,
        reset_offset=reset_offset,
        scale=scale,
    )


def zero_projection(name: str, source: QuantizedInput, target: Population, precision: Precision) -> Projection:
    """Return synapses of weight 0 from the input to one neuron."""
    if len(target.shape) == 1:
        weight = np.zeros((1, int(np.prod(source.shape))), np.int64)
        return DenseProjection(name=name, source=source.name, target=target.name, weight=weight, precision=precision)
    kernel = np.zeros((1, *source.shape), np.int64)
    return ConvProjection(name=name, source=source.name, target=target.name, weight=kernel, precision=precision)
