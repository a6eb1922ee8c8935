"""Nodes and edges of a NIR file as one flat graph: every size is checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from stars_deploy.targets.hdf5_guard import GuardedGroup

#: Networks have hundreds; a thousand populations are more than any chip's.
MAX_NODES = 1024
MAX_EDGES = 8192
#: Graphs within graphs; snnTorch writes recurrent layers as one.
MAX_DEPTH = 8
MAX_NAME = 512

Edge = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A NIR graph without graphs inside.

    Parameters
    ----------
    input : str
        Name of the one Input.
    output : str
        Name of the one Output.
    nodes : dict of str to (str, GuardedGroup)
        Kind and fields of each node by name; a node of a graph inside is called ``graph.node``. Sorted by name.
    edges : tuple of (str, str)
        Each once, sorted: nirtorch writes them in an order that changes from run to run, and snnTorch writes some
        twice, which every tool that loads NIR takes for once.
    """

    input: str
    output: str
    nodes: dict[str, tuple[str, GuardedGroup]]
    edges: tuple[Edge, ...]

    def sources(self, name: str) -> list[str]:
        """Return the names of the nodes with an edge into `name`."""
        return [source for source, target in self.edges if target == name]

    def targets(self, name: str) -> list[str]:
        """Return the names of the nodes that `name` has an edge into."""
        return [target for source, target in self.edges if source == name]


def read_structure(graph: GuardedGroup) -> Structure:
    """Return nodes and edges of a NIR graph, those of graphs inside it in their place.

    Raises
    ------
    FormatError
        If it is not a graph of one Input and one Output, is nested too deep, has too many nodes or edges, edges of
        nodes that do not exist, or nodes between which and the Input or the Output there is no way.
    """
    found = _Collector()
    entry, end = found.collect(graph, "", 0)
    edges = found.without_ports(graph, entry, end)
    nodes = {
        name: node for name, node in sorted(found.nodes.items()) if name not in found.ports or name in (entry, end)
    }
    structure = Structure(input=entry, output=end, nodes=nodes, edges=tuple(sorted(edges)))
    for name, edge in ((entry, structure.sources(entry)), (end, structure.targets(end))):
        if edge:
            raise graph.error("edges", f"{name} is the graph's, and has an edge to {edge[0]}", "none beyond it")
    _check_reached(graph, structure)
    return structure


@dataclass
class _Collector:
    nodes: dict[str, tuple[str, GuardedGroup]] = field(default_factory=dict)
    edges: set[Edge] = field(default_factory=set)
    #: Inputs and Outputs of graphs inside, that do nothing but pass on.
    ports: set[str] = field(default_factory=set)
    read: int = 0

    def collect(self, graph: GuardedGroup, prefix: str, depth: int) -> Edge:
        """Add the nodes and edges of `graph`, and return the names of its Input and its Output."""
        if depth > MAX_DEPTH:
            raise graph.error("", f"graphs nested {depth} deep", f"at most {MAX_DEPTH}")
        kind = graph.text("type")
        if kind != "NIRGraph":
            raise graph.error("type", kind, "NIRGraph", "wrap the node in a graph with an Input and an Output")
        graph.only(frozenset({"type", "nodes", "edges", "metadata"}))
        ports: dict[str, list[str]] = {"Input": [], "Output": []}
        inner: dict[str, Edge] = {}
        members = graph.group("nodes")
        for name in members.names():
            self.read += 1
            if self.read > MAX_NODES:
                raise members.error("", f"more than {MAX_NODES} nodes", f"at most {MAX_NODES}")
            node, full = members.group(name), f"{prefix}{name}"
            kind = node.text("type")
            if kind == "NIRGraph":
                inner[name] = self.collect(node, f"{full}.", depth + 1)
                continue
            if full in self.nodes:
                raise members.error(name, f"the same name as the node {full} of a graph inside", "distinct names")
            self.nodes[full] = (kind, node)
            if kind in ports:
                ports[kind].append(full)
        for kind, names in ports.items():
            if len(names) != 1:
                got = f"{len(names)} {kind} nodes ({', '.join(names[:4])})" if names else f"no {kind} node"
                raise graph.error("nodes", got, f"exactly one {kind}", "split the network, or join its inputs")
        self.ports.update(names[0] for names in ports.values())
        self._connect(graph, prefix, set(members.names()), inner)
        return ports["Input"][0], ports["Output"][0]

    def _connect(self, graph: GuardedGroup, prefix: str, known: set[str], inner: dict[str, Edge]) -> None:
        texts = graph.texts("edges", 2 * MAX_EDGES, MAX_NAME)
        if texts.ndim != 2 or texts.shape[1] != 2:
            raise graph.error("edges", f"shape {texts.shape}", "(edges, 2)")
        for source, target in texts:
            for name in (source, target):
                if name not in known:
                    raise graph.error("edges", f"unknown node {name!r}", f"one of {', '.join(sorted(known)[:8])}")
            begin = inner[source][1] if source in inner else f"{prefix}{source}"
            end = inner[target][0] if target in inner else f"{prefix}{target}"
            self.edges.add((begin, end))
        if len(self.edges) > MAX_EDGES:
            raise graph.error("edges", f"{len(self.edges)} edges so far", f"at most {MAX_EDGES}")

    def without_ports(self, graph: GuardedGroup, entry: str, end: str) -> set[Edge]:
        """Return the edges with those through the Inputs and Outputs of graphs inside joined."""
        edges = set(self.edges)
        for port in sorted(self.ports - {entry, end}):
            sources = [edge[0] for edge in edges if edge[1] == port]
            targets = [edge[1] for edge in edges if edge[0] == port]
            if port in sources:
                raise graph.error("edges", f"a loop through {port} with no node in it", "a neuron in every loop")
            edges = {edge for edge in edges if port not in edge}
            if len(edges) + len(sources) * len(targets) > MAX_EDGES:
                raise graph.error("edges", f"more than {MAX_EDGES} edges through {port}", f"at most {MAX_EDGES}")
            edges.update((source, target) for source in sources for target in targets)
        return edges


def _check_reached(graph: GuardedGroup, structure: Structure) -> None:
    following = _reached(structure.input, structure.targets)
    leading = _reached(structure.output, structure.sources)
    for name in structure.nodes:
        if name not in following:
            raise graph.error("edges", f"the input does not reach {name}", "nodes that it feeds", "remove the node")
        if name not in leading:
            raise graph.error(
                "edges", f"{name} is a dead end", "nodes that feed the Output", "remove it, or connect what it lacks"
            )


def _reached(start: str, following: Callable[[str], list[str]]) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        for name in following(waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found
