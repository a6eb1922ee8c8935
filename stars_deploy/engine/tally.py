"""Counting while running: what every population sent, and what it made the others do."""

from __future__ import annotations

import numpy as np

from stars_deploy.engine.kernels import weigh_messages
from stars_deploy.engine.plan import Plan, lay_out
from stars_deploy.synops import LayerCounts, Wire, wire_up


class Fans:
    """Fan-out of every source neuron through the synapses of each delay, channels last."""

    def __init__(self, plan: Plan) -> None:
        graph = plan.graph
        self.wires: tuple[Wire, ...] = wire_up(graph)
        shapes = {wire.projection.source: graph.shape_of(wire.projection.source) for wire in self.wires}
        self.effective, self.stored = (
            tuple(
                lay_out(fan.reshape(shapes[wire.projection.source]), shapes[wire.projection.source])
                for wire, fan in zip(self.wires, fans, strict=True)
            )
            for fans in ([wire.effective for wire in self.wires], [wire.stored for wire in self.wires])
        )


class Tally:
    """Sums over the samples that one thread has run.

    Parameters
    ----------
    plan : Plan
    fans : Fans
    steps : int
        Timesteps of a slice.

    Attributes
    ----------
    emitted : dict of str to array of int32, (steps, neurons)
        Messages of each source neuron in the current slice, channels last; not yet multiplied by their fan-out.
    """

    def __init__(self, plan: Plan, fans: Fans, steps: int) -> None:
        self._plan, self._fans = plan, fans
        graph = plan.graph
        names = [graph.input.name, *(layer.name for layer in plan.layers)]
        self.emitted = {name: np.zeros((steps, int(np.prod(graph.shape_of(name)))), np.int32) for name in names}
        self.active = {layer.name: np.zeros(graph.timesteps, np.int64) for layer in plan.layers}
        self._sums = {
            layer.name: {kind: np.zeros(graph.timesteps, np.int64) for kind in ("spikes", "spike", "input", "dense")}
            for layer in plan.layers
        }

    def close_slice(self, first: int, steps: int) -> None:
        """Turn what was emitted in timesteps [first, first + steps) into operations, and forget it."""
        timesteps, source = self._plan.graph.timesteps, self._plan.graph.input.name
        for wire, effective, stored in zip(self._fans.wires, self._fans.effective, self._fans.stored, strict=True):
            arriving = self.emitted[wire.projection.source][: max(0, min(steps, timesteps - wire.delay - first))]
            begin = first + wire.delay
            sums = self._sums[wire.projection.target]
            kind = "input" if wire.projection.source == source else "spike"
            for step, messages in enumerate(arriving, start=begin):
                sums[kind][step] += weigh_messages(messages, effective)
                sums["dense"][step] += weigh_messages(messages, stored)
        for layer in self._plan.layers:
            self._sums[layer.name]["spikes"][first : first + steps] += self.emitted[layer.name][:steps].sum(
                axis=1, dtype=np.int64
            )
        for emitted in self.emitted.values():
            emitted[:] = 0

    def counts(self) -> dict[str, LayerCounts]:
        """Return the counts of each population."""
        return {
            layer.name: LayerCounts(
                spikes=self._sums[layer.name]["spikes"],
                spike_synops=self._sums[layer.name]["spike"],
                input_synops=self._sums[layer.name]["input"],
                dense_synops=self._sums[layer.name]["dense"],
                active=self.active[layer.name],
            )
            for layer in self._plan.layers
        }
