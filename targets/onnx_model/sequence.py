"""The whole-sequence model: everything that a network does with a batch, timesteps included, in one graph.

Between populations time is folded: projections see all timesteps of all samples at once. Each population, or all those
that a loop spans, is one Scan over the timesteps. Unrolled over 4 timesteps the model is as fast, and grows with T.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, ValueInfoProto

from stars_deploy.populations import STATE_EXP, Population
from stars_deploy.projections import Projection
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.onnx_model.blocks import Block, find_blocks
from stars_deploy.targets.onnx_model.drawing import Drawing, describe
from stars_deploy.targets.onnx_model.frames import Frames
from stars_deploy.targets.onnx_model.neurons import (
    Cell,
    draw_drive,
    draw_membrane,
    draw_reset,
    draw_settled,
    make_cells,
)
from stars_deploy.targets.onnx_model.outputs import (
    BATCH,
    describe_input,
    draw_batch,
    draw_count,
    draw_input,
    draw_readout,
)
from stars_deploy.targets.onnx_model.synapses import delays_of, draw_projection

SPIKES = np.dtype(np.uint8)


def spikes_name(population: str) -> str:
    """Return the name of the tensor that holds the spikes of a population, uint8, (T, B, N) or (B, *shape)."""
    return f"spikes:{population}"


def build_sequence(graph: QuantizedGraph, source: str) -> GraphProto:
    """Return the whole-sequence model of `graph`.

    Parameters
    ----------
    graph : QuantizedGraph
    source : str
        ``image`` or ``payloads``.

    Raises
    ------
    TargetError
        Naming what cannot be computed exactly.
    """
    steps = 0 if source == "image" else graph.timesteps
    draw = Drawing()
    sequence = _Sequence(graph=graph, draw=draw, cells=make_cells(graph, graph.timesteps))
    draw.enter(graph.input.name)
    sequence.batch = draw_batch(draw, source, steps)
    sequence.frames[graph.input.name] = draw_input(draw, graph, source, steps)
    for block in find_blocks(graph):
        sequence.draw_block(block)
    draw.enter("outputs")
    outputs = sequence.draw_outputs()
    return draw.finish("sequence", [describe_input(graph, source, steps)], outputs)


@dataclass
class _Stream:
    """A tensor that a Scan sees: one for all timesteps, or a slice for each."""

    tensor: str
    moving: bool


@dataclass
class _Sequence:
    graph: QuantizedGraph
    draw: Drawing
    cells: dict[str, Cell]
    batch: str = ""
    frames: dict[str, Frames] = field(default_factory=dict)
    membranes: dict[str, str] = field(default_factory=dict)

    def draw_block(self, block: Block) -> None:
        """Draw the Scan of one block, and what it needs from before."""
        scan = _Scan(sequence=self, block=block)
        for population in block.populations:
            self.draw.enter(population.name)
            scan.feed(population)
        scan.draw_loop()

    def activation(self, population: Population, entering: tuple[tuple[int, Projection], ...]) -> _Stream | None:
        """Draw what enters `population` from before its block."""
        cell, total = self.cells[population.name], None
        for index, projection in entering:
            source = self.frames[projection.source]
            for delay in delays_of(projection):
                made = self._delayed(index, projection, delay, source, cell)
                total = made if total is None else self.added(total, made)
        return total

    def added(self, one: _Stream, other: _Stream) -> _Stream:
        """Draw the sum of two streams; what stays the same is repeated where the other moves."""
        return _Stream(self.draw.add("Add", one.tensor, other.tensor), one.moving or other.moving)

    def _delayed(self, index: int, projection: Projection, delay: int, source: Frames, cell: Cell) -> _Stream:
        late = min(delay, self.graph.timesteps)
        if source.steps:
            shifted = self._shift(source, late) if late else source
            return _Stream(draw_projection(self.draw, index, projection, delay, shifted, cell.kind), True)
        tensor = draw_projection(self.draw, index, projection, delay, source, cell.kind)
        if not late:
            return _Stream(tensor, False)
        shown = (np.arange(self.graph.timesteps) >= late).reshape(-1, 1, 1)
        return _Stream(self.draw.add("Mul", tensor, self.draw.constant(shown, cell.kind)), True)

    def _shift(self, source: Frames, late: int) -> Frames:
        """Return `source` as it is seen `late` timesteps later: nothing at first, and the last frames never."""
        draw = self.draw
        empty = draw.zeros([late, self.batch, source.size], source.kind)
        limits = (draw.constant([value], np.int64) for value in (0, source.steps - late))
        begun = draw.add("Slice", source.tensor, *limits)
        shown = draw.add("Concat", empty, begun, axis=0)
        return Frames(source.shape, source.low, source.high, shown, source.kind, source.steps)

    def draw_outputs(self) -> list[ValueInfoProto]:
        """Draw logits, potential and spike counts, and return their descriptions."""
        graph, draw = self.graph, self.draw
        output = graph.output
        count = ""
        if output.fires:
            wide = draw.cast(spikes_name(output.name), np.int32)
            count = draw.add("ReduceSum", wide, draw.constant([0], np.int64), keepdims=0)
        membrane = draw_settled(draw, self.cells[output.name], self.membranes[output.name])
        described = draw_readout(draw, graph, membrane, count)
        sums = [draw_count(draw, spikes_name(item.name), item.size) for item in graph.populations]
        side = draw.add("Concat", *sums, axis=2)
        draw.add_many("Transpose", [side], ["spike_counts"], perm=[1, 0, 2])
        counts = describe("spike_counts", np.int32, [BATCH, graph.timesteps, len(sums)])
        return [*described, counts]


@dataclass
class _Scan:
    """The loop over time of one block, while it is drawn.

    ``states`` are (name, type, axes) of what is carried on; ``moving`` the tensors that are sliced.
    """

    sequence: _Sequence
    block: Block
    starts: list[str] = field(default_factory=list)
    states: list[ValueInfoProto] = field(default_factory=list)
    moving: list[str] = field(default_factory=list)
    slices: list[ValueInfoProto] = field(default_factory=list)
    streams: dict[str, str] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    hoisted: set[str] = field(default_factory=set)

    def feed(self, population: Population) -> None:
        """Draw what `population` gets from outside, and note the states that it carries."""
        name, cell = population.name, self.sequence.cells[population.name]
        draw = self.sequence.draw
        stream = self.sequence.activation(population, self.block.outside[name])
        image = self._image_bias(cell) if cell.biased else None
        if not cell.leaks and not self.block.inside[name]:
            # Nothing carries a current on, or feeds back: all of the drive is known before the loop.
            self.hoisted.add(name)
            if stream is not None:
                _, drive = draw_drive(draw, cell, stream.tensor)
                stream = _Stream(drive, stream.moving)
            else:
                _, drive = draw_drive(draw, cell, "")
                stream = _Stream(drive, False) if drive else None
            if image is not None:
                stream = image if stream is None else self.sequence.added(stream, image)
        elif image is not None:
            self.biases[name] = self._see(image, cell, f"bias/{name}")
        if stream is not None:
            self.streams[name] = self._see(stream, cell, f"stream/{name}")
        self._carry(f"v/{name}", cell.kind, [cell.size])
        if cell.leaks:
            self._carry(f"u/{name}", cell.kind, [cell.size])
        if longest := self._longest(name):
            self._carry(f"sent/{name}", SPIKES, [cell.size], longest)

    def draw_loop(self) -> None:
        """Draw the Scan."""
        draw, steps = self.sequence.draw, self.sequence.graph.timesteps
        populations = self.block.populations
        inner = draw.inner()
        keeps = self._resets()
        if not self.moving:
            # A Scan needs something to slice: it counts timesteps by it.
            self.moving.append(draw.constant(np.arange(1, steps + 1), np.int32))
            self.slices.append(describe(f"timestep/{populations[0].name}", np.int32, []))
        carried: dict[str, str] = {state.name: state.name for state in self.states}
        sent: dict[str, str] = {}
        for population in populations:
            inner.enter(population.name)
            self._draw_step(inner, population, carried, sent, keeps)
        for name, spikes in sent.items():
            if f"sent/{name}" in carried:
                carried[f"sent/{name}"] = draw_pushed(inner, f"sent/{name}", spikes)
        # A body must make what it returns, once: runtimes do not copy what it was given, nor what it returns twice.
        made = {name for node in inner.nodes for name in node.output}
        values = list(carried.values())
        own = [
            value if value in made and values.count(value) == 1 else inner.add("Identity", value) for value in values
        ]
        results = [_described_again(state, value) for state, value in zip(self.states, own, strict=True)]
        emitted = [describe(sent[item.name], SPIKES, [BATCH, item.size]) for item in populations]
        body = inner.finish("step", [*self.states, *self.slices], [*results, *emitted], body=True)
        finals = [f"final/{state.name}" for state in self.states]
        names = [*finals, *(spikes_name(item.name) for item in populations)]
        draw.enter(populations[0].name)
        draw.add_many("Scan", [*self.starts, *self.moving], names, body=body, num_scan_inputs=len(self.moving))
        for item in populations:
            self.sequence.membranes[item.name] = f"final/v/{item.name}"
            self.sequence.frames[item.name] = Frames(
                item.shape, 0, int(item.fires), spikes_name(item.name), SPIKES, steps
            )

    def _draw_step(
        self,
        inner: Drawing,
        population: Population,
        carried: dict[str, str],
        sent: dict[str, str],
        keeps: dict[str, str],
    ) -> None:
        name, cell = population.name, self.sequence.cells[population.name]
        membrane, current = carried[f"v/{name}"], carried.get(f"u/{name}", "")
        if name in keeps:
            membrane = draw_reset(inner, membrane, keeps[name])
            current = draw_reset(inner, current, keeps[name]) if current else ""
        stream = self.streams.get(name, "")
        if name in self.hoisted:
            drive = stream
        else:
            activation = stream
            for index, projection in self.block.inside[name]:
                for delay in delays_of(projection):
                    frame = self._frame(inner, projection.source, delay, sent)
                    made = draw_projection(inner, index, projection, delay, frame, cell.kind)
                    activation = inner.add("Add", activation, made) if activation else made
            current, drive = draw_drive(inner, cell, activation, current)
            if name in self.biases:
                drive = inner.add("Add", drive, self.biases[name]) if drive else self.biases[name]
        membrane, spikes = draw_membrane(inner, cell, membrane, drive)
        carried[f"v/{name}"] = membrane
        if f"u/{name}" in carried:
            carried[f"u/{name}"] = current
        sent[name] = inner.cast(spikes, SPIKES)

    def _frame(self, inner: Drawing, source: str, delay: int, sent: dict[str, str]) -> Frames:
        """Return what `source`, of this block, sent `delay` timesteps before."""
        population = self.sequence.graph.population(source)
        late = min(delay, self.sequence.graph.timesteps)
        if late:
            longest = self._longest(source)
            place = inner.constant(longest - late, np.int64)
            tensor = inner.add("Gather", f"sent/{source}", place, axis=0)
        else:
            tensor = sent[source]
        return Frames(population.shape, 0, int(population.fires), tensor, SPIKES)

    def _longest(self, name: str) -> int:
        return min(self.block.longest(name), self.sequence.graph.timesteps)

    def _image_bias(self, cell: Cell) -> _Stream:
        """Draw the image as a bias, shifted."""
        draw, frames = self.sequence.draw, self.sequence.frames[self.sequence.graph.input.name]
        bias = draw.add("Mul", frames.in_kind(draw, cell.kind), draw.constant(1 << STATE_EXP, cell.kind))
        return _Stream(bias, bool(frames.steps))

    def _see(self, stream: _Stream, cell: Cell, name: str) -> str:
        """Return the name under which the body of the loop sees `stream`."""
        if not stream.moving:
            return stream.tensor
        self.moving.append(stream.tensor)
        self.slices.append(describe(name, cell.kind, [BATCH, cell.size]))
        return name

    def _carry(self, name: str, kind: np.dtype[np.generic], axes: list[int], frames: int = 0) -> None:
        batch = self.sequence.batch
        lead: list[int | str] = [frames] if frames else []
        self.starts.append(self.sequence.draw.zeros([*lead, batch, *axes], kind))
        self.states.append(describe(name, kind, [*lead, BATCH, *axes]))

    def _resets(self) -> dict[str, str]:
        """Feed 0 for each timestep at which a population starts anew, 1 for the others."""
        keeps = {}
        steps = self.sequence.graph.timesteps
        for population in self.block.populations:
            due = [population.resets_at(step + 1) for step in range(steps)]
            if any(due[1:]):
                kind = self.sequence.cells[population.name].kind
                keeps[population.name] = f"keep/{population.name}"
                self.moving.append(self.sequence.draw.constant(1 - np.array(due, int), kind))
                self.slices.append(describe(keeps[population.name], kind, []))
        return keeps


def draw_pushed(draw: Drawing, buffer: str, spikes: str, to: str = "") -> str:
    """Draw a buffer of frames, the oldest first, without its oldest and with the newest."""
    newest = draw.add("Unsqueeze", spikes, draw.constant([0], np.int64))
    limits = (draw.constant([value], np.int64) for value in (1, np.iinfo(np.int64).max))
    return draw.add("Concat", draw.add("Slice", buffer, *limits), newest, to=to, axis=0)


def _described_again(state: ValueInfoProto, name: str) -> ValueInfoProto:
    described = ValueInfoProto()
    described.CopyFrom(state)
    described.name = name
    return described
