"""Random integer graphs with images: everything that the IR can say, in sizes that the reference runs in milliseconds.

Hypothesis draws the `Traits` (so that a failing graph shrinks to few features) and a seed; NumPy draws the rest.
Imported by tests as ``from random_graphs import graphs``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from stars_deploy.graph import convolved_size
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    DECAY_ONE,
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
)

#: Payloads, as (bits, signed): binary, graded, signed, wide.
PAYLOADS = ((1, False), (4, False), (8, False), (8, True), (16, True), (16, False), (24, False), (24, True))


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a random graph may have; the defaults are the plainest."""

    timesteps: int = 4
    batch: int = 2
    populations: int = 2
    width: int = 1  # times as many channels and features
    payload: tuple[int, bool] = (8, False)
    biased_by_image: bool = False
    flat_input: bool = False
    frames: bool = False
    residuals: int = 0
    loops: int = 0
    delays: str = "none"  # or scalar, array
    decays: str = "plain"  # or leaky, neuron
    biases: str = "none"  # or small, limit
    resets: bool = False
    images: str = "mixed"  # or empty, saturated


def traits(**fixed):
    """Strategy of :class:`Traits`, some of them fixed (a value) or drawn in another way (a strategy)."""
    drawn = {
        "timesteps": st.one_of(st.sampled_from([4, 1, 3, 2, 6, 8, 16, 33, 40]), st.integers(1, 40)),
        "batch": st.sampled_from([3, 2, 4, 1, 5, 6, 7, 8, 9]),
        "populations": st.sampled_from([2, 3, 4, 1, 5]),
        "width": st.sampled_from([1, 1, 1, 1, 1, 8, 24]),
        "payload": st.sampled_from(PAYLOADS),
        "biased_by_image": st.sampled_from([False] * 5 + [True]),
        "flat_input": st.sampled_from([False, False, True]),
        "frames": st.sampled_from([False, False, True]),
        "residuals": st.integers(0, 3),
        "loops": st.sampled_from([0, 2, 0, 1, 4]),
        "delays": st.sampled_from(["none", "scalar", "array"]),
        "decays": st.sampled_from(["plain", "leaky", "neuron"]),
        "biases": st.sampled_from(["none", "small", "limit"]),
        "resets": st.sampled_from([False, False, True]),
        "images": st.sampled_from(["mixed"] * 8 + ["empty", "saturated"]),
    }
    drawn.update(
        {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in fixed.items()}
    )
    return st.builds(Traits, **drawn)


def graphs(**fixed):
    """Strategy of a valid :class:`QuantizedGraph` and images for it, (B, *shape) or (T, B, *shape).

    A failing example is reported as the call of :func:`random_graph` that makes it.
    """
    return st.builds(random_graph, traits(**fixed), st.integers(0, 2**32 - 1))


def random_graph(kept, seed):
    """Return the graph and the images that `kept` (a :class:`Traits`) and `seed` stand for, always the same."""
    builder = _Builder(kept, np.random.default_rng(seed))
    graph = builder.graph()
    return graph, random_images(graph, kept, builder.rng)


