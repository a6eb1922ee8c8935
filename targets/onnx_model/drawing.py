"""An ONNX graph in the making: nodes with unique, reproducible names, and constants kept once.

Names of nodes and of what they make begin with a number; those of weights and other tensors that stand for a part of
the network, and of the model's inputs and outputs, begin with a word. No name of a layer can make two of them equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Numbers = npt.NDArray[Any]
#: Axes of a tensor; a name stands for a size that is not fixed.
Axes = Sequence[Union[int, str]]

#: Oldest opset whose operators take every type that is needed here (Pad, Clip and Greater of integers; axes of
#: ReduceSum and Unsqueeze as inputs), so that any runtime since 2021 can load the model; ONNX Runtime knows it since
#: 1.6.
OPSET = 13
#: Version of the file format that came with that opset.
IR_VERSION = 7


class Drawing:
    """The nodes of one graph. Bodies of loops are drawings of their own, made by :meth:`inner`."""

    def __init__(self, outer: Drawing | None = None) -> None:
        self.nodes: list[NodeProto] = []
        self._shared: _Shared = _Shared() if outer is None else outer._shared
        #: The outermost drawing: what follows from constants alone is drawn there, and runtimes work it out once.
        self.root: Drawing = self if outer is None else outer.root
        self._scope: str = "" if outer is None else outer._scope

    def inner(self) -> Drawing:
        """Return an empty drawing for the body of a loop; it sees everything drawn here before."""
        return Drawing(self)

    def enter(self, scope: str) -> None:
        """Mark what is drawn from now on as part of `scope`, a layer's name, for those who look at the model."""
        self._scope = scope

    def add(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name, `to` if given."""
        return self.add_many(kind, inputs, [to] if to else 1, **attributes)[0]

    def add_many(
        self, kind: str, inputs: Sequence[str], outputs: Union[int, Sequence[str]], **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs and return their names."""
        self._shared.count += 1
        name = f"{self._shared.count}:{self._scope}:{kind}"
        made = [f"{name}.{index}" for index in range(outputs)] if isinstance(outputs, int) else list(outputs)
        if made == [f"{name}.0"]:
            made = [name]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made

    def constant(self, values: npt.ArrayLike, kind: npt.DTypeLike) -> str:
        """Return the name of a small constant; equal ones are kept once."""
        array = np.ascontiguousarray(values, dtype=kind).reshape(np.shape(values))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared.constants:
            name = f"constant:{len(self._shared.constants)}"
            self._shared.constants[key] = name
            self._shared.tensors[name] = numpy_helper.from_array(array, name)
        return self._shared.constants[key]

    def tensor(self, name: str, values: Numbers) -> str:
        """Keep a tensor that stands for a part of the network, once, and return its name."""
        if name not in self._shared.tensors:
            self._shared.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def cast(self, value: str, kind: npt.DTypeLike, name: str = "") -> str:
        """Return `value` in another type, under `name` if given; fractions are cut off, toward zero."""
        return self.add_many("Cast", [value], [name] if name else 1, to=type_of(kind))[0]

    def reshape(self, value: str, axes: Sequence[int]) -> str:
        """Return `value` with other axes; one may be -1."""
        return self.add("Reshape", value, self.constant(axes, np.int64))

    def zeros(self, axes: Sequence[Union[int, str]], kind: npt.DTypeLike) -> str:
        """Return a tensor of zeros; an axis is a number or the name of a tensor of one int64."""
        parts = [axis if isinstance(axis, str) else self.constant([axis], np.int64) for axis in axes]
        shape = parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)
        value = helper.make_tensor("value", type_of(kind), [1], [0])
        return self.add("ConstantOfShape", shape, value=value)

    def finish(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], body: bool = False
    ) -> GraphProto:
        """Return the graph; the constants are in the outermost one."""
        tensors = [] if body else list(self._shared.tensors.values())
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), tensors)


class _Shared:
    """What a drawing and its inner drawings have in common."""

    def __init__(self) -> None:
        self.count = 0
        self.constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.tensors: dict[str, TensorProto] = {}


def type_of(kind: npt.DTypeLike) -> int:
    """Return ONNX's number for a NumPy type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def describe(name: str, kind: npt.DTypeLike, axes: Axes) -> ValueInfoProto:
    """Return the description of an input or output."""
    return helper.make_tensor_value_info(name, type_of(kind), list(axes))
