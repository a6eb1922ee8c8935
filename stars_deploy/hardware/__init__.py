"""Chips: tables of constants, and where the neurons of a network go on them."""

from stars_deploy.hardware.constants import CORNERS, Constant, Interval, over_corners, total_of
from stars_deploy.hardware.profile import PROFILES, ChipProfile, load_profile, parse_profile

__all__ = [
    "CORNERS",
    "PROFILES",
    "ChipProfile",
    "Constant",
    "Interval",
    "load_profile",
    "over_corners",
    "parse_profile",
    "total_of",
]
