"""Verification notices any change of an artefact, and says where."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from stars_deploy.errors import ArtifactError, TargetError, VerificationError
from stars_deploy.targets import find_target
from stars_deploy.targets.base import Availability
from stars_deploy.targets.lava import LavaTarget
from stars_deploy.verification import Verification, check_verified, verify_target


@pytest.fixture(scope="module")
def written(small_chain, tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "model.net"
    find_target("netx").write(small_chain, path)
    return path


def test_unchanged_artefact_passes(small_chain, written, make_images):
    result = verify_target(small_chain, "netx", written, make_images(small_chain, 16))
    assert result.passed and result.ran and result.first is None
    assert (result.target, result.samples, result.mismatches) == ("netx", 16, 0)
    assert result.compared_spikes == 16 * 4 * sum(p.size for p in small_chain.populations)
    assert result.seconds > 0
    check_verified([result])


def one_weight(layer):
    def change(file):
        weight = file[f"layer/{layer}/weight"]
        values = weight[()]
        values.flat[5] += 9
        weight[...] = values

    return change


def shuffled_bias(file):
    """Per-neuron biases in the order (C, H, W) where (W, H, C) belongs."""
    bias = file["layer/1/bias"]
    values = bias[()]
    bias[...] = values.transpose().reshape(values.shape)


def rewritten(name, value):
    def change(file):
        file[name][...] = value

    return change


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        (one_weight(1), "conv0"),
        (one_weight(2), "conv1"),
        (one_weight(4), "readout"),
        (shuffled_bias, "conv0"),
        (rewritten("layer/1/neuron/vDecay", 1040), "conv0"),
        (rewritten("layer/2/neuron/iDecay", 3000), "conv1"),
        (rewritten("layer/2/neuron/vThMant", 41), "conv1"),
        (rewritten("layer/2/padding", [0, 1]), None),  # as it was
    ],
)
def test_changed_artefact_is_caught_in_its_layer(small_chain, written, make_images, tmp_path, change, layer):
    path = tmp_path / "model.net"
    shutil.copy(written, path)
    with h5py.File(path, "r+") as file:
        change(file)
    result = verify_target(small_chain, "netx", path, make_images(small_chain, 16))
    if layer is None:
        assert result.passed
        return
    assert not result.passed and result.mismatches > 0
    assert result.first.layer == layer
    with pytest.raises(VerificationError, match=rf"netx: {result.mismatches} of .*first: layer {layer}, ") as caught:
        check_verified([Verification(target="other", ran=True), result])
    assert caught.value.exit_code == 1


def test_message_names_the_neuron(small_chain, written, make_images, tmp_path):
    """The place and both values are those of the reference and of what ran."""
    path, images = tmp_path / "model.net", make_images(small_chain, 4)
    shutil.copy(written, path)
    with h5py.File(path, "r+") as file:
        file["layer/4/bias"][1] += 7
    first = verify_target(small_chain, "netx", path, images).first
    assert (first.layer, first.timestep, first.sample, first.neuron) == ("readout", 0, 0, (1,))
    assert first.got - first.expected == 4 * 7 * 64
    assert str(first) == (
        "layer readout, membrane potential after the last timestep, sample 0, neuron (1,): "
        f"expected {first.expected}, got {first.got}"
    )


def test_target_that_cannot_run_is_not_passed_over(small_chain, written, make_images, monkeypatch):
    monkeypatch.setattr(LavaTarget, "availability", lambda self: Availability(ok=False, reason="no Lava, because"))
    result = verify_target(small_chain, "lava", written, make_images(small_chain, 2))
    assert result == Verification(target="lava", ran=False, reason="no Lava, because")
    assert not result.passed
    check_verified([result])  # nothing differed; the report says that it did not run


def test_wrong_input(small_chain, written, make_images, tmp_path):
    images = make_images(small_chain, 2)
    with pytest.raises(TargetError, match="netx, lava"):
        verify_target(small_chain, "onyx", written, images)
    with pytest.raises(ArtifactError, match="does not exist"):
        verify_target(small_chain, "netx", tmp_path / "model.net", images)
    with pytest.raises(VerificationError, match="no samples"):
        verify_target(small_chain, "netx", written, np.zeros((0, *images.shape[1:]), int))
