"""Composition: a projection together with the scales, pools and offsets before and after it, exactly.

A convolution stays one where that is exact; otherwise it becomes the matrix that it is, if that is small enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Union

import numpy as np
import numpy.typing as npt

from stars_deploy.convolution import correlate
from stars_deploy.errors import GraphError
from stars_deploy.graph import (
    Conv2d,
    Flatten,
    FloatArray,
    Linear,
    Node,
    Normalize,
    Pool2d,
    Scale,
    convolved_shape,
)

Projecting = Union[Conv2d, Linear]
IndexArray = npt.NDArray[np.int64]

#: Most weights of a convolution that becomes a matrix.
LARGEST_MATRIX = 1 << 22
#: Most weights of a projection together with pools.
LARGEST_COMPOSITION = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Affine:
    """What a projection does between two shapes: of a Linear those that its input and output had as images."""

    node: Projecting
    entering: tuple[int, ...]
    leaving: tuple[int, ...]

    @property
    def convolved(self) -> tuple[int, int, int]:
        """Shape of what the convolution makes."""
        conv = self.node
        if isinstance(conv, Linear):
            raise GraphError(conv.name, "a Linear", "a Conv2d")
        return convolved_shape(
            self.entering, conv.weight.shape, conv.stride, conv.padding, conv.dilation, conv.groups, conv.name
        )


def identity(name: str, shape: tuple[int, ...]) -> Affine:
    """Return the projection of each element of `shape` to itself.

    Raises
    ------
    GraphError
        If that is a matrix of more than 2**22 weights.
    """
    if len(shape) == 3:
        conv = Conv2d(name=name, weight=np.ones((shape[0], 1, 1, 1)), bias=np.zeros(shape[0]), groups=shape[0])
        return Affine(node=conv, entering=shape, leaving=shape)
    size = math.prod(shape)
    _check_size(name, size * size, LARGEST_MATRIX, "it leads each element to itself")
    return Affine(node=Linear(name=name, weight=np.eye(size), bias=np.zeros(size)), entering=shape, leaving=shape)


def pooling(pool: Pool2d, entering: tuple[int, ...], leaving: tuple[int, ...]) -> Affine:
    """Return a pool as the depthwise convolution that it is."""
    channels = entering[0]
    conv = Conv2d(
        name=pool.name,
        weight=np.full((channels, 1, *pool.kernel), _share(pool)),
        bias=np.zeros(channels),
        stride=pool.stride,
        padding=pool.padding,
        groups=channels,
    )
    return Affine(node=conv, entering=entering, leaving=leaving)


def prepend(part: Affine, node: Node, entering: tuple[int, ...]) -> Affine:
    """Return `part` with `node` before it, which makes ``part.entering`` of `entering`.

    Raises
    ------
    GraphError
        If a convolution would have to become a matrix of more than 2**22 weights.
    """
    if isinstance(node, Flatten):
        return replace(part, entering=entering)
    if isinstance(node, Pool2d):
        if isinstance(part.node, Conv2d) and _pads_alone(node, part, entering):
            return replace(part, node=_convolved_pool(node, part.node), entering=entering)
        dense = matrix(part, f"{node.name} before it sees its padding together with values")
        _check_size(part.node.name, len(dense.weight) * math.prod(entering), LARGEST_COMPOSITION, f"with {node.name}")
        weight = _spread(node, dense.weight.reshape(-1, *part.entering), entering)
        dense = replace(dense, weight=weight.reshape(len(weight), -1))
        return Affine(node=dense, entering=entering, leaving=part.leaving)
    factor, offset = _elementwise(node, entering)
    if isinstance(part.node, Conv2d) and _by_channel(factor) is None:
        part = replace(part, node=matrix(part, f"{node.name} before it scales each place differently"))
    if isinstance(part.node, Linear):
        return replace(part, node=_shifted_columns(part.node, factor, offset), entering=entering)
    return replace(part, node=_shifted_kernel(part.node, factor, offset), entering=entering)


def append(part: Affine, node: Node, leaving: tuple[int, ...]) -> Affine:
    """Return `part` with `node` after it, which makes `leaving` of ``part.leaving``.

    Raises
    ------
    GraphError
        If a convolution would have to become a matrix of more than 2**22 weights.
    """
    if isinstance(node, Flatten):
        return replace(part, leaving=leaving)
    if isinstance(node, Pool2d):
        return _with_pool(part, node, leaving)
    shape = part.convolved if isinstance(part.node, Conv2d) else leaving
    factor, offset = (values.reshape(shape) for values in _elementwise(node, leaving))
    if isinstance(part.node, Conv2d) and _by_channel(factor) is None:
        part = replace(part, node=matrix(part, f"{node.name} after it scales each place differently"))
    if isinstance(part.node, Linear):
        rows = factor.reshape(-1)
        made: Projecting = replace(
            part.node, weight=part.node.weight * rows[:, None], bias=part.node.bias * rows - offset.reshape(-1)
        )
    else:
        kernels, shift = factor[:, 0, 0], _by_channel(offset)
        bias = part.node.bias * spatial(kernels, part.node.bias.ndim)
        bias = spatial(bias, 3) - offset if shift is None else bias - spatial(shift, bias.ndim)
        made = replace(part.node, weight=part.node.weight * spatial(kernels, 4), bias=bias)
    return replace(part, node=made, leaving=leaving)


def matrix(part: Affine, reason: str) -> Linear:
    """Return the projection as a Linear.

    Raises
    ------
    GraphError
        If that has more than 2**22 weights; `reason` says why it would be needed.
    """
    conv = part.node
    if isinstance(conv, Linear):
        return conv
    out, height, width = part.convolved
    channels, rows, columns = part.entering
    outputs, inputs = out * height * width, channels * rows * columns
    _check_size(conv.name, outputs * inputs, LARGEST_MATRIX, reason)
    weight = np.zeros((out, height, width, channels, rows, columns))
    by_group = channels // conv.groups
    for y, x in np.ndindex(conv.weight.shape[2:]):
        at, to = _met(height, rows, conv.stride[0], y * conv.dilation[0] - conv.padding[0])
        at_x, to_x = _met(width, columns, conv.stride[1], x * conv.dilation[1] - conv.padding[1])
        for o in range(out):
            first = o // (out // conv.groups) * by_group
            for k in range(by_group):
                weight[o, at[:, None], at_x, first + k, to[:, None], to_x] += conv.weight[o, k, y, x]
    bias = np.broadcast_to(spatial(conv.bias, 3), part.convolved).reshape(-1)
    return Linear(name=conv.name, weight=weight.reshape(outputs, inputs), bias=bias)


def spatial(values: FloatArray, axes: int) -> FloatArray:
    """Return values by channel, (C,), with trailing axes up to `axes`; others as they are."""
    return values.reshape(-1, *[1] * (axes - 1)) if values.ndim == 1 else values


def _elementwise(node: Node, shape: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Return the factor and the offset of ``y = factor x - offset``, both of `shape`."""
    if isinstance(node, Scale):
        return np.broadcast_to(node.scale, shape), np.zeros(shape)
    if isinstance(node, Normalize):
        factor, offset = spatial(1 / node.std, len(shape)), spatial(node.mean / node.std, len(shape))
        return np.broadcast_to(factor, shape), np.broadcast_to(offset, shape)
    raise GraphError(node.name, type(node).__name__, "Flatten, Scale, Normalize or Pool2d")


