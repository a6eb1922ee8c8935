"""Digests of what a network did, so that processes can be compared without moving its spikes between them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def digest_record(spikes: Mapping[str, np.ndarray[Any, Any]], potential: np.ndarray[Any, Any]) -> dict[str, str]:
    """Return the sha256 of each layer's spikes, (T, B, ...), and of the output's final potentials, (B, N).

    Shapes are part of it, element types are not: equal digests mean equal results.
    """
    digests = {name: _digest(np.packbits(values != 0), values.shape) for name, values in spikes.items()}
    return {**digests, "final potential": _digest(np.ascontiguousarray(potential, np.int64), potential.shape)}


def firing_rates(spikes: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    """Return each layer's mean firing rate [spikes/neuron/timestep]."""
    return {name: float(np.mean(values != 0)) for name, values in spikes.items()}


def _digest(values: np.ndarray[Any, Any], shape: tuple[int, ...]) -> str:
    return hashlib.sha256(repr(tuple(int(size) for size in shape)).encode() + values.tobytes()).hexdigest()
