"""Projections: what spikes or payloads make in the next population, as a matrix product.

A convolution gathers what each output position sees (its taps, channels last, so that each is one run of bytes) and
multiplies. Measured on 64 to 128 channels, 3x3, stride 2, one thread, with VNNI and AMX, million multiply-accumulates a
millisecond: ConvInteger of uint8 50 (of int8 weights 13, and ONNX Runtime 1.23 has none); Conv of float32 65 - 80;
gathering and MatMulInteger of uint8 by int8 300, of which gathering takes three quarters.

Three routes, all exact:

- ``bytes``: values of 0 to 127 and signed weights of 8 bits, MatMulInteger, int32. Larger values are kept out because
  processors without VNNI add pairs of products in 16 bits; unsigned weights because older versions of ONNX Runtime
  send them to wrong kernels on some processors (its pull request 27671).
- ``float``: while no sum of magnitudes exceeds 2**24, float32 holds every partial sum; the shift by 6 is free there.
- ``double``: the same up to 2**53.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stars_deploy.graph import convolved_size
from stars_deploy.populations import STATE_EXP, IntArray
from stars_deploy.projections import ConvProjection, DenseProjection, Projection
from stars_deploy.targets.onnx_model.arithmetic import FLOAT_LIMIT, INT_LIMIT
from stars_deploy.targets.onnx_model.drawing import Drawing
from stars_deploy.targets.onnx_model.frames import Frames, stored_kind

#: Largest value that two products with an 8-bit weight leave in 16 bits.
_SMALL = 127
#: Columns of a tile in AMX. Where the last tile is more than half full, but not full, ONNX Runtime 1.23 gets one row in
#: 32 wrong (measured; the same pull request mends it): columns of zeros fill it up.
_TILE = 32


def delays_of(projection: Projection) -> tuple[int, ...]:
    """Return each delay of `projection` [timesteps], shortest first."""
    return tuple(int(delay) for delay in np.unique(projection.delay))


def weight_name(index: int, projection: Projection) -> str:
    """Return the name of the tensor that holds the weights of the projection number `index`."""
    return f"weight:{index}:{projection.name}"


def delay_name(index: int, projection: Projection) -> str:
    """Return the name of the tensor that holds the delays of each synapse."""
    return f"delay:{index}:{projection.name}"


def pack_weight(projection: Projection, shape: tuple[int, ...]) -> IntArray:
    """Return the weights as a model keeps them: (in, out), or (groups, taps * in/group, out/group); channels last.

    Parameters
    ----------
    projection : Projection
    shape : tuple of int
        Of the source.
    """
    if isinstance(projection, DenseProjection):
        return _pack_dense(projection.weight, shape)
    out, channels, height, width = projection.weight.shape
    groups = projection.groups
    kernel = projection.weight.reshape(groups, out // groups, channels, height, width)
    packed: IntArray = kernel.transpose(0, 3, 4, 2, 1).reshape(groups, height * width * channels, out // groups)
    return packed if groups > 1 else packed[0]


def unpack_weight(packed: IntArray, kernel: tuple[int, ...], shape: tuple[int, ...], groups: int) -> IntArray:
    """Undo :func:`pack_weight`; `kernel` is the shape of the weights."""
    if len(kernel) == 2:
        return unpack_dense(packed, shape)
    out, channels, height, width = kernel
    taps = packed.reshape(groups, height, width, channels, out // groups)
    unpacked: IntArray = taps.transpose(0, 4, 3, 1, 2).reshape(kernel)
    return unpacked


def pack_delay(projection: DenseProjection, shape: tuple[int, ...]) -> IntArray:
    """Return delays of each synapse, (in, out), or of each source neuron, (in, 1), channels last."""
    delay = np.asarray(projection.delay)
    return _pack_dense(delay[:1] if (delay == delay[0]).all() else delay, shape)


def _pack_dense(values: IntArray, shape: tuple[int, ...]) -> IntArray:
    planes = values.reshape(len(values), *shape)
    rows = np.moveaxis(planes, 1, -1) if len(shape) == 3 else planes
    packed: IntArray = rows.reshape(len(values), -1).T
    return packed


def unpack_dense(packed: IntArray, shape: tuple[int, ...]) -> IntArray:
    """Return (in, out), channels last, as (out, in) in C order."""
    rows = packed.T
    if len(shape) == 3:
        rows = np.moveaxis(rows.reshape(-1, *shape[1:], shape[0]), -1, 1)
    return np.ascontiguousarray(rows.reshape(packed.shape[1], -1))


def choose_route(projection: Projection, low: int, high: int) -> str:
    """Return ``bytes``, ``float`` or ``double`` for values from `low` to `high`."""
    weight = projection.weight
    largest = int(np.abs(weight).reshape(len(weight), -1).sum(axis=1).max()) * max(-low, high)
    narrow = weight.min() >= -128 and weight.max() <= 127
    if narrow and low >= 0 and high <= _SMALL and largest << STATE_EXP <= INT_LIMIT:
        return "bytes"
    return "float" if largest <= FLOAT_LIMIT else "double"


def draw_projection(
    draw: Drawing, index: int, projection: Projection, delay: int, source: Frames, kind: np.dtype[Any]
) -> str:
    """Draw the activation that the synapses of one delay make, shifted, (..., N) of `kind`, axes as those of `source`.

    Parameters
    ----------
    draw : Drawing
    index : int
        Number of the projection in its graph.
    projection : Projection
    delay : int
        Which of its synapses, where they differ.
    source : Frames
        What they see, delayed already.
    kind : dtype
        Integers of the target's state.
    """
    route = choose_route(projection, source.low, source.high)
    number = np.dtype({"bytes": np.uint8, "float": np.float32, "double": np.float64}[route])
    weight = _draw_weight(draw, index, projection, delay, source.shape, number)
    columns = len(projection.weight) // (projection.groups if isinstance(projection, ConvProjection) else 1)
    spare = -columns % _TILE if route == "bytes" and columns % _TILE > _TILE // 2 else 0
    if spare:
        axes = 2 * packed_axes(projection)
        weight = draw.root.add("Pad", weight, draw.constant([0] * (axes - 1) + [spare], np.int64))
    values = source.in_kind(draw, number)
    if isinstance(projection, ConvProjection):
        values = _draw_taps(draw, projection, values, source.shape)
    sums = draw.add("MatMulInteger" if route == "bytes" else "MatMul", values, weight)
    if spare:
        sums = draw.add("Slice", sums, *(draw.constant([value], np.int64) for value in (0, columns, -1)))
    if isinstance(projection, ConvProjection):
        if projection.groups > 1:
            sums = draw.add("Transpose", sums, perm=[0, 2, 1, 3])
        size = projection_size(projection, source.shape)
        sums = draw.reshape(sums, [source.steps, -1, size] if source.steps else [-1, size])
    if route == "bytes":
        wide = sums if kind == np.int32 else draw.cast(sums, kind)
        return draw.add("Mul", wide, draw.constant(1 << STATE_EXP, kind))
    return draw.cast(sums, kind)


def packed_axes(projection: Projection) -> int:
    """Return the number of axes of a projection's weights as a model keeps them."""
    return 3 if isinstance(projection, ConvProjection) and projection.groups > 1 else 2