def _by_channel(values: FloatArray) -> FloatArray | None:
    """Return (C,) of values (C, H, W) that are the same at each place, otherwise None."""
    first = values[:, :1, :1]
    return first[:, 0, 0] if (values == first).all() else None


def _shifted_columns(node: Linear, factor: FloatArray, offset: FloatArray) -> Linear:
    weight = node.weight * factor.reshape(-1)
    return replace(
        node, weight=weight, bias=node.bias - node.weight @ offset.reshape(-1) if offset.any() else node.bias
    )


def _shifted_kernel(node: Conv2d, factor: FloatArray, offset: FloatArray) -> Conv2d:
    by_input = factor[:, 0, 0].reshape(node.groups, 1, -1, 1, 1)
    weight = node.weight.reshape(node.groups, -1, *node.weight.shape[1:]) * by_input
    node, kernel = replace(node, weight=weight.reshape(node.weight.shape)), node.weight
    if not offset.any():
        return node
    seen = correlate(offset[None], kernel, node.stride, node.padding, node.dilation, node.groups)[0]
    bias = np.broadcast_to(spatial(node.bias, 3), seen.shape)
    # Without padding every neuron of a channel sees the same offset, and one bias a channel is enough.
    rounding = 1e-12 * (np.abs(bias).max() + np.abs(seen).max())
    bias = bias - seen
    uniform = np.ptp(bias.reshape(len(bias), -1), axis=1).max() <= rounding
    return replace(node, bias=bias[:, 0, 0] if uniform else bias)


def _share(pool: Pool2d) -> float:
    return 1 / math.prod(pool.kernel) if pool.average else 1.0


def _pads_alone(pool: Pool2d, part: Affine, entering: tuple[int, ...]) -> bool:
    """Whether what the convolution pads, as windows of the pool, would see zeros only.

    The first window after the last one begins behind the image. Then ``kernel <= stride + padding``, so that the one
    before the first ends before it.
    """
    conv = part.node
    return isinstance(conv, Linear) or all(
        conv.padding[axis] == 0
        or part.entering[axis + 1] * pool.stride[axis] - pool.padding[axis] >= entering[axis + 1]
        for axis in (0, 1)
    )


