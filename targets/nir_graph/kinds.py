"""The kinds of nodes of a NIR file that the float graph has, and what reads each.

A ``Conv1d`` becomes a ``Conv2d`` with a kernel of (1, k).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    FloatArray,
    Integrator,
    Linear,
    Node,
    Pool2d,
    Scale,
    convolved_shape,
)
from stars_deploy.targets.nir_graph.element import MAX_NEURONS, Element, Shape, graph_shape

_COMMON = frozenset({"type", "metadata"})


def read_element(element: Element) -> tuple[Node, Shape]:
    """Return the node of the float graph, and the shape that leaves it (NIR's).

    Raises
    ------
    FormatError
        If NIR has no such node, the float graph has no equal one, or fields are missing or do not fit.
    GraphError
        If the node's own constructor refuses it.
    """
    if element.kind not in _KINDS:
        raise element.group.error(
            "type", f"{element.kind[:80]!r}{_REASONS.get(element.kind, '')}", ", ".join(["Input", "Output", *_KINDS])
        )
    fields, read = _KINDS[element.kind]
    element.group.only(_COMMON | fields)
    node, shape = read(element)
    if not 1 <= math.prod(shape) <= MAX_NEURONS:
        raise element.group.error("", f"makes {shape}", f"1 to {MAX_NEURONS} values")
    return node, shape


def square(node: Node) -> bool:
    """Whether nir 1.0.8 infers the shape that leaves `node` correctly."""
    return not isinstance(node, Conv2d) or node.weight.shape[2] == node.weight.shape[3]


# ---------------------------------------------------------------- projections


def _read_dense(element: Element) -> tuple[Node, Shape]:
    stated, inputs = element.group.shape("weight"), math.prod(element.shape)
    if len(stated) != 2 or stated[1] != inputs:
        raise element.group.error(
            "weight",
            f"shape {stated}",
            f"(out, {inputs}) for the {element.shape} that enters {element.name}",
            "export it without time and batch (ignore_dims in snnTorch)",
        )
    weight = element.weight(2)  # before anything is made of the size that it claims
    bias = element.bias(len(weight)) if "bias" in element.group else np.zeros(len(weight))
    return Linear(name=element.name, weight=weight, bias=bias), (len(weight),)


def _read_conv2d(element: Element) -> tuple[Node, Shape]:
    element.rank(3, "(C, H, W)")
    element.check_stated("input_shape", element.shape[1:])
    return _convolution(element, element.weight(4), 2)


def _read_conv1d(element: Element) -> tuple[Node, Shape]:
    element.rank(2, "(C, L)")
    element.check_stated("input_shape", element.shape[1:])
    node, shape = _convolution(element, element.weight(3)[:, :, None], 1)
    return node, (shape[0], shape[2])


def _convolution(element: Element, weight: FloatArray, axes: int) -> tuple[Conv2d, Shape]:
    stride, dilation = (element.sizes(field, axes, 1) for field in ("stride", "dilation"))
    kernel = weight.shape[4 - axes :]
    if element.group.is_text("padding"):
        padding, front = _named_padding(element, kernel, stride, dilation)
        weight = np.pad(weight, [(0, 0)] * (4 - axes) + [(rows, 0) for rows in front])
    else:
        padding = element.sizes("padding", axes, 0)
    fill = 2 - axes
    conv = Conv2d(
        name=element.name,
        weight=weight,
        bias=element.bias(len(weight)),
        stride=(1,) * fill + stride,  # type: ignore[arg-type]
        padding=(0,) * fill + padding,  # type: ignore[arg-type]
        dilation=(1,) * fill + dilation,  # type: ignore[arg-type]
        groups=element.one("groups", 1),
    )
    sizes = conv.stride, conv.padding, conv.dilation, conv.groups
    return conv, convolved_shape(graph_shape(element.shape), conv.weight.shape, *sizes, element.group.name)


def _named_padding(element: Element, kernel: Shape, stride: Shape, dilation: Shape) -> tuple[Shape, Shape]:
    """Return the padding on each axis, and how many rows of zeros the kernel gets in front.

    ``same`` pads ``dilation (kernel - 1)`` in all, the odd one behind. A kernel of even size with dilation 1 is given a
    row of zeros in front: then as much is needed before as behind.
    """
    name = element.group.text("padding")
    if name == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if name != "same":
        raise element.group.error("padding", repr(name), "'same', 'valid' or whole numbers")
    if max(stride) > 1:
        raise element.group.error("stride", stride, "1 with padding 'same'")
    front = tuple(gap * (size - 1) % 2 for size, gap in zip(kernel, dilation, strict=True))
    if any(rows and gap > 1 for rows, gap in zip(front, dilation, strict=True)):
        raise element.group.error(
            "padding",
            f"'same' for a kernel of {kernel} with dilation {dilation}",
            "as much padding before as behind",
            "use a kernel of odd size",
        )
    padding = tuple(gap * (size + rows - 1) // 2 for size, gap, rows in zip(kernel, dilation, front, strict=True))
    return padding, front


def _read_pool2d(element: Element) -> tuple[Node, Shape]:
    element.rank(3, "(C, H, W)")
    kernel, stride = (element.sizes(field, 2, 1) for field in ("kernel_size", "stride"))
    padding = element.sizes("padding", 2, 0)
    average = element.kind == "AvgPool2d"
    sizes: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
    node = Pool2d(name=element.name, average=average, **sizes)
    channels = element.shape[0]
    return node, convolved_shape(
        element.shape, (channels, 1, *kernel), node.stride, node.padding, (1, 1), channels, element.group.name
    )


def _read_flatten(element: Element) -> tuple[Node, Shape]:
    element.check_stated("input_type", element.shape)
    axes = len(element.shape)
    first, last = (int(element.group.number(field)) for field in ("start_dim", "end_dim"))
    begin, end = first + axes if first < 0 else first, last + axes if last < 0 else last
    if axes > 1 and not 0 <= begin <= end < axes:
        raise element.group.error("", f"axes {first} to {last} of {element.shape}", f"axes of the {axes} there are")
    # Whatever it leaves apart is read in the same order by a dense layer: the reader checks that nothing else follows.
    return Flatten(name=element.name), (math.prod(element.shape),)


def flattens_partly(element: Element) -> bool:
    """Whether a Flatten leaves several axes of more than one element, which only a dense layer reads as one."""
    axes = len(element.shape)
    first, last = (int(element.group.number(field)) for field in ("start_dim", "end_dim"))
    begin, end = first + axes if first < 0 else first, last + axes if last < 0 else last
    apart = element.shape[:begin] + element.shape[end + 1 :]
    return axes > 1 and math.prod(apart) > 1


# ---------------------------------------------------------------- elements of the input's shape


def _read_scale(element: Element) -> tuple[Node, Shape]:
    return Scale(name=element.name, scale=element.elementwise("scale")), element.shape


def _read_delay(element: Element) -> tuple[Node, Shape]:
    return Delay(name=element.name, delay=element.elementwise("delay")), element.shape


def _read_lif(element: Element) -> tuple[Node, Shape]:
    node = LIF(
        name=element.name,
        tau_mem=element.time("tau"),
        r=element.elementwise("r"),
        v_leak=element.elementwise("v_leak"),
        v_threshold=element.elementwise("v_threshold"),
        v_reset=element.elementwise("v_reset", 0.0),
    )
    return node, element.shape


def _read_cuba_lif(element: Element) -> tuple[Node, Shape]:
    node = CubaLIF(
        name=element.name,
        tau_syn=element.time("tau_syn"),
        tau_mem=element.time("tau_mem"),
        r=element.elementwise("r"),
        w_in=element.elementwise("w_in", 1.0),
        v_leak=element.elementwise("v_leak"),
        v_threshold=element.elementwise("v_threshold"),
        v_reset=element.elementwise("v_reset", 0.0),
    )
    return node, element.shape


def _read_if(element: Element) -> tuple[Node, Shape]:
    node = IF(
        name=element.name,
        r=element.elementwise("r"),
        v_threshold=element.elementwise("v_threshold"),
        v_reset=element.elementwise("v_reset", 0.0),
    )
    return node, element.shape


def _read_li(element: Element) -> tuple[Node, Shape]:
    leak, r = element.elementwise("v_leak"), element.elementwise("r")
    return LI(name=element.name, tau_mem=element.time("tau"), r=r, v_leak=leak), element.shape


def _read_integrator(element: Element) -> tuple[Node, Shape]:
    return Integrator(name=element.name, r=element.elementwise("r")), element.shape


_CONV = frozenset({"input_shape", "weight", "stride", "padding", "dilation", "groups", "bias"})
_POOL = frozenset({"kernel_size", "stride", "padding"})
#: For each kind of node its fields, and what reads it.
_KINDS: Mapping[str, tuple[frozenset[str], Callable[[Element], tuple[Node, Shape]]]] = {
    "Affine": (frozenset({"weight", "bias"}), _read_dense),
    "Linear": (frozenset({"weight"}), _read_dense),
    "Conv1d": (_CONV, _read_conv1d),
    "Conv2d": (_CONV, _read_conv2d),
    "SumPool2d": (_POOL, _read_pool2d),
    "AvgPool2d": (_POOL, _read_pool2d),
    "Flatten": (frozenset({"start_dim", "end_dim", "input_type"}), _read_flatten),
    "Scale": (frozenset({"scale"}), _read_scale),
    "Delay": (frozenset({"delay"}), _read_delay),
    "LIF": (frozenset({"tau", "r", "v_leak", "v_threshold", "v_reset"}), _read_lif),
    "CubaLIF": (
        frozenset({"tau_syn", "tau_mem", "r", "w_in", "v_leak", "v_threshold", "v_reset"}),
        _read_cuba_lif,
    ),
    "IF": (frozenset({"r", "v_threshold", "v_reset"}), _read_if),
    "LI": (frozenset({"tau", "r", "v_leak"}), _read_li),
    "I": (frozenset({"r"}), _read_integrator),
}
#: Why a node of NIR is not read.
_REASONS: Mapping[str, str] = {
    "CubaLI": ": an integrator of a synaptic current sends no spikes, and the float graph has no such population",
    "Threshold": ": a threshold without a potential of its own is no population",
    "Input": ": the Input of the graph itself",
}
