"""Which layer to change first, so that a network fits, or takes fewer cores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stars_deploy.hardware.mapping import LayerMapping, Mapping, Problem


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The layer to change first, why, and what would help."""

    layer: str
    reason: str
    remedy: str


_REMEDIES = {
    "neurons": "a stride of 2 in this layer, or fewer channels: its cores follow from its neurons",
    "synaptic_words": "fewer --bits, or fewer inputs to this layer (a stride or fewer channels before it)",
    "axons_in": "fewer inputs to this layer (a stride or fewer channels before it)",
    "axons_out": "fewer cores in the layers after it",
    "tile_width": "a width that is a power of two: the compiler cuts feature maps into such strips",
    "none": "nothing needs to change: every layer has room on its core",
}


def advise(mapping: Mapping) -> Advice:
    """Return the layer to change first.

    Of what does not fit, the layer that overruns its limit the most; of a network that fits, the one that takes the
    most cores.
    """
    if mapping.problems:
        worst = max(mapping.problems, key=_overrun)
        return Advice(
            layer=worst.layer,
            reason=f"{worst}: {_overrun(worst):.1f} times what there is",
            remedy=worst.remedy,
        )
    largest = mapping.largest
    share = largest.cores / len(mapping.cores)
    return Advice(
        layer=largest.name,
        reason=f"{largest.cores} of {len(mapping.cores)} cores ({100 * share:.0f} %), {_bound(largest)}",
        remedy=_saving(mapping, largest),
    )


def _overrun(problem: Problem) -> float:
    return problem.got / problem.allowed


def _bound(layer: LayerMapping) -> str:
    if layer.binding == "none":
        return "the least that a layer can take"
    if layer.binding == "tile_width":
        return "cut because its width is not a power of two"
    return f"bound by {layer.binding.replace('_', ' ')}"


def _saving(mapping: Mapping, layer: LayerMapping) -> str:
    remedy = _REMEDIES[layer.binding]
    per_chip = mapping.profile.limits.cores_per_chip.nominal
    over = len(mapping.cores) - (mapping.chips - 1) * per_chip
    if mapping.chips > 1:
        return f"{remedy}; {math.ceil(over)} cores fewer would save a chip"
    return remedy
