"""The figures of an ANN in tiers of different kinds, which must never be mixed: analytic, same chip, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stars_deploy.baseline.accelerator import HOROWITZ
from stars_deploy.baseline.analytic import NOT_MODELLED, BitWidths, estimate_analytic, find_unknown_zeros
from stars_deploy.baseline.layers import AnnLayer
from stars_deploy.cpu_measurement import BatchMeasurement, CpuMeasurement
from stars_deploy.hardware import Interval

NODE_MISMATCH = (
    "45 nm, where Loihi 1 is 14 nm and Loihi 2 is Intel 4: not scaled, and not to be divided by a chip's energy"
)
_REUSE = (
    "each value is read once for every 16 products it enters (low: once in all, high: every 4), from memories just as "
    "large as what they hold; a write costs what a read does; values are packed without gaps"
)
_BIT_SCALING = "energy of a multiplier in proportion to the product of its widths, of an adder linear in their sum"
_ZEROS = (
    "zero inputs cost nothing, neither product nor read; their share is the float ANN's, to which rounding to few bits "
    "would add"
)
_NO_ZEROS = "the share of zero activations was not measured: {}"


#: Every tier, in order.
TIER_NAMES = (
    *("int8_dense", "int8_zero_skipping", "bit_matched_dense", "bit_matched_zero_skipping"),
    *("same_chip_t1", "cpu_batch_1", "cpu_best_batch"),
)


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One figure beside the chip's.

    Parameters
    ----------
    tier : str
        ``analytic``, ``same-chip`` or ``measured``: figures of different tiers are of different kinds.
    name : str
        Unique and fit for a column: ``int8_dense``, ...
    label : str
        What it is, for whoever reads the figure.
    energy_j : Interval or None
        Of one inference [J]; None where there is no figure, and ``details["reason"]`` says why.
    latency_s : Interval or None
        From an image to its answer [s].
    accuracy : float or None
    details : mapping
    assumptions, sources : tuple of str
    """

    tier: str
    name: str
    label: str
    energy_j: Interval | None = None
    latency_s: Interval | None = None
    accuracy: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def matched_bits(timesteps: int) -> int:
    """Return the bits of the quantised ANN that can tell as many values as spike counts of T timesteps.

    ``ceil(log2(T + 1))`` (Yan et al., arXiv:2409.08290), in integers: the bits of T.
    """
    return timesteps.bit_length()


def analytic_tiers(
    layers: Sequence[AnnLayer], layers_of: str, *, timesteps: int, weight_bits: int, pixel_bits: int
) -> tuple[Tier, ...]:
    """Return the four analytic tiers: int8 and bit-matched, dense and with zeros skipped.

    Parameters
    ----------
    layers : sequence of AnnLayer
    layers_of : str
        Whose they are.
    timesteps : int
        Of the spiking network, for :func:`matched_bits`.
    weight_bits, pixel_bits : int
        Of the spiking network; the bit-matched ANN has them too.
    """
    matched = matched_bits(timesteps)
    int8 = BitWidths(weights=8, activations=8, pixels=8)
    qnn = BitWidths(weights=weight_bits, activations=matched, pixels=pixel_bits)
    words = {
        "int8": (int8, "int8 ANN"),
        "bit_matched": (qnn, f"bit-matched quantised ANN ({matched}-bit activations, {weight_bits}-bit weights)"),
    }
    return tuple(
        _analytic(layers, layers_of, name, bits, what, skip_zeros)
        for name, (bits, what) in words.items()
        for skip_zeros in (False, True)
    )


def _analytic(
    layers: Sequence[AnnLayer], layers_of: str, name: str, bits: BitWidths, what: str, skip_zeros: bool
) -> Tier:
    variant = "zero-skipping" if skip_zeros else "dense"
    details: dict[str, Any] = {
        "layers_of": layers_of,
        "bits": asdict(bits),
        "node": "45 nm",
        "not_modelled": list(NOT_MODELLED),
    }
    unknown = find_unknown_zeros(layers) if skip_zeros else ()
    energy = None
    if unknown:
        details["reason"] = _NO_ZEROS.format(", ".join(unknown))
    else:
        estimate = estimate_analytic(layers, bits, skip_zeros=skip_zeros)
        energy = estimate.total
        details["parts"] = {part: value for part, value in asdict(estimate).items() if part != "total"}
    if skip_zeros:
        details["zero_shares"] = {layer.name: layer.zero_share for layer in layers}
    assumptions = [NODE_MISMATCH, _REUSE, *([_ZEROS] if skip_zeros else [])]
    sources = [f"{HOROWITZ}; each constant has its own source"]
    if name == "bit_matched":
        assumptions.append(_BIT_SCALING)
        sources.append("Z. Yan et al., arXiv:2409.08290: T timesteps stand beside ceil(log2(T + 1)) bits")
    return Tier(
        tier="analytic",
        name=f"{name}_{variant.replace('-', '_')}",
        label=f"estimate: {what}, {variant}, arithmetic and memory traffic at 45 nm",
        energy_j=energy,
        details=details,
        assumptions=tuple(assumptions),
        sources=tuple(sources),
    )


