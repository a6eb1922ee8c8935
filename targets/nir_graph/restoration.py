"""The graph that stars-deploy wrote, from the nodes of the file and the metadata beside them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from stars_deploy.errors import FormatError
from stars_deploy.graph import (
    LI,
    LIF,
    NEURONS,
    Conv2d,
    Delay,
    Flatten,
    FloatArray,
    Input,
    Integrator,
    Node,
    Normalize,
    Scale,
    SpikingGraph,
)
from stars_deploy.targets.nir_graph.content import Content
from stars_deploy.targets.nir_graph.element import ROUNDING, Shape
from stars_deploy.targets.nir_graph.grid import moved, single, timed
from stars_deploy.targets.nir_graph.metadata import Metadata

_REMEDY = "write the file again, or remove the metadata called stars_deploy to read it as a stranger's"


def restore_graph(content: Content, metadata: Metadata, where: str) -> SpikingGraph:
    """Return the graph that was written: every number, name and the order of nodes and edges.

    Parameters
    ----------
    content : Content
        On the file's grid.
    metadata : Metadata
    where : str
        Place of the metadata, for messages.

    Raises
    ------
    FormatError
        If metadata and nodes contradict each other.
    """
    return _Restorer(content, metadata, where).graph()


class _Restorer:
    def __init__(self, content: Content, metadata: Metadata, where: str) -> None:
        self._content = content
        self._metadata = metadata
        self._where = where
        self._names = {place: name for name, place in metadata.names if place}

    def graph(self) -> SpikingGraph:
        metadata = self._metadata
        self._check_nodes()
        self._check_edges()
        nodes = {name: self._node(name, place) for name, place in metadata.names}
        for conv, population in metadata.biases.items():
            self._move_bias(nodes, conv, population)
        self._check_rest(nodes)
        return SpikingGraph(
            nodes=tuple(nodes.values()),
            edges=metadata.edges,
            dt=metadata.dt,
            timesteps=metadata.timesteps,
            labels=metadata.labels,
        )

    def _error(self, field: str, got: object, allowed: str) -> FormatError:
        return FormatError(f"{self._where}.{field}", got, allowed, _REMEDY)

    def _check_nodes(self) -> None:
        metadata, content = self._metadata, self._content
        described = [place for _, place in metadata.names if place] + list(metadata.inserted)
        if sorted(described) != sorted(content.nodes) or len(dict(metadata.names)) != len(metadata.names):
            odd = sorted(set(described) ^ set(content.nodes)) or ["a node twice"]
            raise self._error("names", f"other nodes than the file's: {', '.join(odd[:4])}", "those of the file")
        for name in metadata.inserted:
            if not isinstance(content.nodes[name], Flatten):
                raise self._error("inserted", f"{name}, a {type(content.nodes[name]).__name__}", "a Flatten")
        absent = [name for name, place in metadata.names if not place]
        left_out = [item[0] for item in (metadata.normalize, metadata.readout) if item is not None]
        if sorted(absent) != sorted(left_out):
            raise self._error("names", f"{absent} without a place", f"{left_out}: normalisation and readout")
        if content.summed != (metadata.readout is not None):
            raise self._error("readout", f"the file ends in {content.ends[0]}", "an end that the metadata describe")

    def _check_edges(self) -> None:
        metadata, content = self._metadata, self._content
        image = next(name for name, node in content.nodes.items() if isinstance(node, Input))
        sources, targets = dict(self._names), dict(self._names)
        edges = set()
        if metadata.normalize:
            sources[image] = metadata.normalize[0]
            edges.add((self._names[image], metadata.normalize[0]))
        for name in metadata.inserted:
            following = [target for source, target in content.edges if source == name]
            if len(following) != 1 or following[0] not in targets:
                raise self._error("inserted", f"{name} feeds {', '.join(following)}", "one node that is described")
            targets[name] = targets[following[0]]
        edges |= {(sources[source], targets[target]) for source, target in content.edges if source in sources}
        if metadata.readout:
            edges |= {(sources[end], metadata.readout[0]) for end in content.ends if end in sources}
        if edges != set(metadata.edges) or len(edges) != len(metadata.edges):
            odd = sorted(edges ^ set(metadata.edges)) or [("an edge", "twice")]
            raise self._error("edges", f"other edges than the file's: {' -> '.join(odd[0])}", "those of the file")

    def _node(self, name: str, place: str) -> Node:
        metadata = self._metadata
        if not place and metadata.normalize and name == metadata.normalize[0]:
            _, mean, std = metadata.normalize
            return Normalize(name=name, mean=np.array(mean), std=np.array(std))
        if not place and metadata.readout:
            return Integrator(name=name, r=metadata.readout[1])
        node, shape = replace(self._content.nodes[place], name=name), self._content.shapes[place]
        if isinstance(node, Input):
            return replace(node, low=metadata.low, high=metadata.high)
        node = moved(node, metadata.file_dt, metadata.dt)
        exact = {
            field: self._exact(name, field, np.asarray(getattr(node, field)), shape)
            for field in timed(node)
            if field in metadata.exact.get(name, {})
        }
        node = replace(node, **exact) if exact else node  # type: ignore[arg-type]
        return self._spread(node, () if name in metadata.scalars else shape)

    def _exact(self, name: str, field: str, found: FloatArray, shape: Shape) -> FloatArray:
        place, stored = f"exact.{name}.{field}", self._metadata.exact[name][field]
        values = stored if isinstance(stored, list) else [stored]
        if not all(type(value) in (int, float) for value in values):
            raise self._error(place, "what is no number", "numbers")
        array = np.array(values, dtype=np.float64)
        spread = shape if isinstance(stored, list) else ()
        if array.size != math.prod(spread) or not np.allclose(array.reshape(spread), found, rtol=ROUNDING, atol=0):
            raise self._error(place, "other values than the file's", "the same, up to the rounding of float32")
        return array.reshape(spread)

    def _spread(self, node: Node, shape: Shape) -> Node:
        """Return a Delay or Scale with its values in an array of `shape`; those of a population need none."""
        if isinstance(node, Delay):
            return replace(node, delay=self._shaped(node.name, node.delay, shape))
        if isinstance(node, Scale):
            return replace(node, scale=self._shaped(node.name, node.scale, shape))
        return node

    def _shaped(self, name: str, values: FloatArray, shape: Shape) -> FloatArray:
        if shape:
            return np.array(np.broadcast_to(values, shape))
        if values.min() != values.max():
            raise self._error("scalars", f"{name} has different values", "one for all")
        return np.array(values.flat[0])

    def _move_bias(self, nodes: dict[str, Node], name: str, target: str) -> None:
        conv, population = nodes.get(name), nodes.get(target)
        if not isinstance(conv, Conv2d) or not isinstance(population, (LIF, LI)) or conv.bias.any():
            raise self._error("biases", f"{name} -> {target}", "a Conv2d without bias, and a LIF or LI")
        shape = self._content.shapes[dict(self._metadata.names)[name]]
        if np.any(np.equal(population.r, 0)) or shape != self._content.shapes[dict(self._metadata.names)[target]]:
            raise self._error("biases", f"{target}: r {population.r}, or another shape than {name}", "r > 0, one shape")
        bias = single(np.broadcast_to(np.asarray(population.v_leak / np.asarray(population.r)), shape))
        if "bias" in self._metadata.exact.get(name, {}):
            bias = self._exact(name, "bias", bias, shape)
        nodes[name] = replace(conv, bias=bias)
        nodes[target] = replace(population, v_leak=0.0)

    def _check_rest(self, nodes: dict[str, Node]) -> None:
        for name, values in self._metadata.exact.items():
            known = (*timed(nodes[name]), *(["bias"] if name in self._metadata.biases else [])) if name in nodes else ()
            if not set(values) <= set(known):
                raise self._error(f"exact.{name}", ", ".join(values), ", ".join(known) or "nodes of the graph")
        unknown = {name for name in self._metadata.scalars if not isinstance(nodes.get(name), (Delay, Scale))}
        if unknown:
            raise self._error("scalars", min(unknown), "a Delay or Scale")
        rounding = self._metadata.rounding
        if rounding is None:
            return
        image = next(node for node in nodes.values() if isinstance(node, Input))
        if (rounding.input.name, rounding.input.shape) != (image.name, image.shape):
            got = f"{rounding.input.name} {rounding.input.shape}"
            raise self._error("rounding.input", got, f"{image.name} {image.shape}")
        populations = {node.name for node in nodes.values() if isinstance(node, NEURONS)}
        # The integers may have one more population, which only rounding knows: that drives biases of currents.
        missing = populations - set(rounding.scales)
        if missing:
            raise self._error("rounding.scales", f"not of the populations: {min(missing)}", "one for each population")
