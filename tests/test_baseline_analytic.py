import itertools
import math

import pytest

from stars_deploy.baseline import AnnLayer
from stars_deploy.baseline.accelerator import add_energy, multiply_energy, sram_energy
from stars_deploy.baseline.analytic import BitWidths, estimate_analytic, find_unknown_zeros
from stars_deploy.errors import ConfigError
from stars_deploy.hardware import CORNERS

INT8 = BitWidths(weights=8, activations=8, pixels=8)
#: One 3x3 convolution, 2 -> 32 channels over 20 x 20 without padding, and what reads it.
CONV = AnnLayer(name="conv", macs=186_624, weights=576, inputs=800, outputs=10_368, zero_share=0.25, reads_image=True)
FC = AnnLayer(name="fc", macs=103_680, weights=103_680, inputs=10_368, outputs=10, zero_share=0.6)
#: (energy of an 8-bit addition [pJ], products for each read) at each end.
ENDS = {"nominal": (0.03, 16.0), "low": (0.03, math.inf), "high": (0.1, 4.0)}


def by_hand(layers, weight_bits, bits, pixel_bits, corner, skip):
    """The energy [pJ] in plain arithmetic, product by product of a formula; everything fits on the chip."""
    add, reuse = ENDS[corner]
    total = 0.0
    weight_memory = sum(layer.weights for layer in layers) * weight_bits / 8
    widths = [pixel_bits if layer.reads_image else bits for layer in layers]
    activation_memory = max(
        (layer.inputs * width + layer.outputs * bits) / 8 for layer, width in zip(layers, widths, strict=True)
    )
    for layer, width in zip(layers, widths, strict=True):
        kept = 1 - layer.zero_share if skip else 1
        macs = layer.macs * kept
        total += macs * (0.2 * weight_bits * width / 64 + add * (weight_bits + width) / 16)
        weight_reads = min(max(layer.weights, macs / reuse), macs)
        total += weight_reads * weight_bits * power_law(weight_memory) / 64
        input_reads = kept * max(layer.inputs, layer.macs / reuse)
        total += (input_reads * width + layer.outputs * bits) * power_law(activation_memory) / 64
    return total


def power_law(size):
    """Energy of 64 bits [pJ]: doubled for 4 times the size up to 32 KiB, times 5 for the 32 times to 1 MiB."""
    if size <= 8192:
        return 10.0
    if size <= 32768:
        return 10 * (size / 8192) ** 0.5
    return min(20 * (size / 32768) ** (math.log(5) / math.log(32)), 100.0)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("widths", [(8, 8, 8), (4, 3, 8), (8, 1, 7)])
def test_energy_equals_plain_arithmetic(widths, corner, skip):
    weights, activations, pixels = widths
    bits = BitWidths(weights=weights, activations=activations, pixels=pixels)
    estimate = estimate_analytic((CONV, FC), bits, skip_zeros=skip)
    wanted = by_hand((CONV, FC), weights, activations, pixels, corner, skip) * 1e-12
    assert getattr(estimate.total, corner) == pytest.approx(wanted, rel=1e-9)


def test_parts_of_one_small_layer():
    # 4 weights, 4 pixels, 1 output, 8 bits each: everything once, from small memories at 10 pJ for 64 bits.
    dot = AnnLayer(name="dot", macs=4, weights=4, inputs=4, outputs=1, zero_share=0.25)
    dense = estimate_analytic([dot], INT8, skip_zeros=False)
    assert dense.arithmetic.nominal == pytest.approx(4 * 0.23e-12)
    assert dense.weights.nominal == pytest.approx(4 * 8 * 10e-12 / 64)
    assert dense.activations.nominal == pytest.approx((4 + 1) * 8 * 10e-12 / 64)
    assert dense.dram.high == 0
    # One pixel of four is 0: three products, three reads of weights and of pixels; the output is written all the same.
    skipping = estimate_analytic([dot], INT8, skip_zeros=True)
    assert skipping.arithmetic.nominal == pytest.approx(3 * 0.23e-12)
    assert skipping.weights.nominal == pytest.approx(3 * 8 * 10e-12 / 64)
    assert skipping.activations.nominal == pytest.approx((3 + 1) * 8 * 10e-12 / 64)


def test_memory_is_more_than_arithmetic_where_nothing_is_used_twice():
    linear = estimate_analytic([FC], INT8, skip_zeros=False)
    assert linear.weights.nominal > 5 * linear.arithmetic.nominal


def test_intervals_are_ordered():
    for skip in (False, True):
        total = estimate_analytic((CONV, FC), INT8, skip_zeros=skip).total
        assert total.low < total.nominal < total.high


