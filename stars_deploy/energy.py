"""Energy of one inference on a chip: counted operations times the constants of its profile, and static power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stars_deploy.hardware import ChipProfile, Constant, CoreEstimate, Interval, over_corners, total_of
from stars_deploy.latency import LatencyEstimate
from stars_deploy.simulate import Evaluation

#: What the energy leaves out or takes as given.
NOT_MODELLED = (
    "host, embedded processors and input/output",
    "the energy of the barrier (never published)",
    "the placement of cores: hops and destinations of a message are a mean of the profile, not counted",
    "the payload of graded messages: a synop costs the same for any pixel value",
    "synaptic memory words read: the energy is per synop, not per word",
    "links between chips",
    "learning",
)
_PICO = 1e-12


@dataclass(frozen=True, kw_only=True)
class EnergyEstimate:
    """Energy of one inference [J]; an estimate, never a measurement.

    Parameters
    ----------
    dynamic, static, total : Interval
        Operations; static power of whole chips over the time of one inference; their sum [J].
    parts : mapping of str to Interval
        ``synapses``, ``neurons_active``, ``neurons_inactive``, ``messages``, ``hops`` before widening [J].
    hypothetical_static_of_used_cores : Interval
        Static energy if it could be paid for the used cores only [J]. No chip can: for comparison with papers that do.
    """

    profile: str
    dynamic: Interval
    static: Interval
    total: Interval
    parts: Mapping[str, Interval]
    hypothetical_static_of_used_cores: Interval
    label: str = "estimate"
    not_modelled: tuple[str, ...] = NOT_MODELLED


def estimate_energy(
    evaluation: Evaluation, profile: ChipProfile, cores: CoreEstimate, latency: LatencyEstimate
) -> EnergyEstimate:
    """Return the energy of one inference.

    ``dynamic = e_synapse S + e_active A + e_inactive I + (e_message + hops e_hop) M``, with ``S`` synops on non-zero
    weights (graded input included), ``A`` and ``I`` active and inactive neuron updates, ``M`` messages (spikes, and
    non-zero pixels at each timestep). ``static = P_chip x whole chips x time of one inference``. Each end of an
    interval takes the same end of every constant, and is never narrower than the profile's ``model_error``.
    """
    counts, energy = evaluation.totals(), profile.energy

    def joules(count: float, *factors: Constant) -> Interval:
        def at(corner: str) -> float:
            product = count * _PICO
            for factor in factors:
                product *= factor.at(corner)
            return product

        return over_corners(at)

    parts = {
        "synapses": joules(counts["synops"], energy.synapse),
        "neurons_active": joules(counts["active_updates"], energy.neuron_active),
        "neurons_inactive": joules(counts["neuron_updates"] - counts["active_updates"], energy.neuron_inactive),
        "messages": joules(counts["messages"], energy.message),
        "hops": joules(counts["messages"], energy.hops_per_message, energy.hop),
    }
    dynamic = total_of(*parts.values()).widened(profile.model_error.dynamic_energy)

    def static_of(chips: float) -> Interval:
        return over_corners(
            lambda corner: (
                profile.static_power_per_chip.at(corner) * chips * float(getattr(latency.per_inference, corner))
            )
        )

    static = static_of(cores.chips)
    return EnergyEstimate(
        profile=profile.name,
        dynamic=dynamic,
        static=static,
        total=total_of(dynamic, static),
        parts=parts,
        hypothetical_static_of_used_cores=static_of(cores.chips * cores.utilisation["cores_of_chips"]),
    )
