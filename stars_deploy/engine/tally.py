"""Counting while running: what every population sent, and what it made the others do."""

from __future__ import annotations

import numpy as np

from stars_deploy.engine.kernels import weigh_messages
from stars_deploy.engine.plan import Plan, lay_out, restore
from stars_deploy.synops import LayerCounts, NeuronSums, Wire, wire_up


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
    per_neuron : bool
        Keep the sums of each neuron and timestep as well.

    Attributes
    ----------
    emitted, active : dict of str to array of int32, (steps, neurons)
        Messages of each source neuron in the current slice, not yet multiplied by their fan-out; and how often each
        neuron was touched or fired. Channels last.
    """

    def __init__(self, plan: Plan, fans: Fans, steps: int, *, per_neuron: bool = False) -> None:
        self._plan, self._fans = plan, fans
        graph = plan.graph
        sizes = {layer.name: layer.size for layer in plan.layers}
        sources = {graph.input.name: int(np.prod(graph.input.shape)), **sizes}
        self.emitted = {name: np.zeros((steps, size), np.int32) for name, size in sources.items()}
        self.active = {name: np.zeros((steps, size), np.int32) for name, size in sizes.items()}
        kinds = ("spikes", "spike", "input", "dense", "active")
        self._sums = {name: {kind: np.zeros(graph.timesteps, np.int64) for kind in kinds} for name in sizes}
        self._sent, self._busy = (
            {name: np.zeros((graph.timesteps, size), np.int64) for name, size in known.items()} if per_neuron else {}
            for known in (sources, sizes)
        )

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
        within = slice(first, first + steps)
        for layer in self._plan.layers:
            for kind, counted in (("spikes", self.emitted), ("active", self.active)):
                self._sums[layer.name][kind][within] += counted[layer.name][:steps].sum(axis=1, dtype=np.int64)
        for kept, counted in ((self._sent, self.emitted), (self._busy, self.active)):
            for name, total in kept.items():
                total[within] += counted[name][:steps]
            for slice_counts in counted.values():
                slice_counts[:] = 0

    def counts(self) -> dict[str, LayerCounts]:
        """Return the counts of each population."""
        return {
            layer.name: LayerCounts(
                spikes=self._sums[layer.name]["spikes"],
                spike_synops=self._sums[layer.name]["spike"],
                input_synops=self._sums[layer.name]["input"],
                dense_synops=self._sums[layer.name]["dense"],
                active=self._sums[layer.name]["active"],
            )
            for layer in self._plan.layers
        }

    def neuron_sums(self) -> NeuronSums | None:
        """Return the sums of each neuron and timestep, if they were kept."""
        graph = self._plan.graph
        if not self._sent:
            return None
        return NeuronSums(
            sent={name: restore(sums, graph.shape_of(name)) for name, sums in self._sent.items()},
            active={name: restore(sums, graph.shape_of(name)) for name, sums in self._busy.items()},
        )
