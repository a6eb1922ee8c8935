"""How many 64-bit words of synaptic memory the neurons of one core take.

The equations are fitted to what Lava's compiler printed for PilotNet on Loihi 2 (lava-nc/lava-dl,
tutorials/lava/lib/dl/netx/pilotnet_snn/benchmark.ipynb): its words of all five convolutions, and of five splits of its
dense layers, are met exactly; docs/cost-model.md has the table.
"""

from __future__ import annotations

import math

import numpy as np

from stars_deploy.hardware.profile import ChipProfile
from stars_deploy.projections import ConvProjection, DenseProjection, Projection

WORD = 64


def weight_bits(projection: Projection) -> int:
    """Return the bits that a stored weight takes: its sign, and a magnitude scaled as far up as 8 bits allow.

    ``min(precision, ceil(log2(max |w|)) + 2)``; fitted, see above.
    """
    largest = int(np.abs(projection.weight).max())
    return min(projection.precision.bits, math.ceil(math.log2(largest)) + 2 if largest else 1)


def words_of(projection: Projection, channels: int, profile: ChipProfile) -> int:
    """Return the words that `projection` takes on a core that holds `channels` of its target's channels or neurons.

    A convolution keeps one kernel, whatever number of positions the core holds:
    ``inputs x kh x kw x ceil(channels x bits / 64)``, with the inputs of the groups that the channels belong to. A
    dense projection keeps a list for each source neuron: ``inputs x ceil((neurons x (bits + index) + header) / 64)``.
    """
    bits = weight_bits(projection)
    if isinstance(projection, DenseProjection):
        index, header = profile.storage.index.nominal, profile.storage.header.nominal
        inputs: int = projection.weight.shape[1]
        return inputs * math.ceil((channels * (bits + index) + header) / WORD)
    per_group: int = projection.weight.shape[0] // projection.groups
    row = math.ceil(min(channels, per_group) * bits / WORD)
    return _touched_groups(projection, channels) * int(np.prod(projection.weight.shape[1:])) * row


def _touched_groups(projection: ConvProjection, channels: int) -> int:
    """Return how many groups a run of `channels` output channels that starts at a multiple of them can touch."""
    per_group: int = projection.weight.shape[0] // projection.groups
    crossing = 1 if channels % per_group and per_group % channels else 0
    touched: int = min(projection.groups, math.ceil(channels / per_group) + crossing)
    return touched
