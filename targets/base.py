"""What a target is: a way to write a quantised graph, read it back and execute it.

A target is the only door between the integer graph and a file format or a runtime. Whatever it executes is read
from the file it wrote, so that what is verified is what a user will load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stars_deploy.graph import SpikingGraph
from stars_deploy.quantized import STATE_LIMIT, IntArray, QuantizedGraph

SpikeArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SpikeRecord:
    """What a network did on a batch.

    Parameters
    ----------
    spikes : mapping of str to array of bool
        For each population, (T, B, *shape); populations that never fire are included, all False.
    potential : array of int
        Membrane potential of the last population after the last timestep, (B, N) [LSB].
    """

    spikes: Mapping[str, SpikeArray]
    potential: IntArray

    def classes(self) -> npt.NDArray[np.int64]:
        """Return the predicted class of each sample, (B,): see :func:`choose_classes`."""
        output = list(self.spikes.values())[-1]
        return choose_classes(output.sum(axis=0).reshape(self.potential.shape), self.potential)


def choose_classes(spike_counts: IntArray, potential: IntArray) -> npt.NDArray[np.int64]:
    """Return the class of each sample, (B,): most spikes, of equals the largest potential, of those the lowest index.

    An output that never fires is so read by its potential, one that fires by its rate.

    Parameters
    ----------
    spike_counts, potential : array of int, (B, N)
        Spikes of the last population over all timesteps, and its membrane potential after the last [LSB].
    """
    # Potentials are signed 24-bit numbers, so that a spike outweighs every difference between two of them.
    score = spike_counts.astype(np.int64) * (2 * STATE_LIMIT) + potential
    classes: npt.NDArray[np.int64] = score.argmax(axis=1)
    return classes


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether a target can execute here; where it cannot, ``reason`` says why and what would make it."""

    ok: bool
    reason: str = ""


class Target(Protocol):
    """One target. Implementations are modules' singletons, listed in :data:`stars_deploy.targets.TARGETS`."""

    name: str
    #: File that the target writes in a built directory.
    filename: str
    #: One line for ``stars-deploy targets``.
    summary: str

    def availability(self) -> Availability:
        """Say whether :meth:`execute` works on this machine."""

    def write(self, graph: QuantizedGraph, path: Path, origin: SpikingGraph | None = None) -> None:
        """Write `graph` to `path`, whole or not at all.

        Parameters
        ----------
        graph : QuantizedGraph
        path : Path
        origin : SpikingGraph, optional
            The canonical float graph (:func:`stars_deploy.lowering.passes.canonicalize`) that `graph` was rounded from,
            for a target that carries floats.

        Raises
        ------
        TargetError
            If the format cannot carry the graph, naming the layer.
        """

    def read(self, path: Path, timesteps: int) -> QuantizedGraph:
        """Read `path` back as a graph.

        Raises
        ------
        FormatError
            If the file is damaged or holds what cannot be executed exactly.
        """

    def execute(self, path: Path, images: IntArray, timesteps: int) -> SpikeRecord:
        """Read `path` back and run it on quantised `images`, (B, C, H, W) [LSB], for `timesteps` each.

        Raises
        ------
        TargetError
            If the target is not available here.
        FormatError
            If the file is damaged or holds what cannot be executed exactly.
        """


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two records differ."""

    layer: str
    timestep: int
    sample: int
    neuron: tuple[int, ...]
    expected: int
    got: int

    def __str__(self) -> str:
        when = f"timestep {self.timestep}" if self.timestep else "membrane potential after the last timestep"
        return (
            f"layer {self.layer}, {when}, sample {self.sample}, neuron {self.neuron}: "
            f"expected {self.expected}, got {self.got}"
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two records of the same network and images compare."""

    compared_spikes: int
    mismatches: int
    first: Difference | None


def compare_records(expected: SpikeRecord, got: SpikeRecord) -> Comparison:
    """Compare two records spike for spike, and the final potentials of the output.

    Returns
    -------
    Comparison
        ``compared_spikes`` counts neuron x timestep x sample positions; ``mismatches`` counts differing spikes and
        differing final potentials; ``first`` is the earliest in layer order. A population that is missing, has another
        shape, or was not expected counts all its positions as mismatches.
    """
    compared = mismatches = 0
    first: Difference | None = None
    for layer, reference in expected.spikes.items():
        compared += reference.size
        candidate = got.spikes.get(layer)
        if candidate is None or candidate.shape != reference.shape:
            mismatches += reference.size
            first = first or Difference(layer=layer, timestep=1, sample=0, neuron=(), expected=1, got=0)
            continue
        wrong = reference != candidate
        mismatches += int(wrong.sum())
        if first is None and wrong.any():
            place = tuple(int(index) for index in np.argwhere(wrong)[0])
            step, sample, *neuron = place
            value = int(reference[place])
            first = Difference(
                layer=layer, timestep=step + 1, sample=sample, neuron=tuple(neuron), expected=value, got=1 - value
            )
    for layer in got.spikes.keys() - expected.spikes.keys():
        mismatches += got.spikes[layer].size
        first = first or Difference(layer=layer, timestep=1, sample=0, neuron=(), expected=0, got=1)
    potentials = _compare_potentials(expected, got)
    mismatches += potentials.mismatches
    return Comparison(compared_spikes=compared, mismatches=mismatches, first=first or potentials.first)


def _compare_potentials(expected: SpikeRecord, got: SpikeRecord) -> Comparison:
    layer = list(expected.spikes)[-1]
    if expected.potential.shape != got.potential.shape:
        first = Difference(layer=layer, timestep=0, sample=0, neuron=(), expected=1, got=0)
        return Comparison(compared_spikes=0, mismatches=expected.potential.size, first=first)
    wrong = np.argwhere(expected.potential != got.potential)
    if not len(wrong):
        return Comparison(compared_spikes=0, mismatches=0, first=None)
    sample, neuron = (int(index) for index in wrong[0])
    first = Difference(
        layer=layer,
        timestep=0,
        sample=sample,
        neuron=(neuron,),
        expected=int(expected.potential[sample, neuron]),
        got=int(got.potential[sample, neuron]),
    )
    return Comparison(compared_spikes=0, mismatches=len(wrong), first=first)
