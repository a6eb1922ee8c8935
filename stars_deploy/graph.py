"""``SpikingGraph``: the float network between the trained student and the chip.

It speaks NIR's words (``tau_mem``, ``r``, ``v_leak``, ``v_threshold``, ``v_reset``) and, unlike NIR, carries
``dt`` and the number of timesteps, because without them the discrete dynamics are not defined.

Nodes are frozen dataclasses with a name; edges are pairs of names. Nothing here knows a file format, a chip
or torch: writers live in :mod:`stars_deploy.targets`, the tracer in :mod:`stars_deploy.export`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Union

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import GraphError

FloatArray = npt.NDArray[np.float64]
#: One value for a whole population, or an array of its shape.
Parameter = Union[float, FloatArray]


def frozen_array(values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    """Return a read-only, C-ordered copy of `values` as `dtype`."""
    array = np.array(values, dtype=dtype, order="C")
    array.setflags(write=False)
    return array


def convolved_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the output length of a convolution along one axis [neurons]."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolved_shape(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    where: str,
) -> tuple[int, int, int]:
    """Return the (C, H, W) that a convolution makes of `shape`, or refuse the combination.

    Raises
    ------
    GraphError
        If the channels do not fit the kernel and the groups, or the output is empty.
    """
    if len(shape) != 3 or len(weight_shape) != 4:
        raise GraphError(where, f"input {shape}, kernel {weight_shape}", "(C, H, W) and (out, in/groups, kh, kw)")
    if groups < 1 or shape[0] != weight_shape[1] * groups or weight_shape[0] % groups:
        raise GraphError(
            where,
            f"{shape[0]} input channels, kernel {weight_shape}, groups {groups}",
            "input channels = kernel channels x groups, and output channels a multiple of groups",
        )
    height, width = (
        convolved_size(shape[axis + 1], weight_shape[axis + 2], stride[axis], padding[axis], dilation[axis])
        for axis in (0, 1)
    )
    if height < 1 or width < 1:
        raise GraphError(where, f"kernel {weight_shape[2:]} leaves nothing of {shape[1:]}", "an output of at least 1x1")
    return weight_shape[0], height, width


def _float_field(instance: object, name: str, where: str, ndim: int | None = None) -> None:
    values = frozen_array(getattr(instance, name), np.float64)
    if not np.isfinite(values).all():
        raise GraphError(
            f"{where}.{name}",
            f"{np.size(values) - np.isfinite(values).sum()} of {values.size} values are NaN or infinite",
            "finite numbers",
            "check the weights that this layer was loaded from",
        )
    if ndim is not None and values.ndim != ndim:
        raise GraphError(f"{where}.{name}", f"{values.ndim} axes", f"{ndim} axes")
    object.__setattr__(instance, name, values)


@dataclass(frozen=True, kw_only=True)
class Input:
    """The image, presented unchanged at every timestep (direct encoding).

    ``shape`` is (C, H, W); pixel values lie in [``low``, ``high``] before any normalisation.
    """

    name: str
    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """``y = (x - mean) / std`` for each channel: the teacher's input normalisation. ``mean``, ``std``: (C,)."""

    name: str
    mean: FloatArray
    std: FloatArray

    def __post_init__(self) -> None:
        _float_field(self, "mean", self.name, 1)
        _float_field(self, "std", self.name, 1)
        if (self.std <= 0).any() or self.mean.shape != self.std.shape:
            raise GraphError(self.name, f"mean {self.mean}, std {self.std}", "one positive std for each mean")


