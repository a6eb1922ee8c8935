"""One timestep of one population, the part that all models are made of: in a Scan, or alone in the one-step model.

The equations and their order are those of :func:`stars_deploy.targets.reference.update`. What bounds prove impossible
(a wrap, a clip) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stars_deploy.populations import DECAY_ONE, STATE_EXP, IntArray, Population
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.onnx_model.arithmetic import Ranges, draw_clip, draw_decay, draw_wrap, find_ranges
from stars_deploy.targets.onnx_model.biases import draw_bias
from stars_deploy.targets.onnx_model.drawing import Drawing
from stars_deploy.targets.onnx_model.frames import channels_last


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A population with the numbers that it is computed in.

    Parameters
    ----------
    population : Population
    ranges : Ranges
    biased : bool
        Whether the input sets its biases.
    """

    population: Population
    ranges: Ranges
    biased: bool

    @property
    def kind(self) -> np.dtype[Any]:
        """Type of its state."""
        return self.ranges.kind

    @property
    def leaks(self) -> bool:
        """Whether its current is a state."""
        return self.population.leaks_current

    @property
    def size(self) -> int:
        """Number of neurons."""
        return self.population.size


def make_cells(graph: QuantizedGraph, timesteps: int | None) -> dict[str, Cell]:
    """Return the cells of `graph` by name, for runs of at most `timesteps`, or of any length."""
    return {
        population.name: Cell(
            population=population,
            ranges=find_ranges(graph, population, timesteps),
            biased=graph.input.biases == population.name,
        )
        for population in graph.populations
    }


def draw_drive(draw: Drawing, cell: Cell, activation: str, current: str = "") -> tuple[str, str]:
    """Draw the current and what it adds to the membrane together with the bias, (..., N) each.

    Parameters
    ----------
    draw : Drawing
    cell : Cell
    activation : str
        Shifted already; empty where nothing enters.
    current : str
        Of the timestep before; empty for a population whose current does not outlast its timestep.
    """
    population, ranges = cell.population, cell.ranges
    made = activation
    if current:
        decay = _flat(population.decay_u, population.shape)
        left = draw_decay(draw, current, decay, f"decay_u:{population.name}", ranges.current, cell.kind, cell.kind)
        made = draw.add("Add", left, activation) if left and activation else left or activation
    if ranges.wraps and made:
        made = draw_wrap(draw, made, cell.kind)
    bias = draw_bias(draw, population, cell.kind)
    return made, draw.add("Add", made, bias) if made and bias else made or bias


def draw_membrane(draw: Drawing, cell: Cell, membrane: str, drive: str) -> tuple[str, str]:
    """Draw the membrane after `drive`, not yet reset, and its spikes, bool; (B, N) each.

    Parameters
    ----------
    draw : Drawing
    cell : Cell
    membrane : str
        Of the timestep before, not yet reset either: so its reset and its decay share their conversions.
    drive : str
        Current and bias; empty where there are none.
    """
    population, ranges = cell.population, cell.ranges
    decay = _flat(population.decay_v, population.shape)
    left = ""
    if np.min(population.decay_v) < DECAY_ONE:
        number, settled = _draw_settled(draw, cell, membrane)
        left = draw_decay(draw, settled, decay, f"decay_v:{population.name}", ranges.membrane, cell.kind, number)
    raised = draw.add("Add", left, drive) if left and drive else left or drive
    if not raised:
        raised = draw.add("Mul", membrane, draw.constant(0, cell.kind))
    if ranges.clips:
        raised = draw_clip(draw, raised, cell.kind)
    return raised, draw.add("Greater", raised, _draw_threshold(draw, cell))


def draw_settled(draw: Drawing, cell: Cell, membrane: str) -> str:
    """Draw the membrane after its reset, int32: 0 where it fired, as :func:`draw_membrane` leaves it elsewhere."""
    number, settled = _draw_settled(draw, cell, membrane)
    # Nothing is drawn where nothing changes: ONNX Runtime 1.23 has gone wrong on a Cast to the type that was there.
    return settled if number == np.int32 else draw.cast(settled, np.int32)


def _draw_settled(draw: Drawing, cell: Cell, membrane: str) -> tuple[np.dtype[Any], str]:
    """Draw the membrane after its reset, and say in which type: 24 bits are exact in float32."""
    population = cell.population
    if not population.fires:
        return cell.kind, membrane
    if cell.kind == np.int32 and isinstance(population.vth, int):
        exact = draw.cast(membrane, np.float32)
        fired = draw.add("ThresholdedRelu", exact, alpha=float(population.vth << STATE_EXP))
        return np.dtype(np.float32), draw.add("Sub", exact, fired)
    quiet = draw.cast(draw.add("LessOrEqual", membrane, _draw_threshold(draw, cell)), cell.kind)
    return cell.kind, draw.add("Mul", membrane, quiet)


def draw_reset(draw: Drawing, state: str, keep: str) -> str:
    """Draw a state variable that starts from 0 where `keep` is 0 and stays where it is 1."""
    return draw.add("Mul", state, keep)


def _draw_threshold(draw: Drawing, cell: Cell) -> str:
    population = cell.population
    if isinstance(population.vth, int):
        return draw.constant(population.vth << STATE_EXP, cell.kind)
    flat = channels_last(population.vth, population.shape)
    stored = draw.tensor(f"vth:{population.name}", flat.astype(np.int32))
    return _draw_shifted(draw, stored, cell.kind)


def _draw_shifted(draw: Drawing, stored: str, kind: np.dtype[Any]) -> str:
    return draw.root.add("Mul", draw.root.cast(stored, kind), draw.constant(1 << STATE_EXP, kind))


def _flat(values: int | IntArray, shape: tuple[int, ...]) -> int | IntArray:
    return values if isinstance(values, int) else channels_last(values, shape)
