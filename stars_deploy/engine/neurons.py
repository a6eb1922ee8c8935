"""The neuron update over all timesteps of a slice, compiled by numba in 32 or in 64 bits.

The equations are those of :func:`stars_deploy.targets.reference.update`. They run in blocks of neurons that stay in the
first cache; 32 bits suffice where the plan proves it (:func:`stars_deploy.engine.plan.fits_32_bits`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stars_deploy.engine.compilation import compiled, inlined
from stars_deploy.populations import DECAY_BITS, DECAY_ONE, STATE_EXP, STATE_LIMIT

#: Neurons advanced together.
_BLOCK = 2048


def _compile_decay(kind: Any) -> Any:
    """Return ``trunc(state * keep / 4096)`` in numbers of `kind`; numba widens every result, so each is cast back."""
    low_bits, spread, zero = kind(DECAY_ONE - 1), kind(DECAY_BITS), kind(0)

    @inlined
    def decay(state: Any, keep: Any) -> Any:
        # state * keep needs 36 bits; its upper and its lower part do not. Rounding up makes negatives go toward 0.
        upward = low_bits if state < zero else zero
        low = kind(kind(kind(state & low_bits) * keep) + upward)
        return kind(kind(kind(state >> spread) * keep) + kind(low >> spread))

    return decay


def _compile_wrap(kind: Any) -> Any:
    """Return the one wrap of a current into 24 bits."""
    limit, turn = kind(STATE_LIMIT), kind(2 * STATE_LIMIT)

    @inlined
    def wrap(current: Any) -> Any:
        if current > limit:
            return kind(current - turn)
        return kind(current + turn) if current <= -limit else current

    return wrap


def _compile_update(kind: Any) -> Any:
    """Return the update with state variables of `kind`."""
    decay, wrap = _compile_decay(kind), _compile_wrap(kind)
    exponent, zero, highest, lowest = kind(STATE_EXP), kind(0), kind(STATE_LIMIT - 1), kind(1 - STATE_LIMIT)

    @compiled
    def update(
        activation: Any, frame_of: Any, bias: Any, keep_u: Any, keep_v: Any, leaks: bool, threshold: Any, resets: Any,
        first: int, last: int, u: Any, v: Any, spikes: Any, offset: int,
    ) -> None:  # fmt: skip
        """Advance a batch over timesteps [first, last).

        Parameters
        ----------
        activation : array, (B, frames, at least N)
            Timestep t sees frame ``frame_of[t]``.
        frame_of : array of int64, (T,)
        bias : array of `kind`, (B or 1, T or 1, N)
            Shifted already.
        keep_u, keep_v, leaks, threshold, resets
            See :class:`~stars_deploy.engine.plan.Layer`.
        u, v : array of `kind`, (B, N)
            Advanced in place.
        spikes : array of uint8, (B, frames, N)
            Timestep t is written to frame ``t + offset``.
        """
        size = v.shape[1]
        for sample in range(len(v)):
            biases = bias[sample if len(bias) > 1 else 0]
            for start in range(0, size, _BLOCK):
                stop = min(start + _BLOCK, size)
                # Views that begin at 0: only for them does the compiler use vector instructions.
                current, membrane = u[sample, start:stop], v[sample, start:stop]
                left_u, left_v = keep_u[start:stop], keep_v[start:stop]
                limits = threshold[start:stop]
                for step in range(first, last):
                    sums = activation[sample, frame_of[step], start:stop]
                    drive = biases[step if len(biases) > 1 else 0, start:stop]
                    fired = spikes[sample, step + offset, start:stop]
                    if resets[step]:
                        membrane[:] = zero
                        current[:] = zero
                    if leaks:
                        for n in range(stop - start):
                            c = wrap(kind(decay(current[n], left_u[n]) + kind(kind(sums[n]) << exponent)))
                            current[n] = c
                            x = kind(kind(decay(membrane[n], left_v[n]) + c) + drive[n])
                            x = min(max(x, lowest), highest)
                            fired[n] = np.uint8(x > limits[n])
                            membrane[n] = zero if x > limits[n] else x
                    else:
                        for n in range(stop - start):
                            c = wrap(kind(kind(sums[n]) << exponent))
                            x = kind(kind(decay(membrane[n], left_v[n]) + c) + drive[n])
                            x = min(max(x, lowest), highest)
                            fired[n] = np.uint8(x > limits[n])
                            membrane[n] = zero if x > limits[n] else x

    return update


update_narrow = _compile_update(np.int32)
update_wide = _compile_update(np.int64)
