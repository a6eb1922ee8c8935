"""Random networks that a NetX file can hold and Lava executes exactly, with images: what the oracle tests run.

Imported by tests as ``from netx_networks import random_case``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stars_deploy.errors import TargetError
from stars_deploy.graph import convolved_size
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    DECAY_ONE,
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    IntArray,
    Population,
    QuantizedGraph,
    QuantizedInput,
)
from stars_deploy.targets.netx_writer import as_chain


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network as its file holds it (synchronous), what it is shown, and how it runs."""

    seed: int
    graph: QuantizedGraph
    images: IntArray
    pipelined: bool
    reset_interval: int = 0
    reset_offset: int = 0

    @property
    def timed(self):
        """The graph in the timing it runs in."""
        return pipelined(self.graph, self.reset_interval, self.reset_offset) if self.pipelined else self.graph


def pipelined(graph, reset_interval=0, reset_offset=0):
    """Return `graph` in Lava's global time: each synapse sends one step late, NetX adds one reset offset a layer."""
    projections = [
        replace(item, delay=item.delay + 1) if item.source != item.target else item for item in graph.projections
    ]
    populations = [
        replace(item, reset_interval=reset_interval, reset_offset=reset_offset + 1 + index)
        for index, item in enumerate(graph.populations)
    ]
    if not reset_interval:
        populations = list(graph.populations)
    return replace(graph, projections=tuple(projections), populations=tuple(populations))


def random_case(seed):
    """Return the :class:`Case` of `seed`, always the same."""
    rng = np.random.default_rng(seed)
    while True:
        draft = _Draft(rng)
        try:
            graph = draft.graph()
            as_chain(graph)
        except TargetError:
            continue  # weights that Lava would alter
        in_flight = draft.loops or any(np.max(item.delay) for item in graph.projections)
        late = bool(in_flight or rng.random() < 0.25)
        interval = int(rng.integers(1, graph.timesteps + 3)) if late and rng.random() < 0.4 else 0
        offset = int(rng.integers(0, 5)) if interval else 0
        return Case(
            seed=seed,
            graph=graph,
            images=draft.images(graph, 2 if late else int(rng.integers(2, 5))),
            pipelined=late,
            reset_interval=interval,
            reset_offset=offset,
        )