def _convolved_pool(pool: Pool2d, conv: Conv2d) -> Conv2d:
    """Return the convolution `conv` of what `pool` makes as one convolution."""
    steps = [conv.dilation[axis] * pool.stride[axis] for axis in (0, 1)]
    sizes = [(conv.weight.shape[axis + 2] - 1) * steps[axis] + pool.kernel[axis] for axis in (0, 1)]
    channels = conv.weight.shape[:2]
    _check_size(conv.name, math.prod((*channels, *sizes)), LARGEST_COMPOSITION, f"with {pool.name} before it")
    weight = np.zeros((*channels, *sizes))
    for y, x in np.ndindex(conv.weight.shape[2:]):
        window = (
            slice(y * steps[0], y * steps[0] + pool.kernel[0]),
            slice(x * steps[1], x * steps[1] + pool.kernel[1]),
        )
        weight[:, :, window[0], window[1]] += conv.weight[:, :, y, x, None, None] * _share(pool)
    return replace(
        conv,
        weight=weight,
        stride=(conv.stride[0] * pool.stride[0], conv.stride[1] * pool.stride[1]),
        padding=(
            pool.padding[0] + conv.padding[0] * pool.stride[0],
            pool.padding[1] + conv.padding[1] * pool.stride[1],
        ),
        dilation=(1, 1),
    )


def _with_pool(part: Affine, pool: Pool2d, leaving: tuple[int, ...]) -> Affine:
    if isinstance(part.node, Conv2d) and not any(pool.padding):
        return replace(part, node=_pooled_convolution(part.node, pool), leaving=leaving)
    dense = matrix(part, f"{pool.name} after it pads what it makes")
    columns = _pool(pool, dense.weight.T.reshape(-1, *part.leaving))
    bias = _pool(pool, dense.bias.reshape(1, *part.leaving)).reshape(-1)
    dense = replace(dense, weight=columns.reshape(len(columns), -1).T, bias=bias)
    return Affine(node=dense, entering=part.entering, leaving=leaving)


def _pooled_convolution(conv: Conv2d, pool: Pool2d) -> Conv2d:
    """Return what `pool` makes of the convolution `conv` as one convolution; the pool has no padding."""
    kernel = conv.weight.shape[2:]
    sizes = [
        conv.dilation[axis] * (kernel[axis] - 1) + 1 + conv.stride[axis] * (pool.kernel[axis] - 1) for axis in (0, 1)
    ]
    channels = conv.weight.shape[:2]
    _check_size(conv.name, math.prod((*channels, *sizes)), LARGEST_COMPOSITION, f"with {pool.name} after it")
    weight = np.zeros((*channels, *sizes))
    for y, x in np.ndindex(kernel):
        top, left = y * conv.dilation[0], x * conv.dilation[1]
        bottom, right = (top + conv.stride[0] * (pool.kernel[0] - 1), left + conv.stride[1] * (pool.kernel[1] - 1))
        window = weight[:, :, top : bottom + 1 : conv.stride[0], left : right + 1 : conv.stride[1]]
        window += conv.weight[:, :, y, x, None, None] * _share(pool)
    summed = math.prod(pool.kernel) * _share(pool)
    return replace(
        conv,
        weight=weight,
        bias=conv.bias * summed if conv.bias.ndim == 1 else _pool(pool, conv.bias[None])[0],
        stride=(conv.stride[0] * pool.stride[0], conv.stride[1] * pool.stride[1]),
        dilation=(1, 1),
    )


def _pool(pool: Pool2d, values: FloatArray) -> FloatArray:
    channels = values.shape[1]
    window = np.full((channels, 1, *pool.kernel), _share(pool))
    return correlate(values, window, pool.stride, pool.padding, groups=channels)


def _spread(pool: Pool2d, weight: FloatArray, entering: tuple[int, ...]) -> FloatArray:
    """Return weights (out, C, H', W') of what a pool makes as weights (out, C, H, W) of what enters it."""
    spread = np.zeros((len(weight), *entering))
    share = _share(pool)
    for y, x in np.ndindex(pool.kernel):
        at, to = _met(weight.shape[2], entering[1], pool.stride[0], y - pool.padding[0])
        at_x, to_x = _met(weight.shape[3], entering[2], pool.stride[1], x - pool.padding[1])
        spread[:, :, to[:, None], to_x] += weight[:, :, at[:, None], at_x] * share
    return spread


def _met(outputs: int, inputs: int, stride: int, start: int) -> tuple[IndexArray, IndexArray]:
    """Return outputs and the inputs that they meet at one place of a kernel, along one axis, without padding."""
    at = np.arange(outputs)
    met = at * stride + start
    inside = (met >= 0) & (met < inputs)
    return at[inside], met[inside]


def _check_size(name: str, size: int, most: int, reason: str) -> None:
    if size > most:
        raise GraphError(name, f"would need {size} weights: {reason}", f"at most {most}")