@dataclass
class _Builder:
    kept: Traits
    rng: np.random.Generator
    shapes: dict = field(default_factory=dict)
    projections: list = field(default_factory=list)

    def graph(self):
        source = self._input()
        self.shapes[source.name] = source.shape
        if source.biases:
            self.shapes = {source.biases: source.shape}
        while len(self.shapes) - (not source.biases) < self.kept.populations:
            self._grow(f"p{len(self.shapes)}")
        names = [name for name in self.shapes if name != source.name]
        for _ in range(self.kept.residuals):
            self._shortcut(names)
        for _ in range(self.kept.loops):
            self._loop(names)
        populations = tuple(self._population(name, source) for name in names)
        self.rng.shuffle(self.projections)
        return QuantizedGraph(
            input=source,
            populations=populations,
            projections=tuple(self.projections),
            timesteps=self.kept.timesteps,
        )

    def _input(self):
        size = self.rng.integers(1, 13) if self.kept.flat_input else 0
        shape = (int(size),) if size else (self._up_to(4), self._up_to(6), self._up_to(6))
        if self.kept.biased_by_image:
            precision = Precision(bits=16, signed=True)
            return QuantizedInput(name="image", shape=shape, precision=precision, biases="p0")
        bits, signed = self.kept.payload
        return QuantizedInput(name="image", shape=shape, precision=Precision(bits=bits, signed=signed))

    def _up_to(self, most):
        return int(self.rng.integers(1, most + 1))

    def _grow(self, name):
        """Add a population behind an earlier one, mostly the last."""
        known = list(self.shapes)
        source = known[-1] if self.rng.random() < 0.75 else known[self.rng.integers(len(known))]
        shape = self.shapes[source]
        geometry = None
        for _ in range(3 if len(shape) == 3 and self.rng.random() < 0.7 else 0):
            geometry = geometry or self._geometry(shape)
        if geometry:
            made = self._conv(source, name, geometry, back=False)
            self.shapes[name] = made.output_shape(shape)
        else:
            features = 1 if self.rng.random() < 0.2 else self._up_to(6 * self.kept.width)
            self._dense(source, name, features, back=False)
            self.shapes[name] = (features,)

    def _shortcut(self, names):
        """Add a projection from an earlier source into a population that has one already (a residual sum)."""
        target = names[self.rng.integers(len(names))]
        earlier = list(self.shapes)[: list(self.shapes).index(target)]
        if earlier:
            self._connect(earlier[self.rng.integers(len(earlier))], target, back=False)

    def _loop(self, names):
        """Add a projection that goes back, over one population or several."""
        first, last = sorted(self.rng.integers(len(names), size=2))
        self._connect(names[last], names[first], back=True)

    def _connect(self, source, target, back):
        shape, goal = self.shapes[source], self.shapes[target]
        if len(goal) == 1:
            self._dense(source, target, goal[0], back)
            return
        for _ in range(40 if len(shape) == 3 else 0):
            geometry = self._geometry(shape, goal)
            if geometry:
                self._conv(source, target, geometry, back)
                return

    def _geometry(self, shape, goal=None):
        """Return options of a convolution over `shape`, or None if they make nothing, or not `goal`."""
        rng, channels = self.rng, shape[0]
        kernel, stride, dilation = ([int(n) for n in rng.integers(1, most + 1, 2)] for most in (3, 3, 2))
        padding = [int(n) for n in rng.integers(0, 3, 2)]
        if rng.random() < 0.5:
            stride = [1, 1]
        groups = int(rng.choice([n for n in range(1, channels + 1) if channels % n == 0]))
        out = groups * self._up_to(2 * min(self.kept.width, 8))
        if goal:
            groups = int(rng.choice([n for n in range(1, channels + 1) if channels % n == 0 and goal[0] % n == 0]))
            out = goal[0]
        made = tuple(convolved_size(*args) for args in zip(shape[1:], kernel, stride, padding, dilation, strict=True))
        if min(made) < 1 or out > 8 * min(self.kept.width, 8) or (goal and made != goal[1:]):
            return None
        return {
            "shape": (out, channels // groups, *kernel),
            "options": {
                "stride": tuple(stride),
                "padding": tuple(padding),
                "dilation": tuple(dilation),
                "groups": groups,
            },
        }

    def _conv(self, source, target, geometry, back):
        weight, precision = self._weight(source, geometry["shape"])
        projection = ConvProjection(
            name=f"{source}-{target}.{len(self.projections)}",
            source=source,
            target=target,
            weight=weight,
            precision=precision,
            delay=self._delay(back),
            **geometry["options"],
        )
        self.projections.append(projection)
        return projection

    def _dense(self, source, target, features, back):
        size = int(np.prod(self.shapes[source]))
        weight, precision = self._weight(source, (features, size))
        delay = self._delay(back)
        if self.kept.delays == "array" and self.rng.random() < 0.7:
            spread = int(self.rng.integers(1, 5))
            delay = delay + self.rng.integers(0, spread + 1, [(size,), (features, size)][self.rng.integers(2)])
        self.projections.append(
            DenseProjection(
                name=f"{source}-{target}.{len(self.projections)}",
                source=source,
                target=target,
                weight=weight,
                precision=precision,
                delay=delay,
            )
        )

    def _delay(self, back):
        least = int(back)
        if self.kept.delays == "none" or self.rng.random() < 0.5:
            return least
        # Rarely so late that nothing arrives.
        most = self.kept.timesteps + 3 if self.rng.random() < 0.15 else min(5, self.kept.timesteps)
        return int(self.rng.integers(least, max(most, least) + 1))

    def _weight(self, source, shape):
        """Return weights of 2 to 16 bits (12 beside wide payloads: int64 must hold 64 * 4096 * sum), and their type."""
        rng = self.rng
        bits = int(rng.choice([2, 4, 8, 8, 8, 9, 12, 16]))
        if source == "image" and self.kept.payload[0] == 24:
            bits = min(bits, 12)
        high = (1 << (bits - 1)) - 1
        weight = rng.integers(-high - 1, high + 1, shape)
        kind = rng.choice(
            ["mixed", "mixed", "mixed", "excitatory", "inhibitory", "zero"], p=[0.3, 0.3, 0.2, 0.1, 0.07, 0.03]
        )
        if kind == "excitatory":
            weight = np.abs(np.maximum(weight, -high))
        elif kind == "inhibitory":
            weight = -np.abs(weight)
        elif kind == "zero":
            weight = np.zeros_like(weight)
        weight = weight * (rng.random(shape) >= rng.choice([0.0, 0.3, 0.9], p=[0.6, 0.3, 0.1]))
        if kind == "excitatory" and rng.random() < 0.5:
            return weight, Precision(bits=bits, signed=False)
        return weight, Precision(bits=bits, signed=True)

    def _population(self, name, source):
        rng, shape, kept = self.rng, self.shapes[name], self.kept
        strength = self._strength(name, source)
        bias = {
            "none": lambda: np.zeros(shape, np.int64),
            "small": lambda: rng.integers(-int(min(strength, 30000)) - 1, int(min(strength, 30000)) + 2, shape),
            "limit": lambda: rng.choice([-(1 << 15), -(1 << 15) + 1, -1, 0, 1, (1 << 15) - 2, (1 << 15) - 1], shape),
        }[kept.biases if name != source.biases else "none"]()
        interval = self._up_to(kept.timesteps + 2) if kept.resets and rng.random() < 0.6 else 0
        return Population(
            name=name,
            shape=shape,
            decay_u=self._decay(shape),
            decay_v=self._decay(shape),
            vth=self._thresholds(strength, shape),
            bias=bias,
            reset_interval=interval,
            reset_offset=int(rng.integers(0, kept.timesteps + 3)) if kept.resets else 0,
        )

    def _strength(self, name, source):
        """Return about how much a timestep adds to a membrane [LSB before the shift]."""
        if name == source.biases:
            return 1 << 14
        power = 0.0
        for projection in self.projections:
            if projection.target == name:
                value = 0.4 * source.precision.high if projection.source == source.name else 0.4
                terms = projection.weight.reshape(len(projection.weight), -1).astype(float)
                power += float((terms**2).sum(axis=1).mean()) * value**2
        return np.sqrt(power) + 1

    def _thresholds(self, strength, shape):
        if self.kept.decays != "neuron" or self.rng.random() < 0.5:
            return self._threshold(strength)
        several = [self._threshold(strength) for _ in range(3)]
        return self.rng.choice(several, shape)

    def _threshold(self, strength):
        rng = self.rng
        kind = rng.random()
        if kind < 0.75:
            return int(min(strength * rng.uniform(0.1, 3), rng.integers(1, VTH_NEVER)))
        if kind < 0.9:
            return int(rng.choice([0, 0, 1, VTH_NEVER - 1, VTH_NEVER, VTH_NEVER]))
        return int(rng.integers(0, VTH_NEVER + 1))

    def _decay(self, shape):
        rng = self.rng
        if self.kept.decays == "plain" or rng.random() < 0.2:
            return int(rng.choice([0, DECAY_ONE]))
        if self.kept.decays == "leaky" or rng.random() < 0.3:
            return int(rng.choice([1, 4095, 2048, rng.integers(0, DECAY_ONE + 1), rng.integers(0, DECAY_ONE + 1)]))
        return np.where(
            rng.random(shape) < 0.3, rng.choice([0, 1, 4095, DECAY_ONE], shape), rng.integers(0, 4097, shape)
        )


def random_images(graph, kept, rng):
    """Return images of distinct samples, most of them with a sample of zeros and a saturated one among them."""
    precision, batch = graph.input.precision, kept.batch
    shape = (graph.timesteps, batch, *graph.input.shape) if kept.frames else (batch, *graph.input.shape)
    if kept.images == "empty":
        return np.zeros(shape, np.int64)
    extremes = np.array([precision.low, precision.high])
    if kept.images == "saturated":
        return rng.choice(extremes[extremes != 0], shape)
    images = rng.integers(precision.low, precision.high + 1, shape)
    # Wide payloads are mostly small numbers, or every sum would leave its range.
    images = np.sign(images) * (np.abs(images) >> (rng.integers(0, precision.bits, shape) if precision.bits > 8 else 0))
    images *= rng.random(shape) >= rng.choice([0.0, 0.5, 0.9])
    axis = 1 if kept.frames else 0
    by_sample = np.moveaxis(images, axis, 0)
    if batch > 2 and rng.random() < 0.5:
        by_sample[-1] = extremes[extremes != 0][-1]
        by_sample[rng.integers(batch - 1)] = 0
    return images
