"""``SpikingGraph``: the float network between the trained student and the chip.

It is NIR's graph of named nodes (:mod:`stars_deploy.nodes`) and edges and, unlike NIR, carries ``dt`` and the number of
timesteps, because without them the discrete dynamics are not defined. Nothing here knows a file format, a chip or
torch: writers live in :mod:`stars_deploy.targets`, the tracer in :mod:`stars_deploy.export`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import GraphError
from stars_deploy.nodes import (
    IF,
    LI,
    LIF,
    NEURONS,
    SPIKING,
    BatchNorm,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    FloatArray,
    Input,
    Integrator,
    Linear,
    Neuron,
    Node,
    Normalize,
    Parameter,
    Pool2d,
    Scale,
    convolved_shape,
    convolved_size,
    frozen_array,
)

__all__ = [
    "IF",
    "LI",
    "LIF",
    "NEURONS",
    "SPIKING",
    "BatchNorm",
    "Conv2d",
    "CubaLIF",
    "Delay",
    "Flatten",
    "FloatArray",
    "Input",
    "Integrator",
    "Linear",
    "Neuron",
    "Node",
    "Normalize",
    "Parameter",
    "Pool2d",
    "Scale",
    "SpikingGraph",
    "convolved_shape",
    "convolved_size",
    "frozen_array",
]

#: Most elements of one node's output: far more than a chip has neurons, and few enough to compute with.
LARGEST_NODE = 1 << 26


@dataclass(frozen=True, kw_only=True)
class SpikingGraph:
    """A float spiking network with its time grid.

    Parameters
    ----------
    nodes : tuple of Node
        Uniquely named.
    edges : tuple of (str, str)
        From node to node; several edges into one node add up. A loop must pass a :class:`Delay` of at least ``dt``.
    dt : float
        Length of a timestep [s].
    timesteps : int
        Timesteps for one inference (T).
    labels : tuple of str
        Class names, in the order of the logits; may be empty.

    Raises
    ------
    GraphError
        Duplicate or unknown names, an edge given twice, no single input, loops without a delay, delays that are no
        whole timesteps, shapes that do not fit, or a node with more than 2**26 values.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    dt: float = 1e-3
    timesteps: int = 4
    labels: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)
    _by_name: Mapping[str, Node] = field(init=False, repr=False, compare=False)
    _sources: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    _targets: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names):
            raise GraphError("nodes", f"names {names}", "unique names")
        unknown = {name for edge in self.edges for name in edge} - set(names)
        if unknown:
            raise GraphError("edges", f"unknown nodes {sorted(unknown)}", f"{names}")
        if len(set(self.edges)) != len(self.edges):
            twice = next(edge for edge in self.edges if self.edges.count(edge) > 1)
            raise GraphError("edges", f"{twice[0]} -> {twice[1]} twice", "each edge once")
        if not (0 < self.dt < math.inf and self.timesteps >= 1):
            raise GraphError("time", f"dt {self.dt} s, {self.timesteps} timesteps", "dt > 0 and at least 1 timestep")
        if sum(isinstance(node, Input) for node in self.nodes) != 1:
            raise GraphError("nodes", "no single Input node", "exactly one Input")
        object.__setattr__(self, "_by_name", {node.name: node for node in self.nodes})
        object.__setattr__(self, "_sources", _grouped(names, ((target, source) for source, target in self.edges)))
        object.__setattr__(self, "_targets", _grouped(names, self.edges))
        object.__setattr__(self, "shapes", MappingProxyType(_infer_shapes(self)))

    def node(self, name: str) -> Node:
        """Return the node called `name`."""
        if name not in self._by_name:
            raise GraphError("node", name, f"{list(self._by_name)}")
        return self._by_name[name]

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the names of the nodes with an edge into `name`."""
        return self._sources[name]

    def targets(self, name: str) -> tuple[str, ...]:
        """Return the names of the nodes that `name` has an edge into."""
        return self._targets[name]

    @property
    def input(self) -> Input:
        """The one input node."""
        return next(node for node in self.nodes if isinstance(node, Input))

    @property
    def output(self) -> Neuron:
        """The population that is read out: the only node that feeds nothing, or the last population where all feed one.

        Raises
        ------
        GraphError
            If several nodes feed nothing, or one that is no population.
        """
        ends = [node for node in self.nodes if not self.targets(node.name)]
        last = ends or [node for node in self.ordered() if isinstance(node, NEURONS)][-1:]
        if len(last) != 1 or not isinstance(last[0], NEURONS):
            found = ", ".join(f"{node.name} ({type(node).__name__})" for node in last) or "no population"
            raise GraphError("graph", f"ends in {found}", f"one end, a {_either(NEURONS)}", "append an Integrator")
        return last[0]

    def delay_steps(self, name: str) -> npt.NDArray[np.int64]:
        """Return the delay of the :class:`Delay` called `name` [timesteps].

        Raises
        ------
        GraphError
            If it is not a whole number of timesteps, within a millionth.
        """
        node = self.node(name)
        if not isinstance(node, Delay):
            raise GraphError(name, type(node).__name__, "a Delay")
        steps = node.delay / self.dt
        whole = np.rint(steps)
        if np.abs(steps - whole).max() > 1e-6 * max(1.0, float(whole.max())):
            got = f"{node.delay.flat[np.abs(steps - whole).argmax()]} s"
            raise GraphError(f"{name}.delay", got, f"whole multiples of dt = {self.dt} s")
        result: npt.NDArray[np.int64] = whole.astype(np.int64)
        return result

    def ordered(self) -> tuple[Node, ...]:
        """Return the nodes so that each comes after what it needs of the same timestep, and what feeds nothing last.

        A :class:`~stars_deploy.nodes.Delay` of at least one timestep needs nothing of the same timestep.

        Raises
        ------
        GraphError
            If the graph has a loop without such a delay.
        """
        late = {n.name for n in self.nodes if isinstance(n, Delay) and self.delay_steps(n.name).min() > 0}
        waiting = {node.name: 0 if node.name in late else len(self.sources(node.name)) for node in self.nodes}
        place = {node.name: index for index, node in enumerate(self.nodes)}
        ready = [name for name, missing in waiting.items() if not missing]
        order: list[str] = []
        while ready:
            order.extend(ready)
            following = []
            for target in (target for name in ready for target in self.targets(name) if target not in late):
                waiting[target] -= 1
                if not waiting[target]:
                    following.append(target)
            ready = sorted(following, key=place.__getitem__)
        if len(order) < len(self.nodes):
            raise GraphError(
                "edges",
                f"a loop without a delay through {sorted(set(place) - set(order))}",
                f"feed-forward connections, or loops with a Delay of at least dt = {self.dt} s",
            )
        order.sort(key=lambda name: not self.targets(name))  # stable: nothing waits for what feeds nothing
        return tuple(self.node(name) for name in order)

    def with_nodes(self, nodes: tuple[Node, ...], edges: tuple[tuple[str, str], ...]) -> SpikingGraph:
        """Return a copy with other nodes and edges on the same time grid."""
        return replace(self, nodes=nodes, edges=edges)


def _grouped(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    lists: dict[str, list[str]] = {name: [] for name in names}
    for one, other in pairs:
        lists[one].append(other)
    return {name: tuple(others) for name, others in lists.items()}


def _either(kinds: tuple[type, ...]) -> str:
    return " or ".join([", ".join(kind.__name__ for kind in kinds[:-1]), kinds[-1].__name__])


def _infer_shapes(graph: SpikingGraph) -> dict[str, tuple[int, ...]]:
    graph.ordered()  # refuses loops without a delay
    shapes: dict[str, tuple[int, ...]] = {graph.input.name: tuple(graph.input.shape)}
    # A node in a loop gets its shape from the first of its sources that has one; the others are compared below.
    known = [graph.input.name]
    for source in known:
        for name in graph.targets(source):
            if name not in shapes:
                shapes[name] = _output_shape(graph.node(name), shapes[source])
                known.append(name)
                if not 1 <= math.prod(shapes[name]) <= LARGEST_NODE:
                    raise GraphError(name, f"shape {shapes[name]}", f"1 to {LARGEST_NODE} values")
    for node in graph.nodes:
        if node.name not in shapes:
            raise GraphError(node.name, "is not fed by the input", "at least one source")
        incoming = {shapes[source] for source in graph.sources(node.name)}
        if len(incoming) > 1:
            raise GraphError(node.name, f"inputs of shapes {sorted(incoming)}", "inputs of one shape")
    if graph.sources(graph.input.name):
        raise GraphError(graph.input.name, f"is fed by {graph.sources(graph.input.name)}", "no edge into the input")
    return shapes


def _output_shape(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(node, Conv2d):
        result: tuple[int, ...] = convolved_shape(
            shape, node.weight.shape, node.stride, node.padding, node.dilation, node.groups, node.name
        )
        _check_padded(node, shape)
        if node.bias.shape not in ((result[0],), result):
            raise GraphError(f"{node.name}.bias", f"shape {node.bias.shape}", f"{(result[0],)} or {result}")
        return result
    if isinstance(node, Linear):
        features = math.prod(shape)
        if node.weight.shape[1] != features:
            raise GraphError(node.name, f"weight {node.weight.shape} for {features} inputs", f"(out, {features})")
        if node.bias.shape != node.weight.shape[:1]:
            raise GraphError(f"{node.name}.bias", f"shape {node.bias.shape}", f"{node.weight.shape[:1]}")
        return (node.weight.shape[0],)
    if isinstance(node, Pool2d):
        window = (shape[0], 1, *node.kernel) if len(shape) == 3 else (1, 1, *node.kernel)
        _check_padded(node, shape)
        return convolved_shape(shape, window, node.stride, node.padding, (1, 1), window[0], node.name)
    if isinstance(node, Flatten):
        return (math.prod(shape),)
    _check_elementwise(node, shape)
    return shape


def _check_padded(node: Conv2d | Pool2d, shape: tuple[int, ...]) -> None:
    padded = [size + 2 * padding for size, padding in zip(shape[1:], node.padding, strict=False)]
    if shape[0] * math.prod(padded) > LARGEST_NODE:
        got = f"{node.padding} makes {shape[0] * math.prod(padded)} values of {shape}"
        raise GraphError(f"{node.name}.padding", got, f"at most {LARGEST_NODE}")


def _check_elementwise(node: Node, shape: tuple[int, ...]) -> None:
    if isinstance(node, (Normalize, BatchNorm)):
        channels = (node.mean if isinstance(node, Normalize) else node.gamma).shape
        if channels != shape[:1]:
            raise GraphError(node.name, f"{channels[0]} channels", f"{shape[0]} channels")
        return
    for name in type(node).__dataclass_fields__:
        values = getattr(node, name)
        if isinstance(values, np.ndarray) and values.ndim and values.shape != shape:
            raise GraphError(f"{node.name}.{name}", f"shape {values.shape}", f"one value, or {shape}")
