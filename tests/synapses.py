"""Every synapse of a projection, found one at a time: what counts made in other ways are compared with."""

from __future__ import annotations

import itertools

import numpy as np

from stars_deploy.quantized import ConvProjection


def synapses_of(projection, shape):
    """Synapses between neurons that exist: (source, target, weight), neurons as indices with all their axes."""
    weight = projection.weight
    if not isinstance(projection, ConvProjection):
        sources = list(np.ndindex(*shape))
        return [(sources[j], (i,), int(weight[i, j])) for i in range(len(weight)) for j in range(len(sources))]
    found = []
    _, height, width = shape
    out, per_group, rows, columns = weight.shape
    for target in np.ndindex(*projection.output_shape(shape)):
        first = target[0] // (out // projection.groups) * per_group
        for c, ky, kx in itertools.product(range(per_group), range(rows), range(columns)):
            y = target[1] * projection.stride[0] - projection.padding[0] + ky * projection.dilation[0]
            x = target[2] * projection.stride[1] - projection.padding[1] + kx * projection.dilation[1]
            if 0 <= y < height and 0 <= x < width:
                found.append(((first + c, y, x), target, int(weight[target[0], c, ky, kx])))
    return found
