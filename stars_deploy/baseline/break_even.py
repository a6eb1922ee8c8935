"""Published conditions under which a spiking network needs less energy than an ANN, each with our rate beside it."""

from __future__ import annotations

from dataclasses import dataclass

#: Spikes for each synapse and inference of IF neurons: the published range, whose end depends on the ANN.
DAMPFHOFFER = (0.15, 1.38)
#: Timesteps, and the spike rate below which the study's spiking network needs less.
YAN_TIMESTEPS, YAN_RATE = 5, 0.057


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """A published condition and where this network stands.

    Parameters
    ----------
    statement, source : str
    ours : str
        The corresponding figure of this network, in words with its unit.
    value : float or None
        That figure; None where there is none.
    met : bool or None
        Whether the condition holds; None where that cannot be said.
    reason : str
        Why ``met`` is what it is.
    """

    statement: str
    source: str
    ours: str
    value: float | None
    met: bool | None
    reason: str


def judge_break_even(
    *, timesteps: int, spikes_per_synapse: float | None, spike_rate: float, integrates_only: bool
) -> tuple[BreakEven, ...]:
    """Return the published conditions with this network's rates beside them.

    Each holds under its authors' assumptions on hardware, which are not those of any chip here.

    Parameters
    ----------
    timesteps : int
    spikes_per_synapse : float or None
        Spikes met by one non-zero synapse in one inference; None where only the input drives synapses.
    spike_rate : float
        Spikes for each neuron and timestep.
    integrates_only : bool
        Whether all neurons that fire are IF neurons: neither a leak nor a synaptic current that lasts.
    """
    met, reason = _judge_synapses(spikes_per_synapse, integrates_only)
    rate_met, rate_reason = _judge_rate(timesteps, spike_rate)
    return (
        BreakEven(
            statement="SNNs of IF neurons compete with efficient ANNs only at a very high sparsity: between 0.15 and "
            "1.38 spikes per synapse and inference, depending on how the ANN is implemented",
            source="M. Dampfhoffer et al., IEEE TETCI 7(3):731-741, 2023 (abstract)",
            ours="no figure"
            if spikes_per_synapse is None
            else f"{spikes_per_synapse:.3g} spikes per synapse and inference, T = {timesteps}",
            value=spikes_per_synapse,
            met=met,
            reason=reason,
        ),
        BreakEven(
            statement="at T = 5 the average spike rate must stay below 5.7 % to beat a quantised ANN of "
            "ceil(log2(T + 1)) bits on typical neuromorphic hardware",
            source="Z. Yan et al., arXiv:2409.08290v4 (abstract; 6.4 % for T of 5 to 10 in v2 and v3)",
            ours=f"{100 * spike_rate:.3g} % of neurons at a timestep, T = {timesteps}",
            value=spike_rate,
            met=rate_met,
            reason=rate_reason,
        ),
        BreakEven(
            statement="three SNNs, for static, dynamic and event-based data, are 6 to 8 times as efficient as their "
            "ANNs by a metric that is independent of hardware",
            source="E. Lemaire et al., 'An analytical estimation of spiking neural networks energy efficiency', "
            "ICONIP 2022 (abstract)",
            ours="no figure",
            value=None,
            met=None,
            reason="a ratio of other networks, without a rate to stay below; no ratio of a chip and an analytic ANN is "
            "taken here",
        ),
    )  # fmt: skip


def _judge_synapses(value: float | None, integrates_only: bool) -> tuple[bool | None, str]:
    lowest, highest = DAMPFHOFFER
    if value is None:
        return None, "only the input drives synapses: there are no spikes to count"
    if value > highest:
        return False, f"above {highest}, the end of the range for the ANN that is easiest to beat"
    if value >= lowest:
        return None, f"between {lowest} and {highest}: it depends on how the ANN is implemented"
    if not integrates_only:
        # The abstract finds IF more efficient than the other models, so what it grants IF does not extend to them.
        return None, f"below {lowest}, but stated for IF neurons; these leak or keep a current, which needs more"
    return True, f"below {lowest}, the end of the range for the ANN that is hardest to beat"


def _judge_rate(timesteps: int, rate: float) -> tuple[bool | None, str]:
    if timesteps != YAN_TIMESTEPS:
        return None, f"stated for T = {YAN_TIMESTEPS}, and this network runs {timesteps} timesteps"
    return rate < YAN_RATE, f"{'below' if rate < YAN_RATE else 'not below'} {100 * YAN_RATE:.3g} %"