@dataclass(frozen=True, kw_only=True)
class Conv2d:
    """``y = w * x + b``, a cross-correlation.

    ``weight`` is (out, in/groups, kh, kw); ``bias`` is (out,), or (out, H, W) where it differs at padded borders.
    """

    name: str
    weight: FloatArray
    bias: FloatArray
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        _float_field(self, "weight", self.name, 4)
        _float_field(self, "bias", self.name)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``y = W x + b`` over the input flattened in C order. ``weight`` is (out, in), ``bias`` is (out,)."""

    name: str
    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        _float_field(self, "weight", self.name, 2)
        _float_field(self, "bias", self.name, 1)


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """``y = gamma (x - mean) / sqrt(var + eps) + beta`` for each channel; all arrays are (C,)."""

    name: str
    gamma: FloatArray
    beta: FloatArray
    mean: FloatArray
    var: FloatArray
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("gamma", "beta", "mean", "var"):
            _float_field(self, name, self.name, 1)
        if (self.var < 0).any():
            raise GraphError(f"{self.name}.var", f"minimum {self.var.min()}", "variances of at least 0")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """``y = scale * x`` for each element; ``scale`` has the shape of the input."""

    name: str
    scale: FloatArray

    def __post_init__(self) -> None:
        _float_field(self, "scale", self.name)


@dataclass(frozen=True, kw_only=True)
class Pool2d:
    """Sum of the window at each place, over the window's size where ``average``; zero padding counts as values."""

    name: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    average: bool = False

    def __post_init__(self) -> None:
        if min(self.kernel) < 1 or min(self.stride) < 1 or min(self.padding) < 0:
            got = f"kernel {self.kernel}, stride {self.stride}, padding {self.padding}"
            raise GraphError(self.name, got, "kernel and stride of at least 1, padding of at least 0")


