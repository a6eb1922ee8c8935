"""The loops over neurons and spikes, compiled by numba; arrays are one-dimensional or C-ordered, samples first.

Frames are laid out channels last, so that what one spike adds is one row of a table. Every kernel releases the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stars_deploy.engine.compilation import compiled, inlined
from stars_deploy.engine.lanes import (
    LISTS_IN_VECTORS,
    UNIT,
    add_rows,
    add_scaled_rows,
    list_nonzero,
    mark_rows,
    move_run,
)

#: Neurons counted together.
_BLOCK = 4096
#: Events marked before a look whether all outputs are touched.
_MARKED = 8


@inlined
def list_in_vectors(frame: Any, pixels: int, channels: int, first: int, width: int, rows: Any, ends: Any) -> None:
    """List what :func:`list_one_by_one` lists, 16 values at a time; reads up to 15 values behind the frame."""
    count = 0
    ends[0] = 0
    if width < UNIT and width == channels:
        # Pixels are narrower than a vector: list the whole frame first, and then count where each pixel ends.
        listed = 0
        for at in range(0, pixels * channels, UNIT):
            listed = list_nonzero(frame, at, pixels * channels - at, at, rows, listed)
        for pixel in range(pixels):
            if channels == 3:  # colours: a loop would take longer than its body
                at = 3 * pixel
                count += (frame[at] != 0) + (frame[at + 1] != 0) + (frame[at + 2] != 0)
            else:
                for channel in range(channels):
                    count += frame[pixel * channels + channel] != 0
            ends[pixel + 1] = count
        return
    for pixel in range(pixels):
        at = pixel * channels + first
        for channel in range(0, width, UNIT):
            count = list_nonzero(frame, at + channel, width - channel, pixel * width + channel, rows, count)
        ends[pixel + 1] = count


@inlined
def list_one_by_one(frame: Any, pixels: int, channels: int, first: int, width: int, rows: Any, ends: Any) -> None:
    """List what is not 0 in channels [first, first + width) of a frame as ``pixel * width + channel``.

    ``rows[ends[p] : ends[p + 1]]`` are those of pixel p.
    """
    count = 0
    ends[0] = 0
    for pixel in range(pixels):
        values = frame[pixel * channels + first : pixel * channels + first + width]
        for channel in range(width):
            rows[count] = pixel * width + channel
            count += values[channel] != 0
        ends[pixel + 1] = count


@inlined
def _list_spikes(frame: Any, pixels: int, channels: int, first: int, width: int, rows: Any, ends: Any) -> None:
    """List in the way that is faster on this processor."""
    if LISTS_IN_VECTORS:
        list_in_vectors(frame, pixels, channels, first, width, rows, ends)
    else:
        list_one_by_one(frame, pixels, channels, first, width, rows, ends)


@inlined
def _list_values(frame: Any, rows: Any, ends: Any, pixels: int, channels: int, first: int, width: int, by: Any) -> None:
    """Copy the values that go with the rows that :func:`_list_spikes` listed."""
    for pixel in range(pixels):
        for event in range(ends[pixel], ends[pixel + 1]):
            by[event] = frame[pixel * channels + first + rows[event] - pixel * width]


@inlined
def _taps_within(start: int, step: int, taps: int, size: int) -> tuple[int, int]:
    """Return the range of taps t of a kernel for which ``start + t * step`` lies in [0, size)."""
    first = max(0, -(start // step))
    last = min(taps, (size - 1 - start) // step + 1)
    return first, max(first, last)


@inlined
def _gather_events(
    graded: bool, top: int, low: int, high: int, dilate_y: int, left: int, dilate_x: int, source_x: int, kernel_x: int,
    width: int, ends: Any, rows: Any, by: Any, seen: Any, seen_by: Any,
) -> int:  # fmt: skip
    """Put the events that a target pixel sees one after another into ``seen``; return how many they are.

    The pixel's kernel begins at row `top` and column `left` of the source; its lines [low, high) lie within. In
    ``seen`` an event's number becomes its row in the table of a block, in ``seen_by`` is its value. Neighbouring pixels
    are neighbouring events: without dilation a line is moved at once. One list instead of a run for each line spares
    the processor a wrong guess at the end of each.
    """
    run = kernel_x if dilate_x == 1 else 1
    count = 0
    for tap_x in range(0, kernel_x, run):
        column = left + tap_x * dilate_x
        start, stop = max(column, 0), min(column + run, source_x)
        if start >= stop:
            continue
        for tap_y in range(low, high):
            pixel = (top + tap_y * dilate_y) * source_x
            first, last = ends[pixel + start], ends[pixel + stop]
            move_run(rows, first, last, ((tap_y * kernel_x + tap_x) - (pixel + column)) * width, seen, count)
            if graded:
                move_run(by, first, last, 0, seen_by, count)
            count += last - first
    return count


@compiled
def _mark_touched(
    units: Any, nonzero: Any, table: int, seen: Any, events: int, touched: Any, at: int, held: int
) -> None:
    """Set ``touched[at + j]`` where one of the events has a non-zero weight for output j, of `held` outputs."""
    for first in range(0, events, _MARKED):
        mark_rows(units, False, touched, at, nonzero, table, seen, first, min(first + _MARKED, events))
        # A few events mostly touch all: then the others do not matter.
        marks, joint = touched[at : at + held], np.uint8(1)
        for output in range(held):
            joint = np.uint8(joint & marks[output])
        if joint:
            return


@inlined
def _project_pixel(
    units: Any, graded: bool, fresh: bool, table: int, blocks: int, outputs: int, size: int, tables: Any, nonzero: Any,
    zeros: Any, seen: Any, seen_by: Any, events: int, out: Any, touched: Any, at: int,
) -> None:  # fmt: skip
    """Add what the events of one target pixel make in the outputs of one group, ``out[at : at + outputs]``.

    They are in `blocks` tables of `size` weights, beginning with number `table`.
    """
    lanes = len(units) * UNIT
    for block in range(blocks):
        place, held = at + block * lanes, min(lanes, outputs - block * lanes)
        base, limit = (table + block) * size, zeros[table + block]
        if graded:
            add_scaled_rows(units, fresh, out, place, tables, base, seen, 0, events, seen_by)
        else:
            add_rows(units, fresh, out, place, tables, base, seen, 0, events)
        if fresh or events > limit:
            touched[place : place + held] = events > limit
        if 0 < events <= limit:
            _mark_touched(units, nonzero, base, seen, events, touched, place, held)


@inlined
def project_frame(
    units: Any, graded: bool, fresh: bool, frame: Any, shape: Any, tables: Any, nonzero: Any, zeros: Any, out: Any,
    touched: Any, rows: Any, ends: Any, by: Any, seen: Any, seen_by: Any,
) -> None:  # fmt: skip
    """Add what one frame of the source makes in one frame of the target.

    Parameters
    ----------
    units : tuple
        Its length times 16 is the number of lanes: outputs of a block.
    graded : bool
        Whether the frame holds values; otherwise what is not 0 is a spike.
    fresh : bool
        Whether ``out`` and ``touched`` are overwritten; only for one group, whose pixels are written in their order.
    frame : array, (source pixels * source channels,)
    shape : array of int64
        See :data:`stars_deploy.engine.plan.GEOMETRY`.
    tables : array, (groups, blocks, kernel height, kernel width, channels of a group, lanes), flat
        Weights, in narrow integers or in the type of the accumulator.
    nonzero : array of uint8, as ``tables``
        1 where a weight is not 0.
    zeros : array of int64, (groups * blocks,)
        Most zero weights that any output of a block has: where more events arrive, each output is touched.
    out : array, at least (target pixels * target channels + lanes,)
        The accumulator; to what lies behind a block of outputs, 0 is added.
    touched : array of uint8, as ``out``
    rows, ends, by, seen, seen_by : arrays
        Room for the events of a frame, for those that a pixel sees, and for 16 more.
    """
    source_y, source_x, channels = shape[0], shape[1], shape[2]
    target_y, target_x, targets = shape[3], shape[4], shape[5]
    kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x = shape[6], shape[7], shape[8], shape[9], shape[10], shape[11]
    dilate_y, dilate_x, groups, blocks = shape[12], shape[13], shape[14], shape[15]
    pixels, lanes = source_y * source_x, len(units) * UNIT
    width, outputs = channels // groups, targets // groups
    size = kernel_y * kernel_x * width * lanes
    for group in range(groups):
        _list_spikes(frame, pixels, channels, group * width, width, rows, ends)
        if ends[pixels] == 0 and not fresh:
            continue
        if graded:
            _list_values(frame, rows, ends, pixels, channels, group * width, width, by)
        for y in range(target_y):
            top = y * stride_y - pad_y
            low, high = _taps_within(top, dilate_y, kernel_y, source_y)
            for x in range(target_x):
                left = x * stride_x - pad_x
                events = _gather_events(
                    graded, top, low, high, dilate_y, left, dilate_x, source_x, kernel_x, width, ends, rows, by, seen,
                    seen_by,
                )  # fmt: skip
                if events == 0 and not fresh:
                    continue
                at = (y * target_x + x) * targets + group * outputs
                _project_pixel(
                    units, graded, fresh, group * blocks, blocks, outputs, size, tables, nonzero, zeros, seen, seen_by,
                    events, out, touched, at,
                )  # fmt: skip


@compiled
def project_frames(
    units: Any, graded: bool, fresh: bool, source: Any, first: int, last: int, back: int, ahead: int, shape: Any,
    tables: Any, nonzero: Any, zeros: Any, activation: Any, touched: Any, rows: Any, ends: Any, by: Any, seen: Any,
    seen_by: Any,
) -> None:  # fmt: skip
    """Apply :func:`project_frame` to frames of a batch: timesteps [first, last) of the target.

    Frame t of the target sees frame ``t + back`` of ``source``, (B, frames, neurons), and is frame ``t + ahead`` of
    ``activation`` and ``touched``, (B, frames, neurons + lanes).
    """
    for sample in range(len(source)):
        for step in range(first, last):
            project_frame(
                units, graded, fresh, source[sample, step + back], shape, tables, nonzero, zeros,
                activation[sample, step + ahead], touched[sample, step + ahead], rows, ends, by, seen, seen_by,
            )  # fmt: skip


@compiled
def project_synapses(
    source: Any, first: int, last: int, back: Any, starts: Any, targets: Any, weights: Any, activation: Any,
    touched: Any,
) -> None:  # fmt: skip
    """Add what synapses of many delays make; those of neuron n and delay d are ``starts[d, n] : starts[d, n + 1]``.

    Parameters
    ----------
    source : array, (B, frames, neurons)
        Spikes or values.
    first, last : int
        Timesteps of the target.
    back : array of int64, (delays,)
        Frame ``t + back[d]`` of the source is what arrives at timestep t.
    starts : array of int64, (delays, neurons + 1)
    targets : array of int32, (synapses,)
    weights : array, (synapses,)
        Not 0, in the type of ``activation``.
    activation, touched : arrays, (B, frames, neurons + lanes)
    """
    for sample in range(len(source)):
        for step in range(first, last):
            sums, marks = activation[sample, step], touched[sample, step]
            for delay in range(len(back)):
                frame, of = source[sample, step + back[delay]], starts[delay]
                for neuron in range(len(frame)):
                    value = frame[neuron]
                    if value != 0:
                        for synapse in range(of[neuron], of[neuron + 1]):
                            target = targets[synapse]
                            sums[target] += weights[synapse] * value
                            marks[target] = 1


@compiled
def count_spikes(spikes: Any, touched: Any, frame_of: Any, offset: int, emitted: Any, active: Any) -> None:
    """Add the spikes of a batch to ``emitted`` (T, N), and to ``active`` (T, N) where a neuron was touched or fired.

    Timestep t is frame ``t + offset`` of ``spikes`` and frame ``frame_of[t]`` of ``touched``.
    """
    size = emitted.shape[1]
    for step in range(len(emitted)):
        # In blocks over all samples, so that the counters are read and written once.
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            total, busy = emitted[step, start:stop], active[step, start:stop]
            for sample in range(len(spikes)):
                fired = spikes[sample, step + offset, start:stop]
                marks = touched[sample, frame_of[step], start:stop]
                for neuron in range(stop - start):
                    total[neuron] = np.int32(total[neuron] + np.int32(fired[neuron]))
                    busy[neuron] = np.int32(busy[neuron] + np.int32(np.uint8(fired[neuron] | marks[neuron])))


@compiled
def weigh_messages(messages: Any, fan: Any) -> int:
    """Return the sum over neurons of their messages times their fan-out.

    NumPy would copy the counters to wider integers first, or call a BLAS whose idle threads wait busily.
    """
    total = 0
    for neuron in range(len(messages)):
        total += messages[neuron] * fan[neuron]
    return total
