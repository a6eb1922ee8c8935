"""Populations: gains into weights, resets to 0, leaks into biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    SPIKING,
    Conv2d,
    CubaLIF,
    FloatArray,
    Linear,
    Neuron,
    Node,
    Parameter,
    Scale,
    SpikingGraph,
)
from stars_deploy.lowering.chains import chains_of, fresh_name, join_chains, populations_of
from stars_deploy.lowering.composition import spatial

#: Gains, and time constants against dt, count as equal within this: what float32 files keep.
EQUAL = 1e-6


def membrane_gain(node: Neuron, dt: float) -> Parameter:
    """Return the step of the potential in the first timestep of a current of 1 [unit of potential].

    ``dt / tau_mem * r`` of LIF and LI, ``dt * r`` of IF and Integrator, ``dt / tau_mem * r * dt / tau_syn * w_in`` of
    CubaLIF. One number where all neurons agree to within the rounding of float32, as they do in a lowered graph.
    """
    gain = node.r * (dt / node.tau_mem if isinstance(node, (LIF, LI, CubaLIF)) else dt)
    if isinstance(node, CubaLIF):
        gain = gain * (node.w_in * dt / node.tau_syn)
    values = np.asarray(gain)
    return float(values.flat[0]) if np.ptp(values) <= EQUAL * np.abs(values).max() else values


def fold_gains(graph: SpikingGraph) -> SpikingGraph:
    """Fold the gains of each population into what feeds it, so that every population has those that all tools know.

    LIF and LI: ``r = 1``; CubaLIF: ``r = tau_mem / dt``, ``w_in = tau_syn / dt``; IF and Integrator: ``r = 1 / dt``.
    The new gains and the times are rounded to float32 first, and the factor is that between old and new gains. It goes
    into a Conv2d, Linear or Scale that feeds nothing else, or else into a new node: a depthwise 1x1 Conv2d for a
    population of (C, H, W) with one gain for each channel, and otherwise a Scale.

    Requires nothing. Ensures the gains above; the currents change, the potentials do not.
    """
    changed: dict[str, Node] = {}
    factors: dict[str, FloatArray] = {}
    for population in populations_of(graph):
        rounded = _with(population, {name: single(getattr(population, name)) for name in _times(population)})
        gains = _gains(rounded, graph.dt, 1.0)
        portable = _with(rounded, {name: single(value) for name, value in gains.items()})
        changed[population.name] = portable
        factor = np.broadcast_to(_factor(population, portable), graph.shapes[population.name])
        if (factor != 1).any():
            factors[population.name] = factor
    return _scaled(graph, changed, factors)


def fold_uneven_gains(graph: SpikingGraph) -> SpikingGraph:
    """Fold gains that differ between the neurons of a population, or are 0, into a Scale in front of it.

    Requires paths of their own (:func:`~stars_deploy.lowering.chains.separate_paths`). Ensures that
    :func:`membrane_gain` is one number for each population, and none of its factors 0.
    """
    uneven: dict[str, Node] = {}
    factors: dict[str, FloatArray] = {}
    for node in populations_of(graph):
        gains = [membrane_gain(node, graph.dt), node.r, node.w_in if isinstance(node, CubaLIF) else 1.0]
        if isinstance(gains[0], np.ndarray) or any(np.any(np.asarray(gain) == 0) for gain in gains):
            even = _with(node, _gains(node, graph.dt))
            uneven[node.name], factors[node.name] = even, np.asarray(_factor(node, even))
    taken = {node.name for node in graph.nodes}
    chains = [
        replace(
            chain,
            nodes=(*chain.nodes, Scale(name=fresh_name(f"{chain.target}.gain", taken), scale=factors[chain.target])),
        )
        if chain.target in uneven
        else chain
        for chain in chains_of(graph)
    ]
    return join_chains(graph, chains, uneven)


def shift_resets(graph: SpikingGraph) -> SpikingGraph:
    """Measure the potential of each population from its ``v_reset``: ``v' = v - v_reset``.

    Exact because a population starts at its ``v_reset``. Refused where it would rest elsewhere, since other tools start
    at rest and it could not start at both.

    Requires nothing. Ensures that every ``v_reset`` is 0.

    Raises
    ------
    GraphError
        If ``v_reset`` is neither 0 nor the ``v_leak`` of the same neuron.
    """
    shifted: dict[str, Node] = {}
    for node in populations_of(graph):
        if not isinstance(node, SPIKING) or not np.any(node.v_reset):
            continue
        changes: dict[str, Parameter] = {"v_reset": 0.0, "v_threshold": node.v_threshold - node.v_reset}
        if not isinstance(node, IF):
            if np.any((np.asarray(node.v_reset) != 0) & (np.asarray(node.v_leak) != node.v_reset)):
                raise GraphError(
                    node.name,
                    f"v_reset {brief(node.v_reset)} and v_leak {brief(node.v_leak)}",
                    "v_reset of 0, or equal to v_leak",
                    "train it with a reset to its resting potential, or to 0",
                )
            changes["v_leak"] = node.v_leak - node.v_reset
        shifted[node.name] = _with(node, changes)
    return with_nodes(graph, shifted)


def fold_leaks(graph: SpikingGraph) -> SpikingGraph:
    """Turn the ``v_leak`` of LIF and LI into a bias of the first projection that feeds them: ``b + v_leak / r``.

    CubaLIF keeps its ``v_leak``, because a projection's bias enters its current and ``v_leak`` its potential: there the
    bias of the membrane is ``v_leak * dt / tau_mem`` in each timestep.

    Requires one Conv2d or Linear at the end of each chain and gains other than 0. Ensures that ``v_leak`` is 0
    everywhere but in CubaLIF.
    """
    changed: dict[str, Node] = {}
    for node in populations_of(graph):
        if isinstance(node, (LIF, LI)) and np.any(node.v_leak):
            first = graph.node(graph.sources(node.name)[0])
            extra = np.asarray(node.v_leak / np.asarray(node.r))
            if isinstance(first, Conv2d) and extra.ndim:
                bias = first.bias if first.bias.ndim == 3 else first.bias.reshape(-1, 1, 1)
                changed[first.name] = replace(first, bias=bias + extra)
            elif isinstance(first, (Conv2d, Linear)):
                changed[first.name] = replace(first, bias=first.bias + extra)
            changed[node.name] = replace(node, v_leak=0.0)
    return with_nodes(graph, changed)


def move_current_biases(graph: SpikingGraph) -> SpikingGraph:
    """Move a bias that enters the current of a CubaLIF to its ``v_leak``, where the current lasts one timestep.

    The chip's biases enter the membrane. With ``tau_syn = dt`` that is the same: ``v_leak + r * w_in * b``. A current
    that lasts longer fills with the bias over time, which no bias of the membrane does: there it stays.

    Requires one Conv2d or Linear at the end of each chain. Ensures that projections into a CubaLIF have a bias only
    where one of its neurons has a longer ``tau_syn``.
    """
    changed: dict[str, Node] = {}
    for node in [node for node in graph.nodes if isinstance(node, CubaLIF)]:
        leak = np.asarray(node.v_leak)
        for name in graph.sources(node.name):
            projection = graph.node(name)
            if not isinstance(projection, (Conv2d, Linear)) or not projection.bias.any():
                continue
            bias = np.broadcast_to(spatial(projection.bias, len(graph.shapes[name])), graph.shapes[name])
            lasting = np.abs(np.asarray(node.tau_syn) / graph.dt - 1) > EQUAL
            if np.any((bias != 0) & lasting):
                continue
            leak = leak + np.asarray(node.r) * node.w_in * bias
            changed[name] = replace(projection, bias=np.zeros(len(projection.weight)))
        if np.any(leak != node.v_leak):
            changed[node.name] = replace(node, v_leak=leak)
    return with_nodes(graph, changed)


def single(value: Parameter) -> Parameter:
    """Return `value` rounded to the nearest float32."""
    with np.errstate(over="ignore"):  # what becomes infinite is refused by the node that gets it
        return np.asarray(value).astype(np.float32).astype(np.float64)


def brief(value: Parameter) -> str:
    """Return a parameter for a message: one number, or the range of several."""
    return f"{np.min(value):g}" if np.ptp(value) == 0 else f"{np.min(value):g} to {np.max(value):g}"


def with_nodes(graph: SpikingGraph, changed: Mapping[str, Node]) -> SpikingGraph:
    """Return `graph` with the nodes of these names replaced."""
    return graph.with_nodes(tuple(changed.get(node.name, node) for node in graph.nodes), graph.edges)


def _with(node: Neuron, parameters: Mapping[str, Parameter]) -> Neuron:
    return replace(node, **parameters)  # type: ignore[arg-type]


def _times(node: Neuron) -> tuple[str, ...]:
    return tuple(name for name in ("tau_syn", "tau_mem") if hasattr(node, name))


def _gains(node: Neuron, dt: float, leaky: float | None = None) -> dict[str, Parameter]:
    """Return gains that make a current of 1 a step of 1; of LIF and LI, `leaky` in place of theirs where given."""
    if isinstance(node, CubaLIF):
        return {"r": node.tau_mem / dt, "w_in": node.tau_syn / dt}
    if isinstance(node, (LIF, LI)):
        return {"r": node.tau_mem / dt if leaky is None else leaky}
    return {"r": 1 / dt}


def _factor(old: Neuron, new: Neuron) -> Parameter:
    factor = old.r / np.asarray(new.r)
    if isinstance(old, CubaLIF) and isinstance(new, CubaLIF):
        factor = factor * (old.w_in / np.asarray(new.w_in))
    return factor


def _scaled(graph: SpikingGraph, changed: dict[str, Node], factors: Mapping[str, FloatArray]) -> SpikingGraph:
    """Return `graph` with `changed` nodes, and what feeds each population multiplied by its factor."""
    taken = {node.name for node in graph.nodes}
    new: dict[str, list[Node]] = {}
    edges: list[tuple[str, str]] = []
    for source, target in graph.edges:
        node = graph.node(source)
        if target not in factors:
            edges.append((source, target))
            continue
        values = factors[target]
        channels = values.reshape(len(values), -1)
        even = np.ptp(channels, axis=1) <= EQUAL * np.abs(channels).max(axis=1)
        by_channel = channels[:, 0] if even.all() else None
        scaled = _multiplied(node, values, by_channel) if len(graph.targets(source)) == 1 else None
        if scaled:
            changed[source] = scaled
            edges.append((source, target))
        else:
            gain = _gain(fresh_name(f"{target}.gain", taken), values, by_channel)
            new.setdefault(target, []).append(gain)
            edges.extend([(source, gain.name), (gain.name, target)])
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.extend([*new.get(node.name, []), changed.get(node.name, node)])
    return graph.with_nodes(tuple(nodes), tuple(edges))


def _multiplied(node: Node, values: FloatArray, by_channel: FloatArray | None) -> Node | None:
    """Return `node` with its output multiplied by `values`, or None if it cannot hold them."""
    if isinstance(node, Scale):
        return replace(node, scale=node.scale * (values if np.ptp(values) else values.flat[0]))
    if not isinstance(node, (Conv2d, Linear)) or by_channel is None:
        return None
    weight = node.weight * by_channel.reshape(-1, *[1] * (node.weight.ndim - 1))
    return replace(node, weight=weight, bias=node.bias * by_channel.reshape(-1, *[1] * (node.bias.ndim - 1)))


def _gain(name: str, values: FloatArray, by_channel: FloatArray | None) -> Node:
    if values.ndim != 3 or by_channel is None:
        return Scale(name=name, scale=values if np.ptp(values) else np.array(values.flat[0]))
    channels = len(by_channel)
    return Conv2d(name=name, weight=by_channel.reshape(-1, 1, 1, 1), bias=np.zeros(channels), groups=channels)
