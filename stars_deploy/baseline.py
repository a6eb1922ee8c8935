"""The ANN beside the spiking network: multiply-accumulates, one arithmetic energy, and published break-even points.

The energy here and that of a chip are not of one kind: arithmetic alone at 45 nm, against operations with their
memory on a 14 nm or Intel 4 chip. They stand side by side under their own names; no ratio is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stars_deploy.errors import ConfigError
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation
from stars_deploy.synops import connections, fan_out

#: Energy of an 8-bit multiplication (0.2 pJ) and an 8-bit addition (0.03 pJ) at 45 nm, 0.9 V [pJ].
INT8_MAC_45NM = 0.23
LABEL = "analytic 45 nm int8 MAC energy, arithmetic only"
SOURCE = (
    "M. Horowitz, 'Computing's energy problem', ISSCC 2014: int8 multiply 0.2 pJ + int8 add 0.03 pJ at 45 nm, 0.9 V"
)
CAVEAT = (
    "arithmetic only: no memory traffic, no control, no zero-skipping, another process node than the chip; "
    "not comparable with the chip's estimate as a ratio"
)


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """A published condition under which a spiking network needs less energy than an ANN."""

    statement: str
    source: str


#: Beside :attr:`AnnBaseline.spikes_per_synapse`; each holds under its authors' own hardware assumptions.
BREAK_EVEN = (
    BreakEven(
        statement="an SNN competes only below 0.15 to 1.38 spikes per synapse and inference, "
        "depending on how the ANN is implemented",
        source="Dampfhoffer et al., IEEE TETCI 2023 (abstract)",
    ),
    BreakEven(
        statement="at T = 5 the spike rate must stay below 5.7 % to beat a quantised ANN of ceil(log2(T + 1)) bits",
        source="Yan et al., arXiv:2409.08290v4 (abstract; 6.4 % in v2 and v3)",
    ),
    BreakEven(
        statement="with memory and addressing counted, 6 to 8 times in favour of SNNs on three data sets",
        source="Lemaire et al., 2022 (abstract)",
    ),
)


@dataclass(frozen=True, kw_only=True)
class AnnBaseline:
    """What the ANN of the same task does for one inference.

    Parameters
    ----------
    macs : int
        Multiply-accumulates: of the deployed topology without padding, or those given for the teacher.
    macs_of : str
        Whose they are.
    macs_per_layer : mapping of str to int
        Of the deployed topology, for each population.
    energy_j : float
        ``macs`` x 0.23 pJ [J]; read ``label`` and ``caveat`` with it.
    spikes_per_synapse : float or None
        Of the spiking network: spikes met by one non-zero synapse in one inference, the graded input left out; None
        where only the input drives synapses.
    spike_rate : float
        Of the spiking network: spikes for each neuron and timestep, over all populations.
    """

    macs: int
    macs_of: str
    macs_per_layer: Mapping[str, int]
    energy_j: float
    spikes_per_synapse: float | None
    spike_rate: float
    break_even: tuple[BreakEven, ...] = BREAK_EVEN
    picojoules_per_mac: float = INT8_MAC_45NM
    label: str = LABEL
    source: str = SOURCE
    caveat: str = CAVEAT


def estimate_baseline(graph: QuantizedGraph, evaluation: Evaluation, *, teacher_macs: int | None = None) -> AnnBaseline:
    """Return the ANN's figures beside those of `graph`.

    Parameters
    ----------
    graph : QuantizedGraph
        Its connections that exist, zero weights included, are the multiply-accumulates of an ANN of this topology.
    evaluation : Evaluation
        Of `graph`.
    teacher_macs : int, optional
        Multiply-accumulates of the teacher, where it has another topology.

    Raises
    ------
    ConfigError
        If `teacher_macs` is below 1.
    """
    if teacher_macs is not None and teacher_macs < 1:
        raise ConfigError("teacher_macs", teacher_macs, "at least 1")
    per_layer = {population.name: 0 for population in graph.populations}
    driven = 0
    for projection in graph.projections:
        shape = graph.shape_of(projection.source)
        per_layer[projection.target] += connections(projection, shape)
        if projection.source != graph.input.name:
            driven += int(fan_out(projection, shape).sum())
    macs = sum(per_layer.values()) if teacher_macs is None else teacher_macs
    counts = evaluation.totals()
    return AnnBaseline(
        macs=macs,
        macs_of="an ANN of the deployed topology" if teacher_macs is None else "the teacher",
        macs_per_layer=per_layer,
        energy_j=macs * INT8_MAC_45NM * 1e-12,
        spikes_per_synapse=counts["spike_synops"] / driven if driven else None,
        spike_rate=counts["spikes"] / counts["neuron_updates"],
    )
