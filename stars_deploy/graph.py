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
class LIF:
    """Leaky integrate-and-fire without a synaptic current (NIR ``LIF``, norse ``LIFBox``), hard reset.

    In order, each timestep: ``v += dt / tau_mem * (v_leak - v + r * i)``; ``s = v > v_threshold`` (strict);
    ``v = v_reset`` where ``s``. Times in [s], potentials in the student's own unit.
    """

    name: str
    tau_mem: float
    r: float = 1.0
    v_leak: float = 0.0
    v_threshold: float = 1.0
    v_reset: float = 0.0

    def __post_init__(self) -> None:
        if not (self.tau_mem > 0 and self.v_threshold > self.v_reset):
            raise GraphError(
                self.name,
                f"tau_mem {self.tau_mem}, v_threshold {self.v_threshold}, v_reset {self.v_reset}",
                "tau_mem > 0 and v_threshold > v_reset",
            )


@dataclass(frozen=True, kw_only=True)
class Integrator:
    """A population that never fires (NIR ``I``): ``v += dt * r * i``; the logits are ``v`` after the last timestep."""

    name: str
    r: float = 1.0


Node = Union[Input, Normalize, Conv2d, Linear, BatchNorm, LIF, Integrator]
NEURONS = (LIF, Integrator)


@dataclass(frozen=True, kw_only=True)
class SpikingGraph:
    """A float spiking network with its time grid.

    Parameters
    ----------
    nodes : tuple of Node
        Uniquely named.
    edges : tuple of (str, str)
        From node to node; several edges into one neuron node add up.
    dt : float
        Length of a timestep [s].
    timesteps : int
        Timesteps for one inference (T).
    labels : tuple of str
        Class names, in the order of the logits; may be empty.

    Raises
    ------
    GraphError
        Duplicate or unknown names, no single input, cycles, or shapes that do not fit.
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

    def ordered(self) -> tuple[Node, ...]:
        """Return the nodes so that each comes after its sources.

        Raises
        ------
        GraphError
            If the graph has a cycle.
        """
        waiting = {node.name: set(self.sources(node.name)) for node in self.nodes}
        order: list[str] = []
        while waiting:
            ready = [name for name, sources in waiting.items() if not sources]
            if not ready:
                raise GraphError("edges", f"a cycle through {sorted(waiting)}", "feed-forward connections")
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
    shapes: dict[str, tuple[int, ...]] = {}
    for node in graph.ordered():
        if isinstance(node, Input):
            shapes[node.name] = tuple(node.shape)
            continue
        incoming = {shapes[source] for source in graph.sources(node.name)}
        if len(incoming) != 1:
            raise GraphError(node.name, f"inputs of shapes {sorted(incoming)}", "at least one input, all of one shape")
        shapes[node.name] = _output_shape(node, incoming.pop())
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
    channels = {Normalize: "mean", BatchNorm: "gamma"}.get(type(node))
    if channels and getattr(node, channels).shape != shape[:1]:
        raise GraphError(node.name, f"{getattr(node, channels).shape[0]} channels", f"{shape[0]} channels")
    return shape