def projection_size(projection: Projection, shape: tuple[int, ...]) -> int:
    """Return the number of target neurons."""
    return int(np.prod(projection.output_shape(shape)))


def _draw_weight(
    draw: Drawing, index: int, projection: Projection, delay: int, shape: tuple[int, ...], number: np.dtype[Any]
) -> str:
    draw = draw.root
    packed = pack_weight(projection, shape)
    kept = stored_kind(packed)
    weight = draw.tensor(weight_name(index, projection), packed.astype(kept))
    if isinstance(projection, DenseProjection) and not isinstance(projection.delay, int):
        late = pack_delay(projection, shape)
        delays = draw.tensor(delay_name(index, projection), late.astype(stored_kind(late)))
        chosen = draw.add("Equal", draw.cast(delays, np.int32), draw.constant(delay, np.int32))
        masked = draw.add("Where", chosen, draw.cast(weight, np.int32), draw.constant(0, np.int32))
        weight = draw.cast(masked, kept) if number == np.uint8 else masked
    if number == np.uint8:
        return weight
    return draw.add("Mul", draw.cast(weight, number), draw.constant(1 << STATE_EXP, number))


def _draw_taps(draw: Drawing, projection: ConvProjection, values: str, shape: tuple[int, ...]) -> str:
    """Draw (..., N) as (rows * positions, taps * channels), or (rows, groups, positions, taps * channels/group)."""
    channels, height, width = shape
    groups, (rows, columns) = projection.groups, projection.weight.shape[2:]
    pads, strides, dilation = projection.padding, projection.stride, projection.dilation
    made = [
        convolved_size(size, kernel, stride, pad, step)
        for size, kernel, stride, pad, step in zip(
            (height, width), (rows, columns), strides, pads, dilation, strict=True
        )
    ]
    depth = rows * columns * (channels // groups)
    axes = [-1, depth] if groups == 1 else [-1, groups, made[0] * made[1], depth]
    if (rows, columns, *strides, *pads, groups) == (1, 1, 1, 1, 0, 0, 1):
        return draw.reshape(values, axes)
    planes = draw.reshape(values, [-1, height, width, channels])
    if any(pads):
        around = draw.constant([0, *pads, 0, 0, *pads, 0], np.int64)
        planes = draw.add("Pad", planes, around)
    padded = width + 2 * pads[1]
    pieces = draw.reshape(planes, [-1, (height + 2 * pads[0]) * padded * groups, channels // groups])
    # The indices are the sum of small tables, so that the file holds no large one; runtimes add them up when loading.
    down = (np.arange(made[0]) * strides[0])[:, None] + np.arange(rows) * dilation[0]
    along = (np.arange(made[1]) * strides[1])[:, None] + np.arange(columns) * dilation[1]
    fixed = draw.root
    places = fixed.add(
        "Add",
        draw.constant(down[:, None, :, None] * padded * groups, np.int64),
        draw.constant(along[None, :, None, :] * groups, np.int64),
    )
    if groups > 1:
        places = fixed.add("Add", places, draw.constant(np.arange(groups).reshape(-1, 1, 1, 1, 1), np.int64))
    return draw.reshape(draw.add("Gather", pieces, fixed.reshape(places, [-1]), axis=1), axes)
