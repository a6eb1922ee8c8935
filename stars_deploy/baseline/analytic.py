"""What an ANN's arithmetic and memory traffic would cost on a 45 nm accelerator: an estimate, never a measurement.

For each layer with M multiply-accumulates, a share z of which has an input of 0, W weights, I inputs and O outputs::

    M' = M (1 - z) if zeros are skipped, else M
    weight reads     = min(max(W, M' / R), M')       each weight once, and again whenever R products are done with it
    input reads      = min(max(I, M / R), M) M' / M  the same for inputs; zeros are not read where they are skipped
    output writes    = O
    E = M' (e_multiply + e_add) + e_weights(b_w weight reads) + e_activations(b_a (input reads + output writes))

R is :func:`~.accelerator.reuse_factor`. Weights lie in one memory, just as large as they are, and activations in
another, just as large as the inputs and outputs of the layer that has most of them; weights beyond the SRAM that the
accelerator has come from DRAM once for each inference, and are then read from memories of 1 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stars_deploy.baseline.accelerator import (
    add_energy,
    dram_energy,
    multiply_energy,
    on_chip_bytes,
    reuse_factor,
    sram_energy,
)
from stars_deploy.baseline.layers import AnnLayer
from stars_deploy.errors import ConfigError
from stars_deploy.hardware import Interval, over_corners, total_of

_PICO = 1e-12
_BYTE = 8
#: What the analytic tiers leave out or take as given.
NOT_MODELLED = (
    "control, instructions, clock, leakage and idle time",
    "registers inside the array of multipliers, and wires between memories",
    "biases, batch norms (folded into weights), activation functions, pooling, sums of branches, requantisation",
    "the bookkeeping by which zeros are found and skipped",
    "getting the image onto the chip",
)


@dataclass(frozen=True, kw_only=True)
class BitWidths:
    """Bits of weights, of activations between layers, and of pixels."""

    weights: int
    activations: int
    pixels: int

    def __post_init__(self) -> None:
        for name in ("weights", "activations", "pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} [bits]", getattr(self, name), "at least 1")

    def entering(self, layer: AnnLayer) -> int:
        """Return the bits of what enters `layer`."""
        return self.pixels if layer.reads_image else self.activations


@dataclass(frozen=True, kw_only=True)
class AnalyticEnergy:
    """Energy of one inference [J], in all and by part.

    ``weights`` and ``activations`` are SRAM traffic, ``dram`` what weights cost that do not fit on the chip.
    """

    total: Interval
    arithmetic: Interval
    weights: Interval
    activations: Interval
    dram: Interval


def find_unknown_zeros(layers: Sequence[AnnLayer]) -> tuple[str, ...]:
    """Return the names of layers whose share of zero inputs was not measured."""
    return tuple(layer.name for layer in layers if layer.zero_share is None)


def estimate_analytic(layers: Sequence[AnnLayer], bits: BitWidths, *, skip_zeros: bool) -> AnalyticEnergy:
    """Return the energy of one inference by the equations of this module.

    Each end of an interval takes the same end of every constant, and the other end of reuse and of on-chip memory.

    Parameters
    ----------
    layers : sequence of AnnLayer
    bits : BitWidths
    skip_zeros : bool
        Credit zero inputs: their products are not done, and they are not read.

    Raises
    ------
    ConfigError
        If there are no layers, or `skip_zeros` and a layer's zeros are not known.
    """
    if not layers:
        raise ConfigError("ANN layers", "none", "at least one")
    if skip_zeros and (unknown := find_unknown_zeros(layers)):
        raise ConfigError("zero inputs", f"not measured in {', '.join(unknown)}", "a share for each layer")
    work = [_Work(layer=layer, entering=bits.entering(layer), skips=skip_zeros) for layer in layers]
    weight_bytes = sum(layer.weights for layer in layers) * bits.weights / _BYTE
    activation_bytes = max(one.held_bits(bits.activations) for one in work) / _BYTE

    def add_up(energy: Callable[[_Work, str], float]) -> Interval:
        return over_corners(lambda corner: sum(energy(one, corner) for one in work) * _PICO)

    def arithmetic(one: _Work, corner: str) -> float:
        widths = (bits.weights, one.entering)
        return one.macs * (multiply_energy(*widths, corner) + add_energy(*widths, corner))

    def weights(one: _Work, corner: str) -> float:
        return one.weight_reads(corner) * bits.weights * sram_energy(weight_bytes, corner)

    def activations(one: _Work, corner: str) -> float:
        moved = one.input_reads(corner) * one.entering + one.layer.outputs * bits.activations
        return moved * sram_energy(activation_bytes, corner)

    def dram(one: _Work, corner: str) -> float:
        fits = weight_bytes + activation_bytes <= on_chip_bytes(corner)
        return 0.0 if fits else one.layer.weights * bits.weights * dram_energy(corner)

    parts = {
        "arithmetic": add_up(arithmetic),
        "weights": add_up(weights),
        "activations": add_up(activations),
        "dram": add_up(dram),
    }
    return AnalyticEnergy(total=total_of(*parts.values()), **parts)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What one layer does, with zeros skipped or not."""

    layer: AnnLayer
    entering: int
    skips: bool

    @property
    def _kept(self) -> float:
        return 1 - (self.layer.zero_share or 0.0) if self.skips else 1.0

    @property
    def macs(self) -> float:
        return self.layer.macs * self._kept

    def weight_reads(self, corner: str) -> float:
        return min(max(self.layer.weights, self.macs / reuse_factor(corner)), self.macs)

    def input_reads(self, corner: str) -> float:
        return self._kept * min(max(self.layer.inputs, self.layer.macs / reuse_factor(corner)), self.layer.macs)

    def held_bits(self, activations: int) -> int:
        return self.layer.inputs * self.entering + self.layer.outputs * activations
