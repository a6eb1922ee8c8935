"""Energy of one inference on a chip: counted operations times the constants of its profile, and static power."""

from __future__ import annotations

from collections.abc import Mapping as Mapped
from dataclasses import dataclass

import numpy as np

from stars_deploy.hardware import Constant, Interval, over_corners, total_of
from stars_deploy.hardware.mapping import Mapping
from stars_deploy.latency import LatencyEstimate
from stars_deploy.traffic import Traffic

#: What the energy leaves out or takes as given.
NOT_MODELLED = (
    "host, embedded processors and input/output",
    "the energy of the barrier (never published)",
    "the payload of graded messages: a synop costs the same for any pixel value",
    "synaptic memory words read: the energy is per synop, not per word",
    "links between chips: counted as hops of the mesh",
    "where the input enters: taken as the first tile",
    "learning",
)
PARTS = ("synapses", "neurons_active", "neurons_inactive", "spikes", "messages", "hops")
_PICO = 1e-12


@dataclass(frozen=True, kw_only=True)
class LayerEnergy:
    """Nominal dynamic energy of one population, or of the input's messages [J], and its parts."""

    name: str
    dynamic: float
    parts: Mapped[str, float]


@dataclass(frozen=True, kw_only=True)
class EnergyEstimate:
    """Energy of one inference [J]; an estimate, never a measurement.

    Parameters
    ----------
    dynamic, static, total : Interval
        Operations; static power of whole chips over the time of one inference; their sum [J].
    parts : mapping of str to Interval
        :data:`PARTS` of the dynamic energy, before widening [J].
    by_layer : tuple of LayerEnergy
        Synapses and updates count to the population that they are of, messages and hops to the one that sends them.
    hypothetical_static_of_used_cores : Interval
        Static energy if it could be paid for the used cores only [J]. No chip can: for comparison with papers that do.
    """

    profile: str
    dynamic: Interval
    static: Interval
    total: Interval
    parts: Mapped[str, Interval]
    by_layer: tuple[LayerEnergy, ...]
    hypothetical_static_of_used_cores: Interval
    label: str = "estimate"
    not_modelled: tuple[str, ...] = NOT_MODELLED


def estimate_energy(traffic: Traffic, samples: int, mapping: Mapping, latency: LatencyEstimate) -> EnergyEstimate:
    """Return the energy of one inference.

    ``dynamic = e_conv S_conv + e_dense S_dense + e_active A + e_inactive I + e_spike F + e_message M + e_ew H_ew +
    e_ns H_ns``: synops on non-zero weights (graded input included), active and inactive neuron updates, spikes,
    messages (a spike or non-zero pixel on its way to one core), and their hops from tile to tile.
    ``static = P_chip x whole chips x time of one inference``. Each end of an interval takes the same end of every
    constant, and is never narrower than the profile's ``model_error``.

    Parameters
    ----------
    traffic : Traffic
        Summed over `samples` samples.
    samples : int
    mapping : Mapping
    latency : LatencyEstimate
    """
    profile = mapping.profile
    by_layer = {name: _operations(name, traffic, samples, mapping) for name in traffic.messages}
    parts = {
        part: over_corners(
            lambda corner, part=part: sum(  # type: ignore[misc]
                _priced(operations[part], corner) for operations in by_layer.values()
            )
        )
        for part in PARTS
    }
    dynamic = total_of(*parts.values()).widened(profile.model_error.dynamic_energy)

    def static_of(chips: float) -> Interval:
        return over_corners(
            lambda corner: (
                profile.static_power_per_chip.at(corner) * chips * float(getattr(latency.per_inference, corner))
            )
        )

    static = static_of(mapping.chips)
    return EnergyEstimate(
        profile=profile.name,
        dynamic=dynamic,
        static=static,
        total=total_of(dynamic, static),
        parts=parts,
        by_layer=tuple(_nominal(name, operations) for name, operations in by_layer.items()),
        hypothetical_static_of_used_cores=static_of(len(mapping.cores) / profile.limits.cores_per_chip.nominal),
    )


#: How often, and at which energy.
_Charges = dict[str, list[tuple[float, Constant]]]


def _operations(name: str, traffic: Traffic, samples: int, mapping: Mapping) -> _Charges:
    """Return what one inference makes one population do, or the input send, part by part."""
    energy = mapping.profile.energy
    own = np.array([core.layer == name for core in mapping.cores])
    steps = len(traffic.spikes)

    def mean(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
        return int(counts.sum()) / samples

    active = mean(traffic.active[:, :, own])
    messages = traffic.messages[name]
    return {
        "synapses": [
            (mean(traffic.synops_conv[:, :, own]), energy.synapse_conv),
            (mean(traffic.synops_dense[:, :, own]), energy.synapse_dense),
        ],
        "neurons_active": [(active, energy.neuron_active)],
        "neurons_inactive": [(steps * int(traffic.neurons[own].sum()) - active, energy.neuron_inactive)],
        "spikes": [(mean(traffic.spikes[:, :, own]), energy.spike)],
        "messages": [(mean(messages.sent), energy.message)],
        "hops": [
            (mean(messages.east_west), energy.hop_east_west),
            (mean(messages.north_south), energy.hop_north_south),
        ],
    }


def _priced(charges: list[tuple[float, Constant]], corner: str) -> float:
    return sum(count * constant.at(corner) * _PICO for count, constant in charges)


def _nominal(name: str, operations: _Charges) -> LayerEnergy:
    parts = {part: _priced(charges, "nominal") for part, charges in operations.items()}
    return LayerEnergy(name=name, dynamic=sum(parts.values()), parts=parts)
