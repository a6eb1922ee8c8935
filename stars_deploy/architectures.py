"""Built-in plain convolutional topologies, described by a short text such as ``vgg:16-32-64``.

The same text describes an ANN teacher and a spiking student: 3x3 convolutions with batch normalisation, the first
at full resolution, each later one with stride 2 (never max-pooling, which no neuromorphic core computes), then one
linear layer. ``32x2`` means two convolutions of 32 channels, the second at stride 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from stars_deploy.errors import ConfigError

_SPEC = re.compile(r"vgg:(\d{1,4}(x\d)?)(-\d{1,4}(x\d)?)*")
ALLOWED = "vgg:C1-C2-..., for example vgg:16-32-64 or vgg:32-64x2-128"


@dataclass(frozen=True, kw_only=True)
class ConvStage:
    """One 3x3 convolution of a plain topology."""

    channels: int
    stride: int


def parse_stages(spec: str, where: str) -> tuple[ConvStage, ...]:
    """Return the convolutions that a text such as ``vgg:16-32x2`` describes.

    Raises
    ------
    ConfigError
        If the text is not of that form.
    """
    if not _SPEC.fullmatch(spec):
        raise ConfigError(where, spec, ALLOWED)
    stages: list[ConvStage] = []
    for item in spec.removeprefix("vgg:").split("-"):
        channels, _, repeat = item.partition("x")
        if int(channels) < 1 or repeat == "0":
            raise ConfigError(where, spec, ALLOWED)
        for index in range(int(repeat or 1)):
            stages.append(ConvStage(channels=int(channels), stride=2 if stages and index == 0 else 1))
    return tuple(stages)


def conv_norm_layers(stages: tuple[ConvStage, ...], input_channels: int) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Make the convolution and batch normalisation of each stage."""
    channels = input_channels
    for stage in stages:
        conv = nn.Conv2d(channels, stage.channels, 3, stride=stage.stride, padding=1, bias=False)
        yield conv, nn.BatchNorm2d(stage.channels)
        channels = stage.channels


def feature_count(stages: tuple[ConvStage, ...], input_shape: tuple[int, ...]) -> int:
    """Return the number of features that reach the linear layer."""
    _, height, width = input_shape
    for stage in stages:
        height, width = -(-height // stage.stride), -(-width // stage.stride)
    return stages[-1].channels * height * width


def build_ann(spec: str, input_shape: tuple[int, ...], classes: int, where: str = "--arch") -> nn.Sequential:
    """Build the ANN that `spec` describes, freshly initialised.

    Parameters
    ----------
    spec : str
        Such as ``vgg:16-32-64``.
    input_shape : tuple of int
        (C, H, W).
    classes : int
    where : str
        The option to name in an error.
    """
    stages = parse_stages(spec, where)
    layers: list[nn.Module] = []
    for conv, norm in conv_norm_layers(stages, input_shape[0]):
        layers += [conv, norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(feature_count(stages, input_shape), classes))
