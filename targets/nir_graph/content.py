"""The nodes of a NIR file, read one after the other from the Input on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stars_deploy.graph import NEURONS, Input, Node
from stars_deploy.targets.hdf5_guard import GuardedGroup
from stars_deploy.targets.nir_graph.element import MAX_NEURONS, Element, Shape, graph_shape, read_shape
from stars_deploy.targets.nir_graph.kinds import flattens_partly, read_element, square
from stars_deploy.targets.nir_graph.structure import Edge, Structure, read_structure

_DENSE = ("Affine", "Linear", "Flatten")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file holds, in its own names and on its own grid.

    Parameters
    ----------
    nodes : dict of str to Node
        All but the Output, the Input first, each after one of its sources.
    shapes : dict of str to tuple of int
        What leaves each node, as the float graph holds it.
    edges : tuple of (str, str)
        All but those into the Output.
    ends : tuple of str
        The nodes with an edge into the Output.
    """

    nodes: dict[str, Node]
    shapes: dict[str, Shape]
    edges: tuple[Edge, ...]
    ends: tuple[str, ...]

    @property
    def summed(self) -> bool:
        """Whether the logits are the sum of the output over time: it is not that of one population."""
        return len(self.ends) > 1 or not isinstance(self.nodes[self.ends[0]], NEURONS)


def read_content(top: GuardedGroup, dt: float) -> Content:
    """Return the content of the graph `top`, whose times are on a grid of `dt` [s].

    Raises
    ------
    FormatError
        If a node is not understood, or does not fit what enters it.
    GraphError
        If a node's own constructor refuses it.
    """
    structure = read_structure(top)
    name = structure.input
    group = structure.nodes[name][1]
    group.only(frozenset({"type", "metadata", "shape"}))
    shapes = {name: read_shape(group)}
    trusted = {name: True}
    nodes: dict[str, Node] = {name: Input(name=name, shape=graph_shape(shapes[name]))}
    neurons = math.prod(shapes[name])
    order = [name]
    for source in order:
        for target in structure.targets(source):
            if target in nodes or target == structure.output:
                continue
            kind, group = structure.nodes[target]
            element = Element(name=target, kind=kind, group=group, shape=shapes[source], trusted=trusted[source], dt=dt)
            nodes[target], shapes[target] = read_element(element)
            trusted[target] = trusted[source] and square(nodes[target])
            if kind == "Flatten" and flattens_partly(element):
                _check_dense(structure, target, group)
            if isinstance(nodes[target], NEURONS):
                neurons += math.prod(shapes[target])
            if neurons > MAX_NEURONS:
                raise group.error("", f"{neurons} neurons so far", f"at most {MAX_NEURONS} in all")
            order.append(target)
    ends = tuple(structure.sources(structure.output))
    _check_output(structure, shapes[ends[0]], trusted[ends[0]], dt)
    return Content(
        nodes=nodes,
        shapes={name: graph_shape(shape) for name, shape in shapes.items()},
        edges=tuple(edge for edge in structure.edges if edge[1] != structure.output),
        ends=ends,
    )


def _check_dense(structure: Structure, name: str, group: GuardedGroup) -> None:
    others = [target for target in structure.targets(name) if structure.nodes[target][0] not in _DENSE]
    if others:
        raise group.error(
            "",
            f"leaves axes apart before {others[0]} ({structure.nodes[others[0]][0]})",
            "a Flatten of all axes, or one before Affine, Linear or Flatten only",
        )


def _check_output(structure: Structure, shape: Shape, trusted: bool, dt: float) -> None:
    kind, group = structure.nodes[structure.output]
    group.only(frozenset({"type", "metadata", "shape"}))
    Element(name=structure.output, kind=kind, group=group, shape=shape, trusted=trusted, dt=dt).check_stated(
        "shape", shape
    )