def same_chip_tier(
    *,
    accuracy: float | None,
    energy: Interval,
    latency: Interval,
    profile: str,
    details: Mapping[str, Any] | None = None,
) -> Tier:
    """Return the tier of this network run for one timestep on the same chip: every neuron fires at most once.

    Parameters
    ----------
    accuracy : float or None
        Of the network simulated at T = 1.
    energy, latency : Interval
        Total energy [J] and time [s] of one inference, estimated as for the network beside it.
    profile : str
        Of the chip.
    details : mapping, optional
        More to say, such as how the network was made.
    """
    return Tier(
        tier="same-chip",
        name="same_chip_t1",
        label=f"estimate: the same network at T = 1 on the same chip ({profile})",
        energy_j=energy,
        latency_s=latency,
        accuracy=accuracy,
        details={"profile": profile, "timesteps": 1, **(details or {})},
        assumptions=(
            "a network of binary activations, read as an ANN: one timestep, the same mapping, profile and equations",
            "static energy of whole chips is in it",
        ),
        sources=(f"profile {profile}: see its constants",),
    )


def no_same_chip_tier(reason: str) -> Tier:
    """Return what stands where the network was not run for one timestep, with the `reason`."""
    return Tier(
        tier="same-chip",
        name="same_chip_t1",
        label="estimate: the same network at T = 1 on the same chip",
        details={"reason": reason},
    )


def measured_tiers(measured: CpuMeasurement | None, accuracy: float | None = None) -> tuple[Tier, ...]:
    """Return the two measured tiers: one image a call, and the batch of the least time for an image.

    Parameters
    ----------
    measured : CpuMeasurement or None
        None where nobody measured.
    accuracy : float, optional
        Of the network that was measured.
    """
    batches = {
        "cpu_batch_1": ("one image a call", None if measured is None else measured.batch1),
        "cpu_best_batch": ("best batch", None if measured is None else measured.best),
    }
    return tuple(_measured(name, words, batch, measured, accuracy) for name, (words, batch) in batches.items())


def _measured(
    name: str, words: str, batch: BatchMeasurement | None, measured: CpuMeasurement | None, accuracy: float | None
) -> Tier:
    label = f"measured: the float32 ANN on this machine's CPU, {words}"
    if measured is None or batch is None:
        reason = "not measured" if measured is None else measured.reason or "not measured"
        return Tier(tier="measured", name=name, label=label, details={"reason": reason})
    seconds = batch.seconds_per_inference
    counted = batch.joules_per_inference
    details = {
        "cpu": measured.cpu, "runtime": measured.runtime, "threads": measured.threads, "date": measured.date,
        "batch": batch.batch, "runs": batch.runs, "seconds_per_inference": asdict(seconds),
        "energy_zones": list(measured.energy_zones), "idle_watts": measured.idle_watts,
        "joules_per_inference": None if counted is None else asdict(counted),
        **({} if counted else {"reason": measured.energy_reason or "no joules were counted"}),
    }  # fmt: skip
    return Tier(
        tier="measured",
        name=name,
        label=label,
        energy_j=None if counted is None else _least_to_most(counted.idle_subtracted, counted.total),
        latency_s=Interval(
            nominal=seconds.median * batch.batch, low=seconds.least * batch.batch, high=seconds.most * batch.batch
        ),
        accuracy=accuracy,
        details=details,
        assumptions=(
            "a whole processor with its software: for a small network and one image, calling the runtime takes longer "
            "than the arithmetic",
            "latency: the time of one call, all its images together; least, median and most of several calls",
            "joules, where the machine counts them: all that ran on the package; low: without the idle power before",
            "the normalisation of images is part of the measured model",
        ),
        sources=(f"measured here, {measured.date}",),
    )


def _least_to_most(idle_subtracted: float, total: float) -> Interval:
    return Interval(nominal=total, low=min(idle_subtracted, total), high=total)
