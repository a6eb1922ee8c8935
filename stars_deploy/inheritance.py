"""``inherit``: a student of the teacher's own topology and weights, with LIF neurons for its ReLUs (a method of ours).

The teacher is traced with :mod:`torch.fx`, so any module is understood whose execution is a plain chain of
convolution or linear layer, batch norm and ReLU, however it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from stars_deploy.errors import TeacherError
from stars_deploy.norms import BATCH_NORMS, BatchNorm
from stars_deploy.spiking import NeuronModel, SpikingLayer
from stars_deploy.teacher import Teacher

REMEDY = "use stride 2 for pooling and ReLU for activations, or a student of its own topology: --student vgg:16-32-64"
ALLOWED = "a chain of Conv2d or Linear, BatchNorm, ReLU, ..., Flatten, Linear (Dropout and Identity are passed over)"
#: Smallest layer scale: a layer whose batch norm is about zero shall not divide by nothing.
SMALLEST_SCALE = 1e-3

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_RELUS = (torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_")
_RESHAPES = (torch.flatten, torch.reshape, "flatten", "reshape", "view")
_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d)
#: Reading a shape, such as ``x.view(x.size(0), -1)`` does, is no computation on the values.
_SHAPE_READERS = ("size", "dim")
#: Samples in the trial run: distinct from any usual axis, so that a reshape over the batch is noticed.
_SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class ChainLayer:
    """One layer of a chain: Conv2d, Linear, BatchNorm, ReLU or Flatten, and where in the teacher it is."""

    name: str
    layer: nn.Module


def inherited_layers(teacher: Teacher, neuron: NeuronModel, balance: float) -> tuple[list[nn.Module], list[float]]:
    """Copy a teacher's layers with LIF for ReLU, so that a firing rate of 1 means a large activation of the teacher.

    Data-free threshold balancing: ``lambda = mean over channels of max(beta + balance |gamma|, 0)`` of the batch norm
    before a ReLU; weights that read it are multiplied by the previous layer's lambda, gamma and beta divided by lambda.

    Parameters
    ----------
    teacher : Teacher
    neuron : NeuronModel
    balance : float

    Returns
    -------
    list of torch.nn.Module
    list of float
        lambda of each spiking layer: ``activation ~ lambda * rate``.

    Raises
    ------
    TeacherError
        If the teacher is not a chain that a spiking chain can inherit, naming the place.
    """
    chain = trace_chain(teacher)
    _check_pattern(chain)
    layers: list[nn.Module] = []
    scales: list[float] = []
    incoming = 1.0
    for item in chain:
        if isinstance(item.layer, nn.ReLU):
            norm = layers[-1]
            if isinstance(norm, BATCH_NORMS):  # always: see _check_pattern
                incoming = _balanced(norm, balance)
            scales.append(incoming)
            layers.append(SpikingLayer(neuron))
        else:
            layers.append(_copied(item, incoming))
    return layers, scales


def trace_chain(teacher: Teacher) -> list[ChainLayer]:
    """Return the layers that a teacher executes, in order, if they are a plain chain.

    Raises
    ------
    TeacherError
        If execution branches (a residual sum), depends on values, or has a layer that no spiking chain can inherit.
    """
    try:
        traced = fx.symbolic_trace(teacher.module)
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.zeros(_SAMPLES, *teacher.input.shape))  # type: ignore[no-untyped-call]
    except Exception as error:  # a stranger's forward may raise anything when traced
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TeacherError(
            "teacher", f"its execution cannot be followed ({first_line})", "a forward without control flow", REMEDY
        ) from error
    modules = dict(traced.named_modules())
    chain: list[ChainLayer] = []
    for node in _line(traced.graph):
        layer = _layer_of(node, modules)
        if layer is not None:
            chain.append(ChainLayer(name=_place(node), layer=layer))
    return chain


def _line(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes between input and output; refuse branches."""
    node = next(node for node in graph.nodes if node.op == "placeholder")
    while True:
        users = [user for user in node.users if not _reads_shape(user)]
        if len(users) != 1:
            names = ", ".join(_place(user) for user in users) or "nothing"
            raise TeacherError(_place(node), f"feeds {len(users)} operations ({names})", ALLOWED, REMEDY)
        source, node = node, users[0]
        if node.op == "output":
            return
        others = [other for other in node.all_input_nodes if other is not source and not _reads_shape(other)]
        if others or node.args[:1] != (source,):
            raise TeacherError(_place(node), f"joins {_place(source)} with something else", ALLOWED, REMEDY)
        yield node


def _reads_shape(node: fx.Node) -> bool:
    """Whether a node gives shapes (or numbers made of them) and not values."""
    if node.op == "call_method":
        return node.target in _SHAPE_READERS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    inputs = node.all_input_nodes
    return bool(inputs) and all(_reads_shape(source) for source in inputs)