@dataclass(frozen=True, kw_only=True)
class Flatten:
    """``(C, H, W)`` to ``(C H W,)`` in C order."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Delay:
    """``y(t) = x(t - delay)``, 0 before: one delay, or one for each element of the input [s].

    Rounded to whole timesteps by the graph (:meth:`SpikingGraph.delay_steps`). A loop must pass one of at least a
    timestep.
    """

    name: str
    delay: FloatArray

    def __post_init__(self) -> None:
        _float_field(self, "delay", self.name)
        if (self.delay < 0).any():
            raise GraphError(f"{self.name}.delay", f"{self.delay.min()} s", "0 s or more")


@dataclass(frozen=True, kw_only=True)
class LIF:
    """Leaky integrate-and-fire without a synaptic current (NIR ``LIF``, norse ``LIFBox``), hard reset.

    In order, each timestep: ``v += dt / tau_mem * (v_leak - v + r * i)``; ``s = v > v_threshold`` (strict);
    ``v = v_reset`` where ``s``. Starts at 0. Times in [s], potentials in the student's own unit. Each parameter is one
    number, or an array of the population's shape; the same holds for the other populations.
    """

    name: str
    tau_mem: Parameter
    r: Parameter = 1.0
    v_leak: Parameter = 0.0
    v_threshold: Parameter = 1.0
    v_reset: Parameter = 0.0

    def __post_init__(self) -> None:
        _parameters(self, "tau_mem", "r", "v_leak", "v_threshold", "v_reset")
        _check_positive(self, "tau_mem")
        _check_threshold(self)


@dataclass(frozen=True, kw_only=True)
class CubaLIF:
    """Leaky integrate-and-fire with a synaptic current (NIR ``CubaLIF``), hard reset.

    In order, each timestep: ``u += dt / tau_syn * (w_in * i - u)``; ``v += dt / tau_mem * (v_leak - v + r * u)``;
    ``s = v > v_threshold`` (strict); ``v = v_reset`` where ``s``. Both start at 0; a spike leaves ``u`` as it is.
    """

    name: str
    tau_syn: Parameter
    tau_mem: Parameter
    r: Parameter = 1.0
    w_in: Parameter = 1.0
    v_leak: Parameter = 0.0
    v_threshold: Parameter = 1.0
    v_reset: Parameter = 0.0

    def __post_init__(self) -> None:
        _parameters(self, "tau_syn", "tau_mem", "r", "w_in", "v_leak", "v_threshold", "v_reset")
        _check_positive(self, "tau_syn")
        _check_positive(self, "tau_mem")
        _check_threshold(self)


@dataclass(frozen=True, kw_only=True)
class IF:
    """Integrate-and-fire without a leak (NIR ``IF``): ``v += dt * r * i``; then as :class:`LIF`."""

    name: str
    r: Parameter = 1.0
    v_threshold: Parameter = 1.0
    v_reset: Parameter = 0.0

    def __post_init__(self) -> None:
        _parameters(self, "r", "v_threshold", "v_reset")
        _check_threshold(self)


@dataclass(frozen=True, kw_only=True)
class LI:
    """A leaky integrator that never fires (NIR ``LI``): ``v += dt / tau_mem * (v_leak - v + r * i)``."""

    name: str
    tau_mem: Parameter
    r: Parameter = 1.0
    v_leak: Parameter = 0.0

    def __post_init__(self) -> None:
        _parameters(self, "tau_mem", "r", "v_leak")
        _check_positive(self, "tau_mem")


@dataclass(frozen=True, kw_only=True)
class Integrator:
    """A population that never fires (NIR ``I``): ``v += dt * r * i``; the logits are ``v`` after the last timestep."""

    name: str
    r: Parameter = 1.0

    def __post_init__(self) -> None:
        _parameters(self, "r")


def _parameters(node: object, *names: str) -> None:
    """Check parameters; an array of equal values is kept as that value."""
    for name in names:
        where = str(getattr(node, "name", ""))
        _float_field(node, name, where)
        values = getattr(node, name)
        if not values.size:
            raise GraphError(f"{where}.{name}", "no values", "one number, or one for each neuron")
        if values.min() == values.max():
            object.__setattr__(node, name, float(values.flat[0]))


def _check_positive(node: object, name: str) -> None:
    if np.min(getattr(node, name)) <= 0:
        raise GraphError(f"{node.name}.{name}", f"{np.min(getattr(node, name))} s", "more than 0 s")  # type: ignore[attr-defined]


def _check_threshold(node: LIF | CubaLIF | IF) -> None:
    if np.any(np.asarray(node.v_threshold) <= node.v_reset):
        raise GraphError(node.name, f"v_threshold {node.v_threshold}, v_reset {node.v_reset}", "v_threshold > v_reset")


Node = Union[
    Input, Normalize, Conv2d, Linear, BatchNorm, Scale, Pool2d, Flatten, Delay, LIF, CubaLIF, IF, LI, Integrator
]
#: Populations: nodes with a state of their own.
Neuron = Union[LIF, CubaLIF, IF, LI, Integrator]
NEURONS = (LIF, CubaLIF, IF, LI, Integrator)
#: Populations that fire.
SPIKING = (LIF, CubaLIF, IF)


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
        Duplicate or unknown names, no single input, loops without a delay, delays that are no whole timesteps, or
        shapes that do not fit.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    dt: float = 1e-3
    timesteps: int = 4
    labels: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names):
            raise GraphError("nodes", f"names {names}", "unique names")
        unknown = {name for edge in self.edges for name in edge} - set(names)
        if unknown:
            raise GraphError("edges", f"unknown nodes {sorted(unknown)}", f"{names}")
        if not (self.dt > 0 and self.timesteps >= 1):
            raise GraphError("time", f"dt {self.dt} s, {self.timesteps} timesteps", "dt > 0 and at least 1 timestep")
        if sum(isinstance(node, Input) for node in self.nodes) != 1:
            raise GraphError("nodes", "no single Input node", "exactly one Input")
        object.__setattr__(self, "shapes", MappingProxyType(_infer_shapes(self)))

    def node(self, name: str) -> Node:
        """Return the node called `name`."""
        for candidate in self.nodes:
            if candidate.name == name:
                return candidate
        raise GraphError("node", name, f"{[candidate.name for candidate in self.nodes]}")

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the names of the nodes with an edge into `name`."""
        return tuple(source for source, target in self.edges if target == name)

    def targets(self, name: str) -> tuple[str, ...]:
        """Return the names of the nodes that `name` has an edge into."""
        return tuple(target for source, target in self.edges if source == name)

    @property
    def input(self) -> Input:
        """The one input node."""
        return next(node for node in self.nodes if isinstance(node, Input))

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
        return whole.astype(np.int64)

    def ordered(self) -> tuple[Node, ...]:
        """Return the nodes so that each comes after what it needs of the same timestep.

        A :class:`Delay` of at least one timestep needs nothing of the same timestep.

        Raises
        ------
        GraphError
            If the graph has a loop without such a delay.
        """
        late = {n.name for n in self.nodes if isinstance(n, Delay) and self.delay_steps(n.name).min() > 0}
        waiting = {node.name: set() if node.name in late else set(self.sources(node.name)) for node in self.nodes}
        order: list[str] = []
        while waiting:
            ready = [name for name, sources in waiting.items() if not sources]
            if not ready:
                raise GraphError(
                    "edges",
                    f"a loop without a delay through {sorted(waiting)}",
                    f"feed-forward connections, or loops with a Delay of at least dt = {self.dt} s",
                )
            for name in ready:
                del waiting[name]
                order.append(name)
            for sources in waiting.values():
                sources.difference_update(ready)
        return tuple(self.node(name) for name in order)

    def with_nodes(self, nodes: tuple[Node, ...], edges: tuple[tuple[str, str], ...]) -> SpikingGraph:
        """Return a copy with other nodes and edges on the same time grid."""
        return replace(self, nodes=nodes, edges=edges)


