"""What one thread does: it runs chunks of samples through a plan, slice of time by slice, layer by layer.

A layer is run over all timesteps of a slice at once; only layers that depend on each other in a loop are stepped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stars_deploy.engine.kernels import count_spikes, project_frames, project_synapses
from stars_deploy.engine.neurons import update_narrow, update_wide
from stars_deploy.engine.plan import Layer, Numbers, Plan, Window, Wiring, restore
from stars_deploy.engine.tally import Fans, Tally
from stars_deploy.engine.workspace import Extent, Workspace, padded_zeros
from stars_deploy.populations import STATE_EXP, IntArray
from stars_deploy.targets.base import SpikeArray


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """Timesteps [first, first + steps) of a chunk of `samples` samples."""

    first: int
    steps: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """The activation of a layer over a slice: timestep t sees frame ``frame_of[t]``."""

    activation: Numbers
    touched: Numbers
    frame_of: IntArray


class Runner:
    """Runs chunks one after another in arrays of its own.

    Parameters
    ----------
    plan : Plan
    fans : Fans
    extent : Extent
    per_neuron : bool
        Keep the sums of each neuron.
    """

    def __init__(self, plan: Plan, fans: Fans, extent: Extent, per_neuron: bool) -> None:
        self.plan, self.extent, self._fans, self.per_neuron = plan, extent, fans, per_neuron
        self.tally = Tally(plan, fans, extent.steps, per_neuron=per_neuron)
        self._space = Workspace(plan, extent)
        self._shown: Numbers = np.zeros(0)
        self._stays = True
        self._marked: Mapping[str, SpikeArray] = {}

    def run(
        self, images: IntArray, recorded: Mapping[str, SpikeArray], marked: Mapping[str, SpikeArray]
    ) -> tuple[IntArray, IntArray]:
        """Run one chunk; return the last population's final potentials [LSB] and how often it fired, (B, N) each.

        Parameters
        ----------
        images : array of int, (B, *shape) or (T, B, *shape)
            No more samples than the extent.
        recorded, marked : mapping of str to array of bool, (T, B, *shape)
            Filled with the spikes of these populations, and with which of their neurons were touched or fired.
        """
        graph, extent = self.plan.graph, self.extent
        self._marked = marked
        self._stays = not graph.input.over_time(images)
        samples = images.shape[0 if self._stays else 1]
        output, fired = graph.output, np.zeros((samples, graph.output.size), np.int64)
        self._space.start()
        for first in range(0, graph.timesteps, extent.steps):
            steps = min(extent.steps, graph.timesteps - first)
            part = _Slice(first=first, steps=steps, samples=samples)
            self._shown = self._show(images if self._stays else images[first : first + steps])
            self._load_input(part)
            for block in self.plan.blocks:
                self._run_block(block, part)
            if output.fires:
                fired += self._sent(output.name, part).sum(axis=1, dtype=np.int64)
            for name, spikes in recorded.items():
                sent = restore(self._sent(name, part), graph.shape_of(name))
                spikes[first : first + steps] = sent.swapaxes(0, 1)
            if extent.steps < graph.timesteps:
                self.tally.close_slice(first, steps)
            self._space.carry(steps)
        answers = (self._space.v[output.name][:samples], fired)
        potential, counts = (restore(values, output.shape).reshape(samples, -1) for values in answers)
        return potential.astype(np.int64), counts

    def forget(self) -> None:
        """Begin counting anew."""
        self.tally = Tally(self.plan, self._fans, self.extent.steps, per_neuron=self.per_neuron)

    def close(self) -> None:
        """Finish the counts after the last chunk."""
        if self.extent.steps == self.plan.graph.timesteps:
            self.tally.close_slice(0, self.extent.steps)

    def _sent(self, name: str, part: _Slice) -> Numbers:
        history = self.plan.history[name]
        return self._space.frames[name][: part.samples, history : history + part.steps]

    def _show(self, images: IntArray) -> Numbers:
        """Return images as frames, (B, 1 or steps, neurons)."""
        source = self.plan.graph.input
        frames = images[:, np.newaxis] if self._stays else images.swapaxes(0, 1)
        shown = padded_zeros((*frames.shape[:2], math.prod(source.shape)), self._space.frames[source.name].dtype)
        restore(shown, source.shape)[:] = frames
        return shown

    def _load_input(self, part: _Slice) -> None:
        source, shown = self.plan.graph.input, self._shown
        if source.biases:
            return
        self.tally.emitted[source.name][: part.steps] += (shown != 0).sum(axis=0, dtype=np.int32)
        unsteady = (layer for layer in self.plan.layers if layer.steady_delay is None)
        if not self._stays or any(wiring.source == source.name for layer in unsteady for wiring in layer.wirings):
            self._sent(source.name, part)[:] = shown

    def _run_block(self, block: tuple[Layer, ...], part: _Slice) -> None:
        names = {layer.name for layer in block}
        sums = {layer.name: self._begin(layer, slot, names, part) for slot, layer in enumerate(block)}
        looping = {layer.name: [wiring for wiring in layer.wirings if wiring.source in names] for layer in block}
        strides = range(part.steps) if any(looping.values()) else (0,)
        length = 1 if any(looping.values()) else part.steps
        for step in strides:
            for layer in block:
                for wiring in looping[layer.name]:
                    self._project(layer, wiring, sums[layer.name], part, step, step + length)
                self._update(layer, sums[layer.name], part, step, step + length)
        for layer in block:
            made = sums[layer.name]
            count_spikes(
                self._space.frames[layer.name][: part.samples], made.touched, made.frame_of,
                self.plan.history[layer.name], self.tally.emitted[layer.name][: part.steps],
                self.tally.active[layer.name][: part.steps],
            )  # fmt: skip
            if layer.name in self._marked:
                self._mark(layer, made, part)

    def _mark(self, layer: Layer, made: _Sums, part: _Slice) -> None:
        """Record which neurons were touched or fired."""
        touched = made.touched[:, :, : layer.size][:, made.frame_of]
        busy = (touched != 0) | (self._sent(layer.name, part) != 0)
        shape = self.plan.graph.shape_of(layer.name)
        self._marked[layer.name][part.first : part.first + part.steps] = restore(busy, shape).swapaxes(0, 1)

    def _begin(self, layer: Layer, slot: int, looping: set[str], part: _Slice) -> _Sums:
        """Return the sums of a layer with all that comes from outside its block."""
        outside = [wiring for wiring in layer.wirings if wiring.source not in looping]
        # What enters first can write over what is there; otherwise it is set to 0, and everything is added.
        fresh = bool(outside) and isinstance(outside[0], Window) and outside[0].alone
        if self._stays and layer.steady_delay is not None:
            return self._begin_steady(layer, slot, layer.steady_delay, part, fresh=fresh)
        frames = part.steps if layer.wirings else 1
        activation, touched = self._space.activation(slot, layer, part.samples, frames)
        if not fresh:
            activation[:] = touched[:] = 0
        frame_of = np.arange(part.steps) if layer.wirings else np.zeros(part.steps, np.int64)
        made = _Sums(activation=activation, touched=touched, frame_of=frame_of)
        for index, wiring in enumerate(outside):
            self._project(layer, wiring, made, part, 0, part.steps, fresh=fresh and index == 0)
        return made

    def _begin_steady(self, layer: Layer, slot: int, delay: int, part: _Slice, *, fresh: bool) -> _Sums:
        """Return the sums that an image which stays makes: frame 0 is before it arrived, frame 1 after."""
        activation, touched = self._space.activation(slot, layer, part.samples, 2)
        cleared = slice(0, 1 if fresh else 2)
        activation[:, cleared] = touched[:, cleared] = 0
        arrived = np.arange(part.first, part.first + part.steps) >= delay
        made = _Sums(activation=activation, touched=touched, frame_of=arrived.astype(np.int64))
        for index, wiring in enumerate(layer.wirings):
            if isinstance(wiring, Window):
                self._project_window(layer, wiring, self._shown, made, (0, 1), 0, 1, fresh=fresh and index == 0)
        return made

    def _project(
        self, layer: Layer, wiring: Wiring, made: _Sums, part: _Slice, first: int, last: int, *, fresh: bool = False
    ) -> None:
        history = self.plan.history[wiring.source]
        frames = self._space.frames[wiring.source][: part.samples]
        if isinstance(wiring, Window):
            back = history - wiring.delay
            self._project_window(layer, wiring, frames, made, (first, last), back, 0, fresh=fresh)
        else:
            project_synapses(
                frames, first, last, history - wiring.delays, wiring.starts, wiring.targets, wiring.weights,
                made.activation, made.touched,
            )  # fmt: skip

    def _project_window(
        self,
        layer: Layer,
        wiring: Window,
        frames: Numbers,
        made: _Sums,
        steps: tuple[int, int],
        back: int,
        ahead: int,
        *,
        fresh: bool,
    ) -> None:
        space = self._space
        project_frames(
            wiring.units, wiring.graded, fresh, frames, *steps, back, ahead, wiring.shape, wiring.tables,
            wiring.nonzero, wiring.zeros, made.activation, made.touched, space.rows, space.ends,
            space.by[layer.sums], space.seen, space.seen_by[layer.sums],
        )  # fmt: skip

    def _update(self, layer: Layer, made: _Sums, part: _Slice, first: int, last: int) -> None:
        space = self._space
        update = update_narrow if layer.state == np.int32 else update_wide
        update(
            made.activation, made.frame_of, self._bias(layer), layer.keep_u, layer.keep_v,
            layer.leaks, layer.threshold, self._resets(layer, part), first, last,
            space.u[layer.name][: part.samples], space.v[layer.name][: part.samples],
            space.frames[layer.name][: part.samples], self.plan.history[layer.name],
        )  # fmt: skip

    def _resets(self, layer: Layer, part: _Slice) -> Numbers:
        resets = layer.resets[part.first : part.first + part.steps]
        if part.first == 0 and not resets[0]:
            resets = resets.copy()
            resets[0] = True  # a sample starts from nothing
        return resets

    def _bias(self, layer: Layer) -> Numbers:
        if self.plan.graph.input.biases != layer.name:
            return layer.bias
        return np.ascontiguousarray(self._shown.astype(layer.state) << STATE_EXP)