def _layer_of(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """Return the layer that a node stands for, None if it does nothing."""
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    flat = (_SAMPLES, int(torch.Size(before[1:]).numel()))
    # The path of a module may be called like a method ("relu"): only one of the two is there.
    module = modules[str(node.target)] if node.op == "call_module" else None
    operation = node.target if module is None else None
    if isinstance(module, (nn.Conv2d, *BATCH_NORMS, nn.ReLU)) or (isinstance(module, nn.Linear) and before == flat):
        return module
    if operation in _RELUS:
        return nn.ReLU()
    if isinstance(module, nn.Flatten) or operation in _RESHAPES:
        # These keep the order of values: whatever comes out as (batch, everything) was flattened.
        if after == flat:
            return None if before == flat else nn.Flatten()
        raise TeacherError(_place(node), f"reshapes {before} to {after}", f"flattening to {flat}", REMEDY)
    if _does_nothing(node, module, before == after):
        return None
    kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    raise TeacherError(_place(node), kind, ALLOWED, REMEDY)


def _does_nothing(node: fx.Node, module: nn.Module | None, same_shape: bool) -> bool:
    """Whether a node passes its input on, exactly, at inference."""
    if isinstance(module, _NOTHING):
        return True
    if isinstance(module, _ADAPTIVE_POOLS):
        # An adaptive pool to the size that is there has windows of one pixel.
        return same_shape
    if isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)):
        plain = getattr(module, "divisor_override", None) is None
        return same_shape and plain and module.kernel_size in (1, (1, 1))
    if module is not None:
        return False
    if node.target is functional.adaptive_avg_pool2d:
        return same_shape
    if node.target in _DROPOUTS:
        training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        return training is False
    return node.target in ("contiguous", "float")


def _shape(node: fx.Node) -> tuple[int, ...]:
    known: Any = node.meta.get("tensor_meta")
    return tuple(known.shape) if isinstance(getattr(known, "shape", None), torch.Size) else ()


def _place(node: fx.Node) -> str:
    return f"teacher.{node.target}" if node.op == "call_module" else f"teacher:{node.name}"


def _check_pattern(chain: list[ChainLayer]) -> None:
    """Refuse anything but (weights, batch norm, ReLU) repeated, then a linear layer; Flatten only before Linear."""
    for item, following in zip(chain, [*chain[1:], None], strict=True):
        after = following.layer if following is not None else None
        if isinstance(item.layer, nn.Flatten) and not isinstance(after, nn.Linear):
            place = "the output" if after is None else type(after).__name__
            raise TeacherError(item.name, f"Flatten before {place}", "Flatten before Linear", REMEDY)
    rest = [item for item in chain if not isinstance(item.layer, nn.Flatten)]
    wanted = ((nn.Conv2d, nn.Linear), BATCH_NORMS, (nn.ReLU,))
    words = ("Conv2d or Linear", "BatchNorm", "ReLU")
    for index, item in enumerate(rest[:-1]):
        if not isinstance(item.layer, wanted[index % 3]):
            raise TeacherError(
                item.name, f"a {type(item.layer).__name__} where {words[index % 3]} is expected",
                "convolution - BatchNorm - ReLU, repeated, then a Linear layer", REMEDY,
            )  # fmt: skip
    if len(rest) < 4 or len(rest) % 3 != 1 or not isinstance(rest[-1].layer, nn.Linear):
        name = rest[-1].name if rest else "teacher"
        raise TeacherError(
            name, f"the last of {len(rest)} layers",
            "convolution - BatchNorm - ReLU, at least once, then one Linear layer at the end", REMEDY,
        )  # fmt: skip


def _copied(item: ChainLayer, incoming: float) -> nn.Module:
    """Copy a layer; weights that read spikes are scaled, batch norms become affine."""
    layer = item.layer
    if isinstance(layer, nn.Conv2d):
        twin: nn.Module = _blank_convolution(layer, item.name)
    elif isinstance(layer, nn.Linear):
        twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    elif isinstance(layer, BATCH_NORMS):
        kind = nn.BatchNorm2d if isinstance(layer, nn.BatchNorm2d) else nn.BatchNorm1d
        twin = kind(layer.num_features, eps=layer.eps)
    else:
        return nn.Flatten()
    state = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    twin.load_state_dict({**twin.state_dict(), **state})
    if isinstance(twin, (nn.Conv2d, nn.Linear)):
        with torch.no_grad():
            twin.weight.mul_(incoming)
    return twin


def _blank_convolution(conv: nn.Conv2d, name: str) -> nn.Conv2d:
    spans = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
    padding: Any = conv.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same" and not any(span % 2 for span in spans):
        padding = tuple(span // 2 for span in spans)
    if conv.padding_mode != "zeros" or isinstance(padding, str):
        raise TeacherError(
            name, f"padding {conv.padding!r}, {conv.padding_mode}", "zeros, as many on both sides", REMEDY
        )
    kernel, stride, dilation = (_pair(value) for value in (conv.kernel_size, conv.stride, conv.dilation))
    return nn.Conv2d(
        conv.in_channels, conv.out_channels, kernel, stride, padding, dilation, conv.groups, conv.bias is not None
    )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _balanced(norm: BatchNorm, balance: float) -> float:
    """Divide what a batch norm puts out by its scale, and return the scale."""
    gamma: Tensor = norm.weight
    beta: Tensor = norm.bias
    with torch.no_grad():
        scale = max(float((beta + balance * gamma.abs()).clamp_min(0).mean()), SMALLEST_SCALE)
        gamma.div_(scale)
        beta.div_(scale)
    return scale
