"""How synthetic images are made: one class a backbone, none of which knows which objectives it serves."""

from stars_deploy.synthesis.backbones.cmi import CmiBackbone
from stars_deploy.synthesis.backbones.deepinversion import DeepInversionBackbone
from stars_deploy.synthesis.backbones.dfq import DfqBackbone
from stars_deploy.synthesis.backbones.fast import FastBackbone
from stars_deploy.synthesis.backbones.noise import NoiseBackbone

#: The backbones that ship.
BACKBONES = (FastBackbone, DfqBackbone, CmiBackbone, DeepInversionBackbone, NoiseBackbone)

__all__ = [
    "BACKBONES",
    "CmiBackbone",
    "DeepInversionBackbone",
    "DfqBackbone",
    "FastBackbone",
    "NoiseBackbone",
]
