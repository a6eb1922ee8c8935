"""Random float graphs as they are drawn, with images: every node, in sizes that run in milliseconds.

Hypothesis draws the `Traits` (so that a failing graph shrinks to few features) and a seed; NumPy draws the rest.
Imported by tests as ``from random_float_graphs import float_graphs``. All of them can be lowered.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from hypothesis import strategies as st

from stars_deploy.errors import GraphError
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    NEURONS,
    BatchNorm,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Integrator,
    Linear,
    Normalize,
    Pool2d,
    Scale,
    SpikingGraph,
)

KINDS = {"LIF": LIF, "CubaLIF": CubaLIF, "IF": IF}


@dataclass(frozen=True, kw_only=True)
class FloatTraits:
    """What a random graph may have; the defaults are the plainest."""

    timesteps: int = 4
    batch: int = 2
    dt: float = 1e-3
    populations: int = 2
    kinds: tuple[str, ...] = ("LIF",)
    output: str = "Integrator"  # or LI, LIF, CubaLIF, IF
    flat_input: bool = False
    frames: bool = False
    normalize: bool = False
    raw: bool = False  # some branches see the image before its normalisation
    batch_norm: bool = False
    pools: bool = False
    scales: bool = False
    delays: str = "none"  # or scalar, array
    branches: int = 0  # projections that a population has beside the first
    twins: bool = False  # populations that share a projection, and are summed before the next
    loops: int = 0
    biases: bool = False
    gains: bool = False
    per_neuron: bool = False
    leaks: bool = False
    resets: bool = False


def float_traits(**fixed):
    """Strategy of :class:`FloatTraits`, some of them fixed (a value) or drawn in another way (a strategy)."""
    flag = st.booleans()
    drawn = {
        "timesteps": st.integers(1, 7),
        "batch": st.integers(2, 3),
        "dt": st.sampled_from([1e-3, 1e-4, 1.0]),
        "populations": st.integers(1, 4),
        "kinds": st.sampled_from([("LIF",), ("CubaLIF",), ("IF",), tuple(KINDS)]),
        "output": st.sampled_from(["Integrator", "LI", *KINDS]),
        "delays": st.sampled_from(["none", "scalar", "array"]),
        "branches": st.integers(0, 2),
        "loops": st.integers(0, 2),
        "flat_input": st.sampled_from([False, False, False, True]),
        **dict.fromkeys(("frames", "normalize", "batch_norm", "pools", "scales", "twins", "raw"), flag),
        **dict.fromkeys(("biases", "gains", "per_neuron", "leaks", "resets"), flag),
    }
    drawn.update(
        {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in fixed.items()}
    )
    return st.builds(FloatTraits, **drawn)


def float_graphs(**fixed):
    """Strategy of a valid :class:`SpikingGraph` and images for it, (B, *shape) or (T, B, *shape).

    A failing example is reported as the call of :func:`random_float_graph` that makes it.
    """
    return st.builds(random_float_graph, float_traits(**fixed), st.integers(0, 2**32 - 1))


def random_float_graph(kept, seed):
    """Return the graph and the images that `kept` (a :class:`FloatTraits`) and `seed` stand for, always the same."""
    builder = _Builder(kept, np.random.default_rng(seed))
    graph = builder.graph()
    frames = (kept.timesteps,) if kept.frames else ()
    return graph, builder.rng.random((*frames, kept.batch, *graph.input.shape))


def find_float_difference(one, other):
    """Return the first field in which two float graphs differ, or an empty string."""
    if (one.edges, one.dt, one.timesteps, one.labels) != (other.edges, other.dt, other.timesteps, other.labels):
        return "edges, time or labels"
    if [(type(node), node.name) for node in one.nodes] != [(type(node), node.name) for node in other.nodes]:
        return "nodes"
    for left, right in zip(one.nodes, other.nodes, strict=True):
        for item in fields(left):
            if not np.array_equal(getattr(left, item.name), getattr(right, item.name)):
                return f"{left.name}.{item.name}"
    return ""


@dataclass
class _Builder:
    kept: FloatTraits
    rng: np.random.Generator
    nodes: list = field(default_factory=list)
    edges: list = field(default_factory=list)
    shapes: dict = field(default_factory=dict)
    biased: set = field(default_factory=set)  # nodes that the bias of a projection, or a mean, reaches

    def graph(self):
        kept, rng = self.kept, self.rng
        size = (int(rng.integers(2, 9)),) if kept.flat_input else tuple(int(n) for n in rng.integers([1, 3, 3], 6))
        self._add(Input(name="image", shape=size))
        ends = [["image"]]  # groups of nodes of one shape that are summed where they are used
        if kept.normalize:
            mean, std = rng.uniform(0.1, 0.6, size[0]), rng.uniform(0.3, 1.5, size[0])
            ends = [[self._add(Normalize(name="normalize", mean=mean, std=std), "image")]]
            self.biased.add("normalize")
        for index in range(kept.populations):
            sources = ends[-1] if rng.random() < 0.7 else ends[rng.integers(len(ends))]
            ends.append(self._grow(f"p{index}", sources))
        names = [name for group in ends[1:] for name in group]
        for _ in range(kept.loops):
            self._loop(names)
        self._finish()
        return SpikingGraph(
            nodes=tuple(self.nodes),
            edges=tuple(self.edges),
            dt=kept.dt,
            timesteps=kept.timesteps,
            labels=("a", "b", "c"),
        )

    def _add(self, node, *sources):
        """Add a node behind `sources`; GraphError, and nothing added, if it does not fit."""
        nodes, edges = [*self.nodes, node], [*self.edges, *((source, node.name) for source in sources)]
        self.shapes = dict(SpikingGraph(nodes=tuple(nodes), edges=tuple(edges), dt=self.kept.dt).shapes)
        self.nodes, self.edges = nodes, edges
        if set(sources) & self.biased and not isinstance(node, NEURONS):
            self.biased.add(node.name)
        return node.name

    def _node(self, name):
        return next(node for node in self.nodes if node.name == name)

    def _name(self, kind):
        return f"{kind}{sum(node.name.startswith(kind) for node in self.nodes)}"

    def _flip(self, share=0.5):
        return self.rng.random() < share

    def _grow(self, name, sources):
        """Add a population behind the sum of `sources`, and those that share its projection; return their names."""
        plain = self.kept.kinds == ("CubaLIF",) or (len(self.kept.kinds) > 1 and self._flip())
        end = self._chain(sources, plain)
        kind = self._kind(plain, end)
        group = [self._population(name, kind, [end])]
        for _ in range(int(self.rng.integers(0, self.kept.branches + 1))):
            self._branch(group[0], plain)
        if self.kept.twins and self._flip():
            group.append(self._population(f"{name}twin", self._kind(plain, end), [end]))
        return group

    def _kind(self, plain, end):
        if plain and end not in self.biased:
            return CubaLIF
        return KINDS[str(self.rng.choice(self.kept.kinds))]

    def _chain(self, sources, plain):
        """Add nodes behind the sum of `sources`, one projection among them or none; return the last."""
        kept = self.kept
        last = sources
        steps = [self._delay, self._scale, self._pool, self._flatten, self._delay]
        for step in steps:
            last = self._try(step, last)
        if self._flip(0.9):
            last = self._try(self._conv if self._flip(0.8) else self._linear, last, 1.0, plain)
            last = last if len(last) == 1 else self._try(self._linear, last, 1.0, plain)
            if kept.batch_norm and len(last) == 1 and isinstance(self._node(last[0]), (Conv2d, Linear)):
                last = self._try(self._batch_norm, last, 0.7, plain)
        for step in (self._scale, self._pool, self._delay, self._flatten, self._scale):
            last = self._try(step, last, 0.3)
        if len(last) > 1:
            last = [self._add(Scale(name=self._name("sum"), scale=1.0), *last)]
        return last[0]

    def _try(self, step, sources, share=0.5, *arguments):
        if not self._flip(share):
            return sources
        try:
            node = step(sources, *arguments)
            return [self._add(node, *sources)] if node else sources
        except GraphError:  # nothing is left of an image that small
            return sources

    def _projected(self, sources):
        """Whether a projection lies between `sources` and the populations before them."""
        pending = list(sources)
        for name in pending:
            node = self._node(name)
            if isinstance(node, (Conv2d, Linear, Pool2d)):
                return True
            if not isinstance(node, NEURONS):
                pending.extend(source for source, target in self.edges if target == name)
        return False

    def _scale(self, sources):
        if not self.kept.scales:
            return None
        shape = self.shapes[sources[0]]
        kind = self.rng.integers(3)
        scale = self.rng.uniform(0.3, 1.5, [(), shape, (shape[0], *[1] * (len(shape) - 1))][kind])
        return Scale(name=self._name("scale"), scale=np.broadcast_to(scale, shape) if kind else scale)

    def _pool(self, sources):
        if not self.kept.pools or len(self.shapes[sources[0]]) != 3:
            return None
        kernel, stride = ([int(n) for n in self.rng.integers(1, 4, 2)] for _ in range(2))
        padding = [int(self.rng.integers(0, size // 2 + 1)) for size in kernel]
        return Pool2d(
            name=self._name("pool"),
            kernel=tuple(kernel),
            stride=tuple(stride),
            padding=tuple(padding),
            average=self._flip(),
        )

    def _flatten(self, sources):
        return Flatten(name=self._name("flat")) if self._flip(0.25) and len(self.shapes[sources[0]]) == 3 else None

    def _delay(self, sources):
        if self.kept.delays == "none" or set(sources) & self.biased:
            return None
        return Delay(name=self._name("delay"), delay=self._delays(sources, 0))

    def _delays(self, sources, least):
        even = self.kept.delays != "array" or self._projected(sources) or self._flip()
        shape = () if even else self.shapes[sources[0]]
        return self.rng.integers(least, least + 3, shape) * self.kept.dt

    def _conv(self, sources, plain, goal=None):
        shape, rng = self.shapes[sources[0]], self.rng
        if len(shape) != 3:
            return None
        groups = int(rng.choice([n for n in range(1, shape[0] + 1) if shape[0] % n == 0]))
        out = goal[0] if goal else groups * int(rng.integers(1, 4))
        kernel = rng.integers(1, 4, 2)
        node = Conv2d(
            name=self._name("conv"),
            weight=self._weight((out, shape[0] // groups, *kernel)),
            bias=np.zeros(out),
            stride=tuple(int(n) for n in rng.integers(1, 3, 2)),
            padding=tuple(int(n) for n in rng.integers(0, 3, 2)),
            dilation=tuple(int(n) for n in rng.integers(1, 3, 2)),
            groups=groups if out % groups == 0 else 1,
        )
        return self._with_bias(node, plain)

    def _linear(self, sources, plain, features=0):
        out = features or int(self.rng.integers(1, 6))
        weight = self._weight((out, int(np.prod(self.shapes[sources[0]]))))
        return self._with_bias(Linear(name=self._name("dense"), weight=weight, bias=np.zeros(out)), plain)

    def _with_bias(self, node, plain):
        if not self.kept.biases or plain:
            return node
        self.biased.add(node.name)
        return type(node)(
            **{**{f.name: getattr(node, f.name) for f in fields(node)}, "bias": self.rng.normal(0, 0.3, len(node.bias))}
        )

    def _weight(self, shape):
        return self.rng.normal(0.3, 1.0, shape) / np.sqrt(np.prod(shape[1:]))

    def _batch_norm(self, sources, plain):
        rng, channels = self.rng, self.shapes[sources[0]][0]
        norm = BatchNorm(
            name=self._name("norm"),
            gamma=rng.normal(1, 0.3, channels),
            beta=rng.normal(0, 0.0 if plain else 0.3, channels),
            mean=rng.normal(0, 0.0 if plain else 0.3, channels),
            var=rng.uniform(0.3, 2, channels),
        )
        if not plain:
            self.biased.add(norm.name)
        return norm

    def _population(self, name, kind, sources):
        rng, dt, shape = self.rng, self.kept.dt, self.shapes[sources[0]]

        def drawn(low, high):
            return rng.uniform(low, high, shape if self.kept.per_neuron and self._flip() else ())

        def gain(unit):
            return drawn(0.4, 1.5) * unit if self.kept.gains else unit

        fits = {"v_threshold": drawn(0.2, 0.8)}
        if self.kept.resets and self._flip(0.7):
            fits["v_reset"] = drawn(-0.4, 0.1)
        if kind in (LIF, CubaLIF, LI):
            fits.update(tau_mem=drawn(1.2, 5) * dt, v_leak=fits.get("v_reset", 0.0))
            if self.kept.leaks and not np.any(fits["v_leak"]):
                fits["v_leak"] = drawn(-0.3, 0.3)
        unit = {IF: 1 / dt, Integrator: 1 / dt}.get(kind, 1.5)
        fits["r"] = gain(unit)
        if kind is CubaLIF:
            fits.update(tau_syn=drawn(1.0, 3) * dt, w_in=gain(1.5))
        wanted = {item.name for item in fields(kind)}
        return self._add(kind(name=name, **{key: value for key, value in fits.items() if key in wanted}), *sources)

    def _branch(self, target, plain):
        """Feed an earlier group, or the image, into a population by another path."""
        plain = plain or isinstance(self._node(target), CubaLIF)
        seen = (Input, *NEURONS) if self.kept.raw or not self.kept.normalize else (Normalize, *NEURONS)
        candidates = [n.name for n in self.nodes if isinstance(n, seen) and n.name != target]
        candidates = [name for name in candidates if not plain or name not in self.biased]
        if candidates:
            self._link(str(self.rng.choice(candidates)), target, plain)

    def _loop(self, names):
        """Feed a population back, to itself or to an earlier one, at least a timestep later."""
        first, last = sorted(self.rng.integers(len(names), size=2))
        plain = isinstance(self._node(names[first]), CubaLIF)
        delay = Delay(name=self._name("delay"), delay=self._delays([names[last]], 1))
        nodes, edges = list(self.nodes), list(self.edges)
        self._link(self._add(delay, names[last]), names[first], plain)
        if not any(source == delay.name for source, _ in self.edges):
            self.nodes, self.edges = nodes, edges  # it found no way to the shape of its target

    def _link(self, source, target, plain):
        shape, goal = self.shapes[source], self.shapes[target]
        if shape == goal and self._flip(0.3) and (source, target) not in self.edges:
            self.edges.append((source, target))
            return
        for _ in range(1 if len(goal) == 1 else 30):
            made = self._linear([source], plain, goal[0]) if len(goal) == 1 else self._conv([source], plain, goal)
            if made is None:
                return
            nodes, edges = list(self.nodes), list(self.edges)
            try:
                self._add(made, source)
            except GraphError:
                continue
            if self.shapes[made.name] == goal:
                self.edges.append((made.name, target))
                return
            self.nodes, self.edges = nodes, edges

    def _finish(self):
        """Lead every population that leads nowhere to one readout."""
        reached, pending = set(), []
        order = [node.name for node in self.nodes if isinstance(node, NEURONS)]
        for name in reversed(order):
            # What reaches the readout is followed back, so that a population that only feeds a loop gets a way out.
            if name not in reached:
                pending.append(name)
                queue = [name]
                for one in queue:
                    reached.add(one)
                    queue.extend(s for s, t in self.edges if t == one and s not in reached and s not in queue)
        kind = {**KINDS, "Integrator": Integrator, "LI": LI}[self.kept.output]
        made = [self._add(self._linear([name], kind is CubaLIF, 3), name) for name in pending]
        self._population("readout", kind, made)