class _Draft:
    def __init__(self, rng):
        self.rng = rng
        self.biased = rng.random() < 0.3
        self.flat = rng.random() < 0.3
        self.loops = rng.random() < 0.25
        self.delays = rng.random() < (0.4 if self.loops else 0.25)
        self.extreme = rng.random() < 0.4  # large weights, biases at their limits, states that wrap and clip
        self.leaky = rng.choice(["plain", "leaky", "neuron"])
        self.bits = int(rng.choice([1, 1, 2, 4, 8, 8, 12]))
        self.signed = self.bits > 1 and rng.random() < 0.25

    def up_to(self, most):
        return int(self.rng.integers(1, most + 1))

    def graph(self):
        rng = self.rng
        shape = (self.up_to(12),) if self.flat else (self.up_to(4), self.up_to(7) + 1, self.up_to(7) + 1)
        precision = Precision(bits=16, signed=True) if self.biased else Precision(bits=self.bits, signed=self.signed)
        image = QuantizedInput(
            name="image",
            shape=shape,
            precision=precision,
            scale=float(self.up_to(200)),
            offset=float(rng.integers(-50, 50)) if self.biased else 0.0,
            biases="p0" if self.biased else "",
        )
        populations, projections, source, strength = [], [], "image", 30.0 * (1 << self.bits >> 1 or 1)
        if self.biased:
            vth = int(rng.choice([0, 40, 300, 3000]))
            populations.append(self.population("p0", shape, vth, bias=False))
            source = "p0"
        for index in range(len(populations), len(populations) + self.up_to(3)):
            name = f"p{index}"
            projection = self.conv(source, name, shape) if len(shape) == 3 and rng.random() < 0.7 else None
            projection = projection or self.dense(source, name, int(np.prod(shape)), self.up_to(8))
            shape = projection.output_shape(shape)
            projections.append(projection)
            if source != "image":
                strength = 30.0
            if self.loops and len(shape) == 1 and rng.random() < 0.8:
                projections.append(self.loop(name, projection))
            populations.append(self.population(name, shape, self.threshold(strength)))
            source = name
        self.loops = any(item.source == item.target for item in projections)
        return QuantizedGraph(
            input=image,
            populations=tuple(populations),
            projections=tuple(projections),
            timesteps=int(
                rng.choice([1, 2, 3, 4, 5, 8, rng.integers(9, 41), 40], p=[0.1, 0.1, 0.2, 0.2, 0.15, 0.1, 0.1, 0.05])
            ),
        )

    def weight(self, source, shape):
        rng = self.rng
        high = int(rng.choice([3, 20, 127]))
        kind = rng.choice(["mixed", "excitatory", "inhibitory"], p=[0.8, 0.15, 0.05])
        weight = rng.integers(-high, high + 1, shape)
        if kind != "mixed":
            weight = np.abs(weight) if kind == "excitatory" else -np.abs(weight)
        if self.extreme and source == "image" and self.bits > 2:
            if len(shape) == 2:
                weight = weight * int(rng.choice([1, 2]))
            else:  # up to what a leaking current may get
                largest = np.abs(weight).reshape(len(weight), -1).sum(axis=1).max() << self.bits
                weight = weight << max(0, int((1 << 18) // max(largest, 1)).bit_length() - 1)
        return np.where(rng.random(shape) < 0.15, 0, weight)

    def conv(self, source, target, shape):
        rng, channels = self.rng, shape[0]
        kernel, dilation = (tuple(int(n) for n in rng.integers(1, most + 1, 2)) for most in (3, 2))
        padding = tuple(int(n) for n in rng.integers(0, 3, 2))
        stride = tuple(int(n) for n in rng.integers(1, 4, 2)) if rng.random() < 0.5 else (1, 1)
        made = [convolved_size(*args) for args in zip(shape[1:], kernel, stride, padding, dilation, strict=True)]
        if min(made) < 1:
            return None
        groups = int(rng.choice([n for n in range(1, channels + 1) if channels % n == 0]))
        weight = self.weight(source, (groups * self.up_to(3), channels // groups, *kernel))
        return ConvProjection(
            name=f"{target}.w", source=source, target=target, weight=weight, precision=Precision(bits=24, signed=True),
            stride=stride, padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip

    def dense(self, source, target, size, features):
        delay = 0
        if self.delays and self.rng.random() < 0.7:
            delay = self.rng.integers(0, self.up_to(5) + 1, (features, size))
        weight = self.weight(source, (features, size))
        if self.loops and self.delays:
            # A delayed loop: one matrix of delays for both, and weights that NetX does not scale.
            weight = self.weight(source, (size, size))
            delay = delay if np.ndim(delay) == 0 else self.rng.integers(0, 4, (size, size))
            weight.flat[0] = -200
            weight = weight // 2 * 2
        return DenseProjection(
            name=f"{target}.w", source=source, target=target, weight=weight, precision=Precision(bits=9, signed=True),
            delay=delay,
        )  # fmt: skip

    def loop(self, name, forward):
        features = len(forward.weight)
        weight = self.weight(name, (features, features))
        if self.delays:
            weight = weight // 2 * 2
        delayed = np.max(forward.delay) > 0
        return DenseProjection(
            name=f"{name}.loop", source=name, target=name, weight=weight, precision=Precision(bits=9, signed=True),
            delay=np.broadcast_to(forward.delay, weight.shape) + 1 if delayed else 1,
        )  # fmt: skip

    def threshold(self, strength):
        kind = self.rng.random()
        if kind < (0.4 if self.extreme else 0.8):
            return int(self.rng.integers(1, max(2, int(min(3 * strength, VTH_NEVER)))))
        return int(self.rng.choice([0, VTH_NEVER - 1, VTH_NEVER]))

    def population(self, name, shape, vth, bias=True):
        rng = self.rng
        biases = np.zeros(shape, np.int64)
        if bias and rng.random() < 0.8:
            spread = 1 << 15 if self.extreme else 40
            biases = np.clip(rng.integers(-spread, spread + 1, shape), -(1 << 15), (1 << 15) - 1)
            if self.extreme:
                biases.flat[0] = rng.choice([-(1 << 15), (1 << 15) - 1])
        if rng.random() < 0.05:
            biases = np.full(shape, -(1 << 15)) if bias else biases
        return Population(
            name=name,
            shape=shape,
            decay_u=self.current_decay(shape) if bias else DECAY_ONE,  # nothing enters the currents of an input layer
            decay_v=self.decay(shape),
            vth=self.thresholds(vth, shape),
            bias=biases,
            scale=0.25,
        )

    def thresholds(self, vth, shape):
        """Return one threshold, or one for each neuron where decays are of each neuron as well."""
        if self.leaky != "neuron" or vth == VTH_NEVER:
            return vth
        return np.minimum(vth + np.arange(np.prod(shape)) % 5, VTH_NEVER).reshape(shape)

    def current_decay(self, shape):
        return self.decay(shape) if self.leaky != "plain" else int(self.rng.choice([DECAY_ONE, DECAY_ONE, 0]))

    def decay(self, shape):
        rng = self.rng
        if self.leaky == "neuron" and rng.random() < 0.7:
            return rng.choice([0, 1, 4095, DECAY_ONE, *rng.integers(0, DECAY_ONE + 1, 8)], shape)
        return int(rng.choice([0, 1, 4095, DECAY_ONE, 1024, rng.integers(0, DECAY_ONE + 1)]))

    def images(self, graph, samples):
        """Return images of which at least two samples differ; often one is silent or saturated."""
        rng, over_time = self.rng, self.rng.random() < 0.4
        shape = (graph.timesteps, samples, *graph.input.shape) if over_time else (samples, *graph.input.shape)
        extremes = [0, graph.input.precision.low, graph.input.precision.high]
        while True:
            images = self.pixels(graph.input.precision, shape)
            by_sample = np.moveaxis(images, int(over_time), 0)
            if rng.random() < 0.5:
                by_sample[0] = rng.choice(extremes)
            if rng.random() < 0.2:
                by_sample[1] = rng.choice(extremes)
            if len(np.unique(by_sample.reshape(samples, -1), axis=0)) > 1:
                return images

    def pixels(self, precision, shape):
        rng = self.rng
        if self.biased:
            spread = int(rng.choice([60, 2000, precision.high]))
            return rng.integers(-spread, spread + 1, shape)
        images = rng.integers(precision.low, precision.high + 1, shape)
        return images * (rng.random(shape) < rng.choice([1.0, 0.6, 0.3]))
