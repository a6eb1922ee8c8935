"""The ANN beside a spiking network, put together: layers, rates with published break-even points, and tiers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stars_deploy.baseline.accelerator import CONSTANTS
from stars_deploy.baseline.break_even import BreakEven, judge_break_even
from stars_deploy.baseline.layers import AnnLayer, describe_topology
from stars_deploy.baseline.tiers import Tier, analytic_tiers, measured_tiers
from stars_deploy.cpu_measurement import CpuMeasurement
from stars_deploy.errors import ConfigError
from stars_deploy.populations import DECAY_ONE
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation
from stars_deploy.synops import fan_out

TEACHER = "the teacher"
TOPOLOGY = "an ANN of the deployed topology"


@dataclass(frozen=True, kw_only=True)
class AnnReference:
    """The ANN that a network came from, as far as it was measured.

    Parameters
    ----------
    layers : tuple of AnnLayer
    accuracy : float or None
        On the evaluation set of the network beside it.
    measured : CpuMeasurement or None
        On this machine, or on the one that built the network.
    """

    layers: tuple[AnnLayer, ...]
    accuracy: float | None = None
    measured: CpuMeasurement | None = None


@dataclass(frozen=True, kw_only=True)
class AnnBaseline:
    """What the ANN of the same task does for one inference.

    Parameters
    ----------
    macs : int
        Multiply-accumulates of all ``layers``.
    macs_of : str
        Whose they are: the teacher's, or those of an ANN with the topology that was deployed.
    layers : tuple of AnnLayer
    spikes_per_synapse : float or None
        Of the spiking network: spikes met by one non-zero synapse in one inference, the graded input left out; None
        where only the input drives synapses.
    spike_rate : float
        Of the spiking network: spikes for each neuron and timestep, over all populations that fire.
    break_even : tuple of BreakEven
    tiers : tuple of Tier
    measured : CpuMeasurement or None
        What the measured tiers are taken from.
    constants : tuple of dict
        Those of the analytic tiers: key, nominal, low, high, unit, source, evidence.
    """

    macs: int
    macs_of: str
    layers: tuple[AnnLayer, ...]
    spikes_per_synapse: float | None
    spike_rate: float
    break_even: tuple[BreakEven, ...]
    tiers: tuple[Tier, ...]
    measured: CpuMeasurement | None = None
    constants: tuple[dict[str, Any], ...] = field(
        default_factory=lambda: tuple({"key": key, **constant.model_dump()} for key, constant in CONSTANTS.items())
    )

    def tier(self, name: str) -> Tier:
        """Return the tier called `name`.

        Raises
        ------
        ConfigError
            If there is none.
        """
        found = {tier.name: tier for tier in self.tiers}
        if name not in found:
            raise ConfigError("ANN tier", name, ", ".join(found))
        return found[name]


def estimate_baseline(
    graph: QuantizedGraph,
    evaluation: Evaluation,
    *,
    teacher: AnnReference | None = None,
    same_chip: Tier | None = None,
) -> AnnBaseline:
    """Return the ANN's figures beside those of `graph`.

    Parameters
    ----------
    graph : QuantizedGraph
        Its timesteps, weight bits and input bits are those that the bit-matched ANN stands beside.
    evaluation : Evaluation
        Of `graph`.
    teacher : AnnReference, optional
        What the analytic tiers are of; without it an ANN of the deployed topology, whose zeros are known in the layers
        that read the image only, and which nobody measured.
    same_chip : Tier, optional
        From :func:`stars_deploy.baseline.same_chip_tier`.

    Raises
    ------
    ConfigError
        If the teacher has no layers, or no synapse enters any population.
    """
    layers = describe_topology(graph, evaluation) if teacher is None else teacher.layers
    if not layers:
        raise ConfigError("ANN layers", "none", "at least one")
    layers_of = TOPOLOGY if teacher is None else TEACHER
    analytic = analytic_tiers(
        layers,
        layers_of,
        timesteps=graph.timesteps,
        weight_bits=max(projection.precision.bits for projection in graph.projections),
        pixel_bits=graph.input.precision.bits,
    )
    measured, accuracy = (None, None) if teacher is None else (teacher.measured, teacher.accuracy)
    per_synapse, rate = _spikes_per_synapse(graph, evaluation), _spike_rate(graph, evaluation)
    return AnnBaseline(
        macs=sum(layer.macs for layer in layers),
        macs_of=layers_of,
        layers=layers,
        spikes_per_synapse=per_synapse,
        spike_rate=rate,
        break_even=judge_break_even(
            timesteps=graph.timesteps,
            spikes_per_synapse=per_synapse,
            spike_rate=rate,
            integrates_only=_integrates_only(graph),
        ),
        tiers=(*analytic, *(() if same_chip is None else (same_chip,)), *measured_tiers(measured, accuracy)),
        measured=measured,
    )


def _spikes_per_synapse(graph: QuantizedGraph, evaluation: Evaluation) -> float | None:
    driven = sum(
        int(fan_out(projection, graph.shape_of(projection.source)).sum())
        for projection in graph.projections
        if projection.source != graph.input.name
    )
    return evaluation.totals()["spike_synops"] / driven if driven else None


def _integrates_only(graph: QuantizedGraph) -> bool:
    firing = [population for population in graph.populations if population.fires]
    return all(
        bool(np.all(population.decay_v == 0)) and bool(np.all(population.decay_u == DECAY_ONE)) for population in firing
    )


def _spike_rate(graph: QuantizedGraph, evaluation: Evaluation) -> float:
    # A readout that never fires has no rate: its neurons would only make the network look quieter.
    firing = [layer for layer in evaluation.layers if graph.population(layer.name).fires]
    updates = sum(layer.neuron_updates for layer in firing)
    return sum(sum(layer.spikes_per_step) for layer in firing) / updates if updates else 0.0
