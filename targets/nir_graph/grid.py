"""Nodes moved between the grid of a graph's own timestep and that of a file's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from stars_deploy.graph import IF, LI, LIF, CubaLIF, Delay, FloatArray, Integrator, Node, Parameter

#: Parameters that are times [s], and those that are rates [1/s]; every other number of a node has no time in it.
TIMES: Mapping[type, tuple[str, ...]] = {
    LIF: ("tau_mem",),
    CubaLIF: ("tau_syn", "tau_mem"),
    LI: ("tau_mem",),
    Delay: ("delay",),
}
RATES: Mapping[type, tuple[str, ...]] = {IF: ("r",), Integrator: ("r",)}


def single(values: Parameter) -> FloatArray:
    """Return `values` rounded to float32, as float64."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def timed(node: Node) -> tuple[str, ...]:
    """Return the names of the parameters of `node` that change with the timestep."""
    return TIMES.get(type(node), ()) + RATES.get(type(node), ())


def moved(node: Node, source: float, target: float) -> Node:
    """Return `node` on a grid of `target` instead of `source` [s], its times and rates rounded to float32.

    ``tau' = tau target / source`` and ``r' = r source / target``: ``dt / tau``, ``dt r`` and delays in timesteps stay.
    """
    changed = {name: single(np.asarray(getattr(node, name)) * (target / source)) for name in TIMES.get(type(node), ())}
    changed |= {name: single(np.asarray(getattr(node, name)) * (source / target)) for name in RATES.get(type(node), ())}
    return replace(node, **changed) if changed else node  # type: ignore[arg-type]
