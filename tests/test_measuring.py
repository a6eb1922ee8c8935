import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from stars_deploy.baseline.estimate import TEACHER
from stars_deploy.cpu_measurement import measure_cpu
from stars_deploy.errors import FormatError, TargetError
from stars_deploy.macs import count_macs, describe_teacher
from stars_deploy.pipeline import measuring
from stars_deploy.pipeline.measuring import (
    FEWEST_IMAGES,
    MOST_IMAGES,
    NOT_ASKED,
    measure_teacher,
    open_teacher,
    read_measurement,
)
from stars_deploy.teacher import InputFormat, Teacher, load_teacher


@pytest.fixture(scope="module")
def digits():
    return load_teacher("digits")


@pytest.fixture(scope="module")
def images(digits):
    pixels = np.random.default_rng(0).random((MOST_IMAGES + 10, *digits.input.shape))
    return np.where(pixels < 0.5, 0, pixels)


class Moody(nn.Module):
    """Answers by a branch that depends on values; a trace keeps the one that it saw, that of zeros."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.read = nn.Linear(16, 3)

    def forward(self, x):
        logits = self.read(self.norm(x).flatten(1))
        return logits if bool(x.sum() == 0) else -logits


@pytest.fixture
def moody():
    form = InputFormat(shape=(1, 4, 4), mean=(0.0,), std=(1.0,))
    torch.manual_seed(0)
    module = Moody().eval().requires_grad_(False)
    return Teacher(spec="moody", module=module, input=form, labels=("a", "b", "c"), weights={}, norms=("norm",))


def test_layers_are_measured_on_the_first_images(digits, images):
    got = measure_teacher(digits, images, on_cpu=False)
    assert got.layers == describe_teacher(digits, torch.from_numpy(images[:MOST_IMAGES].astype(np.float32)))
    assert got.layers != describe_teacher(digits, torch.from_numpy(images.astype(np.float32)))
    assert got.cpu.reason == NOT_ASKED and got.cpu.batch1 is None


def test_a_large_teacher_is_shown_fewer_images(digits, images, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_MACS", 20 * count_macs(digits))
    pixels = torch.from_numpy(images.astype(np.float32))
    assert measure_teacher(digits, images, on_cpu=False).layers == describe_teacher(digits, pixels[:20])
    monkeypatch.setattr(measuring, "MOST_MACS", 1)
    assert measure_teacher(digits, images, on_cpu=False).layers == describe_teacher(digits, pixels[:FEWEST_IMAGES])


def test_the_teacher_is_measured_in_onnx_runtime(digits, images, monkeypatch):
    monkeypatch.setattr(measuring, "measure_cpu", partial(measure_cpu, batches=(1, 4), seconds=0.1))
    got = measure_teacher(digits, images).cpu
    assert got.reason is None and got.runtime.startswith("ONNX Runtime") and got.threads == 1
    assert got.batch1.batch == 1 and got.batch1.seconds_per_inference.least > 0
    assert got.best.seconds_per_inference.median <= got.batch1.seconds_per_inference.median


def test_a_teacher_that_a_trace_does_not_hold_is_not_measured(moody):
    images = np.random.default_rng(0).random((6, 1, 4, 4), dtype=np.float32)
    with pytest.raises(TargetError, match="something else in ONNX Runtime"):
        open_teacher(moody, images)
    got = measure_teacher(moody, images)
    assert got.cpu.batch1 is None and "something else in ONNX Runtime" in got.cpu.reason
    assert [layer.name for layer in got.layers] == ["read"]


def test_a_stored_measurement_is_read_and_not_made_again(digits, images, monkeypatch):
    made = measure_teacher(digits, images, on_cpu=False)
    ann = {"macs_of": TEACHER, "layers": [asdict(layer) for layer in made.layers], "measured": asdict(made.cpu)}
    stored = json.loads(json.dumps({"ann": ann}))
    monkeypatch.setattr(measuring, "measure_cpu", None)
    assert read_measurement(stored) == made
    for known in ({}, {"ann": {"macs": 5}}, {"ann": {**ann, "macs_of": "x"}}, {"ann": {**ann, "measured": None}}):
        assert read_measurement(known) is None
    del stored["ann"]["measured"]["cpu"]
    with pytest.raises(FormatError, match=r"here/report\.json: ann\.measured.*cpu"):
        read_measurement(stored, "here/report.json")


def test_one_image_is_enough(digits, images):
    network = open_teacher(digits, images[:1].astype(np.float32))
    assert network.run(images[:3].astype(np.float32)).shape == (3, 10)
