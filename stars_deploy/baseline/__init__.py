"""The ANN beside a spiking network, in tiers of different kinds, and published break-even rates beside its own."""

from stars_deploy.baseline.break_even import BreakEven
from stars_deploy.baseline.estimate import AnnBaseline, AnnReference, estimate_baseline
from stars_deploy.baseline.layers import AnnLayer, describe_topology
from stars_deploy.baseline.tiers import TIER_NAMES, Tier, no_same_chip_tier, same_chip_tier

__all__ = [
    "TIER_NAMES",
    "AnnBaseline",
    "AnnLayer",
    "AnnReference",
    "BreakEven",
    "Tier",
    "describe_topology",
    "estimate_baseline",
    "no_same_chip_tier",
    "same_chip_tier",
]