def _infer_shapes(graph: SpikingGraph) -> dict[str, tuple[int, ...]]:
    graph.ordered()  # refuses loops without a delay
    shapes: dict[str, tuple[int, ...]] = {graph.input.name: tuple(graph.input.shape)}
    # A node in a loop gets its shape from the first of its sources that has one; the others are compared below.
    pending = [node for node in graph.nodes if node.name not in shapes]
    while pending:
        known = [node for node in pending if any(source in shapes for source in graph.sources(node.name))]
        if not known:
            raise GraphError(pending[0].name, "is not fed by the input", "at least one source")
        for node in known:
            shape = next(shapes[source] for source in graph.sources(node.name) if source in shapes)
            shapes[node.name] = _output_shape(node, shape)
        pending = [node for node in pending if node.name not in shapes]
    for node in graph.nodes:
        incoming = {shapes[source] for source in graph.sources(node.name)}
        if len(incoming) > 1:
            raise GraphError(node.name, f"inputs of shapes {sorted(incoming)}", "inputs of one shape")
    return shapes


def _output_shape(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(node, Conv2d):
        result: tuple[int, ...] = convolved_shape(
            shape, node.weight.shape, node.stride, node.padding, node.dilation, node.groups, node.name
        )
        if node.bias.shape not in ((result[0],), result):
            raise GraphError(f"{node.name}.bias", f"shape {node.bias.shape}", f"{(result[0],)} or {result}")
        return result
    if isinstance(node, Linear):
        features = int(np.prod(shape))
        if node.weight.shape[1] != features or node.bias.shape != node.weight.shape[:1]:
            raise GraphError(node.name, f"weight {node.weight.shape} for {features} inputs", f"(out, {features})")
        return (node.weight.shape[0],)
    if isinstance(node, Pool2d):
        window = (shape[0], 1, *node.kernel) if len(shape) == 3 else (1, 1, *node.kernel)
        return convolved_shape(shape, window, node.stride, node.padding, (1, 1), window[0], node.name)
    if isinstance(node, Flatten):
        return (int(np.prod(shape)),)
    _check_elementwise(node, shape)
    return shape


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