@pytest.mark.parametrize("corner", CORNERS)
def test_more_zeros_cost_less_and_only_where_they_are_skipped(corner):
    energies = {}
    for share in (0.0, 0.5, 0.9, 1.0):
        layer = AnnLayer(name="x", macs=9_216, weights=144, inputs=1_024, outputs=1_024, zero_share=share)
        for skip in (False, True):
            energies[share, skip] = getattr(estimate_analytic([layer], INT8, skip_zeros=skip).total, corner)
    assert len({energies[share, False] for share in (0.0, 0.5, 0.9, 1.0)}) == 1
    assert energies[0.0, True] == energies[0.0, False]
    assert all(energies[more, True] < energies[less, True] for less, more in [(0.0, 0.5), (0.5, 0.9), (0.9, 1.0)])
    # Nothing but zeros: only outputs are written.
    assert energies[1.0, True] == pytest.approx(1_024 * 8 * 10e-12 / 64)


def test_zeros_that_nobody_measured_are_no_zeros():
    unknown = AnnLayer(name="hidden", macs=10, weights=10, inputs=5, outputs=2)
    assert find_unknown_zeros((CONV, unknown)) == ("hidden",)
    assert estimate_analytic((CONV, unknown), INT8, skip_zeros=False).total.nominal > 0
    with pytest.raises(ConfigError, match="not measured in hidden"):
        estimate_analytic((CONV, unknown), INT8, skip_zeros=True)


def test_weights_beyond_the_chip_come_from_dram_once():
    # 4 MiB of 8-bit weights: more than 1 MiB (the high end), less than 8 and 32.
    large = AnnLayer(name="fc", macs=4 << 20, weights=4 << 20, inputs=2048, outputs=2048)
    dram = estimate_analytic([large], INT8, skip_zeros=False).dram
    assert (dram.nominal, dram.low) == (0, 0)
    assert dram.high == pytest.approx((4 << 20) * 8 / 64 * 2.6e-9)
    larger = AnnLayer(name="fc", macs=40 << 20, weights=40 << 20, inputs=2048, outputs=2048)
    dram = estimate_analytic([larger], INT8, skip_zeros=False).dram
    words = (40 << 20) * 8 / 64
    assert (dram.nominal, dram.low) == (pytest.approx(words * 1.95e-9), pytest.approx(words * 1.3e-9))


def test_activations_share_the_memory_of_the_chip():
    # 8 MiB of weights would fit the nominal 8 MiB alone; with any activation they do not.
    full = AnnLayer(name="fc", macs=8 << 20, weights=8 << 20, inputs=2048, outputs=4096)
    assert estimate_analytic([full], INT8, skip_zeros=False).dram.nominal > 0


def test_few_bits_may_fit_where_many_do_not():
    # 9 Mi weights: 9 MiB at 8 bits, 4.5 MiB at 4.
    layer = AnnLayer(name="fc", macs=9 << 20, weights=9 << 20, inputs=3072, outputs=3072)
    four = BitWidths(weights=4, activations=8, pixels=8)
    assert estimate_analytic([layer], INT8, skip_zeros=False).dram.nominal > 0
    assert estimate_analytic([layer], four, skip_zeros=False).dram.nominal == 0


def test_published_memories_keep_their_energies():
    for kib, picojoules in [(8, 10), (32, 20), (1024, 100)]:
        assert sram_energy(kib * 1024, "nominal") * 64 == pytest.approx(picojoules)
    assert sram_energy(16 * 1024, "nominal") * 64 == pytest.approx(10 * math.sqrt(2))
    assert sram_energy(1, "nominal") * 64 == pytest.approx(10)
    assert sram_energy(0, "nominal") * 64 == pytest.approx(10)
    assert sram_energy(64 << 20, "nominal") * 64 == pytest.approx(100)
    sizes = [sram_energy(1 << power, "nominal") for power in range(10, 24)]
    assert all(small <= large for small, large in itertools.pairwise(sizes))


def test_multipliers_scale_with_both_widths():
    assert multiply_energy(8, 8, "nominal") == pytest.approx(0.2)
    assert multiply_energy(8, 3, "nominal") == multiply_energy(3, 8, "nominal") == pytest.approx(0.075)
    # Horowitz' own 32-bit multiplier needs 3.1 pJ.
    assert multiply_energy(32, 32, "nominal") == pytest.approx(3.1, rel=0.04)
    assert add_energy(8, 8, "nominal") == pytest.approx(0.03)
    assert add_energy(8, 8, "high") == pytest.approx(0.1)


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        estimate_analytic((), INT8, skip_zeros=False)
    with pytest.raises(ConfigError, match=r"activations \[bits\]: 0"):
        BitWidths(weights=8, activations=0, pixels=8)
