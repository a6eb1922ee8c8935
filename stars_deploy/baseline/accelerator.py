"""What arithmetic and memory cost at 45 nm: the constants of the analytic tiers, each with range, source and evidence.

All are those of M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, for 45 nm and
0.9 V, or what is said beside them. They are the constants that most papers on spiking networks take for their ANN,
though seldom with the memory. Nothing here is scaled to another process node.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from stars_deploy.hardware import Constant

HOROWITZ = "M. Horowitz, ISSCC 2014, rough energies at 45 nm, 0.9 V"

CONSTANTS: Mapping[str, Constant] = {
    "multiply_8x8": Constant(
        nominal=0.2, low=0.2, high=0.2, unit="pJ", evidence="published", source=f"{HOROWITZ}: 8-bit multiply"
    ),
    "add_8": Constant(
        nominal=0.03, low=0.03, high=0.1, unit="pJ", evidence="published",
        source=f"{HOROWITZ}: 8-bit add; high: 32-bit add, as wide as an accumulator may be",
    ),
    "sram_8_kib": Constant(
        nominal=10, low=10, high=10, unit="pJ", evidence="published", source=f"{HOROWITZ}: 64 bits of an 8 KB cache"
    ),
    "sram_32_kib": Constant(
        nominal=20, low=20, high=20, unit="pJ", evidence="published", source=f"{HOROWITZ}: 64 bits of a 32 KB cache"
    ),
    "sram_1_mib": Constant(
        nominal=100, low=100, high=100, unit="pJ", evidence="published", source=f"{HOROWITZ}: 64 bits of a 1 MB cache"
    ),
    "dram": Constant(
        nominal=1950, low=1300, high=2600, unit="pJ", evidence="published",
        source=f"{HOROWITZ}: 64 bits, 1.3 to 2.6 nJ; nominal: the middle",
    ),
    "on_chip_mib": Constant(
        nominal=8, low=1, high=32, unit="MiB", evidence="estimate",
        source="how much SRAM the accelerator has: from the largest memory of the table to about Loihi 1's 33 MB "
        "(Davies 2018)",
    ),
    "reuse": Constant(
        nominal=16, low=4, high=1e9, unit="MACs", evidence="estimate",
        source="products that a value enters for each time it is read: an array of 16 x 16 multipliers, which share "
        "weights along one side and inputs along the other; 4 x 4; every value read once",
    ),
}  # fmt: skip
#: Which end of "how much memory", "how much reuse" belongs to which end of the energy.
OPPOSITE: Mapping[str, str] = {"nominal": "nominal", "low": "high", "high": "low"}
WORD = 64
_KIB = 1 << 10
_MIB = 1 << 20
#: Sizes of memory whose energy is published [bytes].
_MEMORIES = ((8 * _KIB, "sram_8_kib"), (32 * _KIB, "sram_32_kib"), (_MIB, "sram_1_mib"))


def multiply_energy(bits: int, other_bits: int, corner: str) -> float:
    """Return the energy of one multiplication [pJ]: that of 8 x 8 bits, in proportion to the product of the widths.

    An array multiplier has an adder cell for each pair of bits. Horowitz's own 32-bit multiplier, 3.1 pJ, is 15.5 times
    the 8-bit one, where the product says 16.
    """
    return CONSTANTS["multiply_8x8"].at(corner) * bits * other_bits / 64


def add_energy(bits: int, other_bits: int, corner: str) -> float:
    """Return the energy of adding a product of so many bits [pJ]: that of 8-bit operands, linear in the bits."""
    return CONSTANTS["add_8"].at(corner) * (bits + other_bits) / 16


def sram_energy(size: float, corner: str) -> float:
    """Return the energy of reading or writing one bit in a memory of `size` bytes [pJ].

    Between the published sizes the logarithm grows linearly with that of the size (a power law). Below 8 KiB it stays
    what it is there, for no smaller one is published; a memory above 1 MiB is made of banks of 1 MiB.
    """
    points = [(math.log(place), math.log(CONSTANTS[key].at(corner))) for place, key in _MEMORIES]
    at = min(max(math.log(max(size, 1.0)), points[0][0]), points[-1][0])
    (left, low), (right, high) = next(pair for pair in itertools.pairwise(points) if at <= pair[1][0])
    return math.exp(low + (high - low) * (at - left) / (right - left)) / WORD


def dram_energy(corner: str) -> float:
    """Return the energy of reading one bit from DRAM [pJ]."""
    return CONSTANTS["dram"].at(corner) / WORD


def on_chip_bytes(corner: str) -> float:
    """Return how much SRAM the accelerator has where `corner` is that of the energy: the most for the low end."""
    return CONSTANTS["on_chip_mib"].at(OPPOSITE[corner]) * _MIB


def reuse_factor(corner: str) -> float:
    """Return how many products a value enters for each time it is read, where `corner` is that of the energy."""
    return CONSTANTS["reuse"].at(OPPOSITE[corner])
