"""The two forms that a float graph is brought to, pass by pass.

A pass takes a graph and returns one that computes the same; its docstring says what it requires and ensures. It refuses
what it cannot rewrite exactly, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace

import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph import Input, Node, SpikingGraph
from stars_deploy.lowering.chains import require_one_end, separate_paths
from stars_deploy.lowering.delays import move_delays
from stars_deploy.lowering.folding import fold_batch_norm, fold_normalization
from stars_deploy.lowering.joining import join_projections
from stars_deploy.lowering.neurons import (
    fold_gains,
    fold_leaks,
    fold_uneven_gains,
    move_current_biases,
    shift_resets,
    single,
    with_nodes,
)

Pass = Callable[[SpikingGraph], SpikingGraph]


def round_parameters(graph: SpikingGraph) -> SpikingGraph:
    """Round every parameter of every node to float32, so that a file of float32 loses nothing.

    Requires nothing. Ensures it but for ``dt`` and the range of the pixels, which no format keeps as float32.

    Raises
    ------
    GraphError
        If a parameter does not fit: beyond 3.4e38, or a time or threshold that rounds to another meaning.
    """
    return with_nodes(graph, {n.name: _rounded(n) for n in graph.nodes if not isinstance(n, Input)})


#: In the order in which they are applied.
CANONICAL: tuple[Pass, ...] = (fold_batch_norm, fold_normalization, fold_gains, round_parameters)
LOWERED: tuple[Pass, ...] = (
    require_one_end,
    fold_batch_norm,
    shift_resets,
    separate_paths,
    fold_uneven_gains,
    move_delays,
    join_projections,
    fold_leaks,
    move_current_biases,
)


def canonicalize(graph: SpikingGraph) -> SpikingGraph:
    """Bring a graph to the form that files hold: as other tools draw networks, in numbers that float32 keeps.

    Batch normalisations are folded; the input's normalisation stays, if it is all that the input feeds. Every
    population has the gains of :func:`~stars_deploy.lowering.neurons.fold_gains`. Applied twice, it changes nothing.

    Raises
    ------
    GraphError
        Naming the pass that failed.
    """
    return _applied(graph, CANONICAL)


def lower(graph: SpikingGraph) -> SpikingGraph:
    """Bring a graph to the form that integers are made of: input, Conv2d, Linear, Delay and populations.

    Each Conv2d or Linear is fed by the input, a population, or a Delay behind one of these, and feeds one population.
    ``v_reset`` is 0; so is ``v_leak``, except in CubaLIF, where a bias enters the current. Each population has
    one :func:`~stars_deploy.lowering.neurons.membrane_gain`. The last population of
    :meth:`~stars_deploy.graph.SpikingGraph.ordered` is the one that is read out. Populations and projections keep their
    names, copies of projections excepted; populations may become flat, or take the shape of a convolution.

    Raises
    ------
    GraphError
        Naming the pass that failed.
    """
    return _applied(graph, LOWERED)


def _applied(graph: SpikingGraph, passes: Iterable[Pass]) -> SpikingGraph:
    for step in passes:
        try:
            graph = step(graph)
        except GraphError as error:
            raise GraphError(f"{step.__name__}, {error.where}", error.got, error.allowed, error.remedy) from error
    return graph


def _rounded(node: Node) -> Node:
    numbers = {field.name: getattr(node, field.name) for field in fields(node)}
    changes = {n: single(value) for n, value in numbers.items() if isinstance(value, (float, np.ndarray))}
    return replace(node, **changes) if changes else node  # type: ignore[arg-type]
