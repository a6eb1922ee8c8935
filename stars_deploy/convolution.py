"""Cross-correlation in NumPy, the one definition that the reference, the passes and the counters share."""

from __future__ import annotations

import numpy as np

from stars_deploy.graph import FloatArray, convolved_size


def correlate(
    values: FloatArray,
    weight: FloatArray,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> FloatArray:
    """Return the cross-correlation of a batch with a kernel, summed in float64.

    For integers it is exact while every partial sum stays below 2**53.

    Parameters
    ----------
    values : array, (B, C, H, W)
    weight : array, (out, C/groups, kh, kw)
    stride, padding, dilation : (y, x)
        Padding is with zeros.
    groups : int

    Returns
    -------
    array, (B, out, H', W')
    """
    out, per_group, rows, columns = weight.shape
    height = convolved_size(values.shape[2], rows, stride[0], padding[0], dilation[0])
    width = convolved_size(values.shape[3], columns, stride[1], padding[1], dilation[1])
    padded = np.pad(values, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    by_group = weight.reshape(groups, out // groups, per_group, rows, columns)
    result = np.zeros((groups, out // groups, len(values), height, width))
    for y in range(rows):
        for x in range(columns):
            # What this position of the kernel meets, for every output position at once.
            top, left = y * dilation[0], x * dilation[1]
            seen = padded[
                :,
                :,
                top : top + stride[0] * (height - 1) + 1 : stride[0],
                left : left + stride[1] * (width - 1) + 1 : stride[1],
            ]
            for group in range(groups):
                channels = seen[:, group * per_group : (group + 1) * per_group]
                result[group] += np.tensordot(by_group[group, :, :, y, x], channels, axes=(1, 1))
    correlated: FloatArray = result.reshape(out, len(values), height, width).swapaxes(0, 1)
    return correlated
