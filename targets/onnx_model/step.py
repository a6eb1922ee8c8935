"""The one-step model: one timestep of the whole network, with its state as inputs and outputs; no loop inside.

Run with zeros as the first state, then each time with the state that came out, T times, it equals the whole-sequence
model. A stream may go on for longer: nothing here relies on T, except the logits, which divide by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, ValueInfoProto

from stars_deploy.populations import STATE_EXP, Population
from stars_deploy.projections import Projection
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.onnx_model.blocks import longest_delay
from stars_deploy.targets.onnx_model.drawing import Axes, Drawing, describe
from stars_deploy.targets.onnx_model.frames import Frames, draw_restored
from stars_deploy.targets.onnx_model.neurons import (
    Cell,
    draw_drive,
    draw_membrane,
    draw_reset,
    draw_settled,
    make_cells,
)
from stars_deploy.targets.onnx_model.outputs import BATCH, describe_input, draw_input, draw_readout
from stars_deploy.targets.onnx_model.sequence import SPIKES, draw_pushed, spikes_name
from stars_deploy.targets.onnx_model.synapses import delays_of, draw_projection

#: Before the name of each state tensor that comes out.
NEXT = "next/"
#: How many timesteps have been run, where a reset depends on it.
TIMESTEP = "timestep"


def build_step(graph: QuantizedGraph, source: str) -> GraphProto:
    """Return the one-step model of `graph`; `source` is ``image`` or ``payloads``.

    Raises
    ------
    TargetError
        Naming what cannot be computed exactly.
    """
    draw = Drawing()
    step = _Step(graph=graph, draw=draw, cells=make_cells(graph, None))
    draw.enter(graph.input.name)
    step.frames[graph.input.name] = draw_input(draw, graph, source, 0)
    step.carry_history(graph.input.name)
    step.count_timesteps()
    for population in graph.populations:
        draw.enter(population.name)
        step.carry_history(population.name)
    for population in graph.populations:
        draw.enter(population.name)
        step.draw_population(population)
    draw.enter("outputs")
    outputs = step.draw_outputs()
    return draw.finish("step", [describe_input(graph, source, 0), *step.states], outputs)


@dataclass
class _Step:
    graph: QuantizedGraph
    draw: Drawing
    cells: dict[str, Cell]
    frames: dict[str, Frames] = field(default_factory=dict)
    states: list[ValueInfoProto] = field(default_factory=list)
    results: list[ValueInfoProto] = field(default_factory=list)
    longest: dict[str, int] = field(default_factory=dict)

    def carry(self, name: str, kind: np.dtype[Any], axes: Axes) -> None:
        """Note a state tensor, in and out."""
        self.states.append(describe(name, kind, axes))
        self.results.append(describe(NEXT + name, kind, axes))

    def carry_history(self, source: str) -> None:
        """Note the frames that `source` sent before, as many as anything looks back at, the oldest first."""
        self.longest[source] = longest_delay(source, list(self.graph.projections))
        if self.longest[source]:
            size = int(np.prod(self.graph.shape_of(source)))
            self.carry(f"sent/{source}", self.sent_kind(source), [self.longest[source], BATCH, size])

    def sent_kind(self, source: str) -> np.dtype[Any]:
        """Return the type of the frames of `source`."""
        return self.frames[source].kind if source == self.graph.input.name else SPIKES

    def count_timesteps(self) -> None:
        """Draw the number of the timestep, 1 for the first, where a population resets."""
        if any(population.reset_interval for population in self.graph.populations):
            self.carry(TIMESTEP, np.dtype(np.int64), [1])
            self.draw.add("Add", TIMESTEP, self.draw.constant([1], np.int64), to=NEXT + TIMESTEP)

    def draw_population(self, population: Population) -> None:
        """Draw the timestep of one population."""
        draw, name, cell = self.draw, population.name, self.cells[population.name]
        self.carry(f"v/{name}", cell.kind, [BATCH, cell.size])
        membrane, current = f"v/{name}", ""
        if cell.leaks:
            current = f"u/{name}"
            self.carry(current, cell.kind, [BATCH, cell.size])
        if population.reset_interval:
            keep = self._keep(population, cell)
            membrane = draw_reset(draw, membrane, keep)
            current = draw_reset(draw, current, keep) if current else ""
        activation = ""
        for index, projection in enumerate(self.graph.projections):
            for delay in delays_of(projection) if projection.target == name else ():
                frame = self._frame(projection, delay)
                made = draw_projection(draw, index, projection, delay, frame, cell.kind)
                activation = draw.add("Add", activation, made) if activation else made
        current, drive = draw_drive(draw, cell, activation, current)
        if cell.biased:
            image = self.frames[self.graph.input.name].in_kind(draw, cell.kind)
            bias = draw.add("Mul", image, draw.constant(1 << STATE_EXP, cell.kind))
            drive = draw.add("Add", drive, bias) if drive else bias
        membrane, spikes = draw_membrane(draw, cell, membrane, drive)
        draw.add("Identity", membrane, to=f"{NEXT}v/{name}")
        if cell.leaks:
            draw.add("Identity", current, to=f"{NEXT}u/{name}")
        sent = draw.cast(spikes, SPIKES)
        self.frames[name] = Frames(population.shape, 0, int(population.fires), sent, SPIKES)

    def _keep(self, population: Population, cell: Cell) -> str:
        """Draw 0 where the timestep is one at which `population` starts anew, else 1."""
        draw = self.draw
        since = draw.add("Sub", NEXT + TIMESTEP, draw.constant([population.reset_offset], np.int64))
        phase = draw.add("Mod", since, draw.constant([population.reset_interval], np.int64))
        return draw.cast(draw.add("Greater", phase, draw.constant([0], np.int64)), cell.kind)

    def _frame(self, projection: Projection, delay: int) -> Frames:
        """Return what the source of `projection` sent `delay` timesteps before."""
        name = projection.source
        if not delay:
            return self.frames[name]
        place = self.draw.constant(self.longest[name] - delay, np.int64)
        tensor = self.draw.add("Gather", f"sent/{name}", place, axis=0)
        if name == self.graph.input.name:
            now = self.frames[name]
            return Frames(now.shape, now.low, now.high, tensor, now.kind)
        population = self.graph.population(name)
        return Frames(population.shape, 0, int(population.fires), tensor, SPIKES)

    def draw_outputs(self) -> list[ValueInfoProto]:
        """Draw logits, potential, spikes and the next state, and return their descriptions."""
        graph, draw = self.graph, self.draw
        output, count = graph.output, ""
        if output.fires:
            self.carry(f"count/{output.name}", np.dtype(np.int32), [BATCH, output.size])
            now = self.frames[output.name].in_kind(draw, np.int32)
            count = draw.add("Add", f"count/{output.name}", now, to=f"{NEXT}count/{output.name}")
        membrane = draw_settled(draw, self.cells[output.name], f"{NEXT}v/{output.name}")
        described = draw_readout(draw, graph, membrane, count)
        for population in graph.populations:
            name = spikes_name(population.name)
            draw_restored(draw, self.frames[population.name].tensor, population.shape, name)
            described.append(describe(name, SPIKES, [BATCH, *population.shape]))
        for source, longest in self.longest.items():
            if longest:
                buffer = f"sent/{source}"
                draw_pushed(draw, buffer, self.frames[source].tensor, NEXT + buffer)
        return [*described, *self.results]
