import pytest
import torch
from torch import nn

from stars_deploy.architectures import ConvStage, build_ann, feature_count, parse_stages
from stars_deploy.errors import ConfigError


def test_stages_say_channels_and_strides():
    assert parse_stages("vgg:16-32x2-64", "x") == (
        ConvStage(channels=16, stride=1),
        ConvStage(channels=32, stride=2),
        ConvStage(channels=32, stride=1),
        ConvStage(channels=64, stride=2),
    )
    # The first convolution sees the image at full resolution, repeated or not.
    assert [stage.stride for stage in parse_stages("vgg:8x2-8", "x")] == [1, 1, 2]


@pytest.mark.parametrize(
    "spec", ["vgg:", "vgg:16-", "vgg:0-8", "vgg:8x0", "resnet18", "vgg:16,32", "vgg:16 ", "VGG:16"]
)
def test_other_texts_are_refused_with_the_option(spec):
    with pytest.raises(ConfigError, match=r"--student.*vgg:16-32-64"):
        parse_stages(spec, "--student")


@pytest.mark.parametrize(("spec", "shape"), [("vgg:4-6-8", (3, 9, 7)), ("vgg:4x2-6", (1, 8, 8)), ("vgg:4", (2, 3, 5))])
def test_features_are_those_that_reach_the_linear_layer(spec, shape):
    network = build_ann(spec, shape, 5).eval()
    assert isinstance(network[-1], nn.Linear)
    assert network[-1].in_features == feature_count(parse_stages(spec, "x"), shape)
    assert network(torch.rand(3, *shape)).shape == (3, 5)
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in network)
