import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from norse.torch import LIFBoxParameters
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, lif_box_feed_forward_step
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from stars_deploy.errors import ArtifactError, ConfigError, FormatError
from stars_deploy.student import (
    DT,
    NeuronModel,
    SpikingLayer,
    Student,
    build_student,
    describe_student,
    load_student,
    save_student,
)
from stars_deploy.teacher import load_teacher


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


def shaken(student, seed=0):
    """Statistics and affines that differ from channel to channel."""
    torch.manual_seed(seed)
    for norm in student.norms():
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias, std=0.3)
    return student


def vgg(teacher, spec="vgg:4-6", timesteps=3, seed=0):
    torch.manual_seed(seed)
    return shaken(build_student(teacher, spec, timesteps, NeuronModel(decay=0.5))[0], seed)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_neurons_follow_the_equation_and_norse(decay):
    currents = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(1)) + 0.3
    spikes = SpikingLayer(NeuronModel(decay=decay))(currents)
    parameters = LIFBoxParameters(
        tau_mem_inv=torch.tensor((1 - decay) / DT), method="triangle", alpha=torch.tensor(1.0)
    )
    state = LIFBoxFeedForwardState(v=torch.zeros(4, 5))
    for step in range(9):
        expected, state = lif_box_feed_forward_step(currents[step] / (1 - decay), state, parameters, DT)
        assert torch.equal(spikes[step], expected)
    fired = 0
    for row in range(4):
        for column in range(5):
            v = 0.0
            for step in range(9):
                v = decay * v + float(currents[step, row, column])
                spike = v > 1
                fired += spike
                assert bool(spikes[step, row, column]) == spike
                v = 0.0 if spike else v
    assert 20 < fired < 160


def test_threshold_is_strict():
    layer = SpikingLayer(NeuronModel(decay=0.5))
    currents = torch.tensor([[1.0, 1.0 + 1e-6, 0.75], [0.5, 0.0, 0.625]])
    # 1 does not fire; then 0.5 * 1 + 0.5 = 1 and 0.5 * 0.75 + 0.625 = 1 do not either.
    assert layer(currents).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_gradients_pass_the_neurons_in_a_triangle():
    current = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.5]], requires_grad=True)
    SpikingLayer(NeuronModel(decay=0.0))(current).sum().backward()
    assert current.grad.flatten().tolist() == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": -0.1}, {"decay": float("nan")}, {"surrogate_width": 0},
                                   {"surrogate_width": float("inf")}, {"surrogate_width": float("nan")}])  # fmt: skip
def test_impossible_neurons_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"student.{next(iter(wrong))}"):
        NeuronModel(**wrong)


@pytest.mark.parametrize("training", [False, True])
def test_folded_time_equals_a_network_stepped_through_time(teacher, training):
    student = vgg(teacher).train(training)
    for norm in student.norms():  # re-estimating over one copy or over T makes the same statistics
        norm.momentum = 0.0
    images = torch.rand(5, 1, 8, 8)
    folded = student(images, 4)
    values = [(images - student.mean) / student.std] * 4
    index = 0
    for layer in student.layers:
        if isinstance(layer, SpikingLayer):
            v, spikes = torch.zeros_like(values[0]), []
            for current in values:
                v = 0.5 * v + current
                spikes.append((v > 1).float())
                v = torch.where(v > 1, torch.zeros_like(v), v)
            assert torch.equal(folded.spikes[index], torch.stack(spikes))
            index, values = index + 1, spikes
        elif training and isinstance(layer, nn.BatchNorm2d):
            values = list(layer(torch.cat(values)).split(5))
        else:
            values = [layer(value) for value in values]
    assert index == 2
    assert 0 < folded.spikes[1].mean() < 1
    assert torch.allclose(folded.logits, torch.stack(values), atol=1e-5)
    assert torch.equal(folded.mean_logits(), folded.logits.mean(0))
    assert torch.equal(folded.rates()[1], folded.spikes[1].mean(0))
    assert not torch.equal(folded.logits[0], folded.logits[3])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_fused_path_has_the_values_and_gradients_of_the_plain_one(teacher, bias, affine):
    torch.manual_seed(2)
    conv = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=bias)
    norm = nn.BatchNorm2d(4, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    layers = [conv, norm.eval(), SpikingLayer(NeuronModel()), nn.Flatten(), nn.Linear(64, 10)]
    student = Student(layers, teacher.input, 2).double()
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    seen = []

    hook = student.layers[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    calls = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    student(images)
    assert not calls  # the fused path ran
    fused = seen[-1]
    plain = norm(conv((images - student.mean) / student.std)).expand_as(fused)
    assert torch.allclose(fused, plain, atol=1e-12)
    weights = torch.randn_like(fused)
    parameters = [*conv.parameters(), *norm.parameters()]
    for one, other in zip(
        torch.autograd.grad((fused * weights).sum(), parameters),
        torch.autograd.grad((plain * weights).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-9)
    hook.remove()


def test_flattening_maps_of_any_layout_has_the_values_and_gradients_of_the_plain_one(teacher):
    torch.manual_seed(2)
    linear = nn.Linear(3 * 4 * 4, 10)
    student = Student([nn.Conv2d(1, 3, 3, 2, 1), SpikingLayer(NeuronModel()), nn.Flatten(), linear], teacher.input, 2)
    student.double()
    called = []
    linear.register_forward_hook(lambda *_: called.append(1))
    output = student(torch.rand(5, 1, 8, 8, dtype=torch.float64))
    assert not called  # the path without a copy of the maps ran
    plain = linear(output.spikes[0].flatten(0, 1).contiguous().flatten(1)).unflatten(0, (2, 5))
    weights = torch.randn_like(plain)
    assert torch.allclose(output.logits, plain, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad((output.logits * weights).sum(), [*linear.parameters()], retain_graph=True),
        torch.autograd.grad((plain * weights).sum(), [*linear.parameters()]),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-12)


def test_students_of_a_spec_are_built_and_wrong_ones_refused(teacher):
    student, scales = build_student(teacher, "vgg:4-6x2", 4, NeuronModel())
    assert scales == []
    assert student(torch.rand(2, 1, 8, 8)).logits.shape == (4, 2, 10)
    inherited, scales = build_student(teacher, "inherit", 4, NeuronModel())
    assert len(scales) == 3
    assert inherited(torch.rand(2, 1, 8, 8), 6).logits.shape == (6, 2, 10)
    for spec, timesteps, message in (("resnet", 4, "inherit"), ("vgg:", 4, "vgg"), ("inherit", 0, "--timesteps: 0")):
        with pytest.raises(ConfigError, match=message):
            build_student(teacher, spec, timesteps, NeuronModel())
    with pytest.raises(ConfigError, match=r"--timesteps"):
        Student(list(student.layers), teacher.input, 0)
    with pytest.raises(ConfigError, match=r"no layer that spikes"):
        Student([nn.Flatten(), nn.Linear(64, 10)], teacher.input, 1)


def saved(student, path, neuron=None):
    neuron = neuron or NeuronModel(decay=0.5)
    save_student(student, describe_student(student, "vgg:4-6", tuple("abcdefghij"), neuron), path)
    return path


@pytest.mark.parametrize("spec", ["inherit", "vgg:4-6"])
def test_round_trip_has_equal_bits_and_outputs(teacher, tmp_path, spec):
    neuron = NeuronModel(decay=0.7, surrogate_width=1.5)
    student = shaken(build_student(teacher, spec, 5, neuron)[0]).eval()
    student.requires_grad_(False)
    read, plan = load_student(saved(student, tmp_path / "s.safetensors", neuron))
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in student.state_dict().items())
    images = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        ours, theirs = student(images), read(images)
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(one, other) for one, other in zip(ours.spikes, theirs.spikes, strict=True))
    assert plan.neuron == neuron
    assert plan.labels == tuple("abcdefghij")
    assert plan.input == teacher.input
    assert (read.timesteps, read.training) == (5, False)


def description_of(path):
    with safe_open(str(path), framework="pt") as archive:
        return json.loads(archive.metadata()["stars_deploy"])["student"]


def rewritten(path, change, weights=None):
    description = copy.deepcopy(description_of(path))
    change(description)
    tensors = load_file(str(path))
    if weights is not None:
        weights(tensors)
    save_file(tensors, str(path), metadata={"stars_deploy": json.dumps({"student": description})})


HOSTILE = {
    "no layers": lambda d: d.update(layers=[]),
    "layers of text": lambda d: d.update(layers=["conv"]),
    "unknown layer": lambda d: d["layers"][0].update(kind="lambda"),
    "huge layer": lambda d: d["layers"][0].update(out_channels=10**9),
    "negative": lambda d: d["layers"][0].update(in_channels=-1),
    "padding": lambda d: d["layers"][0].update(padding=[10**6, 10**6]),
    "huge map": lambda d: (d["layers"][0].update(padding=[5000] * 2), d["layers"][3].update(stride=[3335] * 2)),
    "device": lambda d: d["layers"][0].update(device="cuda"),
    "padding mode": lambda d: d["layers"][0].update(padding_mode="reflect"),
    "spiking layer": lambda d: d["layers"][2].update(width=3),
    "nothing spikes": lambda d: d.update(layers=[layer for layer in d["layers"] if layer["kind"] != "lif"]),
    "huge image": lambda d: d["input"].update(shape=[1, 10**7, 10**7]),
    "another image": lambda d: d["input"].update(shape=[1, 16, 16]),
    "mean": lambda d: d["input"].update(mean=["x"]),
    "std": lambda d: d["input"].update(std=[0.0]),
    "labels": lambda d: d.update(labels=["a"]),
    "timesteps": lambda d: d.update(timesteps=10**9),
    "no timesteps": lambda d: d.pop("timesteps"),
    "timesteps of text": lambda d: d.update(timesteps="4"),
    "decay": lambda d: d["neuron"].update(decay=2.0),
    "decay of text": lambda d: d["neuron"].update(decay="slow"),
    "neuron": lambda d: d["neuron"].update(reset="soft"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_descriptions_are_refused(teacher, tmp_path, case):
    path = saved(vgg(teacher), tmp_path / "s.safetensors")
    load_student(path)
    rewritten(path, HOSTILE[case])
    with pytest.raises(FormatError, match=r"impossible student|does not fit"):
        load_student(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("layers.1.running_mean"),
        lambda t: t.update(extra=torch.zeros(1)),
        lambda t: t.update({"layers.0.weight": t["layers.0.weight"][:2].clone()}),
        lambda t: t.update({"layers.0.weight": t["layers.0.weight"].double()}),
        lambda t: t["layers.0.weight"].view(-1)[0].fill_(float("nan")),
    ],
)
def test_students_with_other_weights_are_refused(teacher, tmp_path, change):
    path = saved(vgg(teacher), tmp_path / "s.safetensors")
    rewritten(path, lambda d: None, change)
    with pytest.raises(FormatError, match=r"impossible student"):
        load_student(path)


def test_files_that_are_no_student_are_refused(teacher, tmp_path):
    path = tmp_path / "s.safetensors"
    with pytest.raises(ArtifactError, match=r"does not exist"):
        load_student(path)
    saved(vgg(teacher), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(FormatError, match=r"cannot be read"):
        load_student(path)
    save_file({"a": torch.zeros(2)}, str(path))
    with pytest.raises(FormatError, match=r"holds no student"):
        load_student(path)


def test_the_neurons_are_imported_without_a_word():
    """What norse does at its import, newer versions of torch warn of: nothing that a user could do something about."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    command = [sys.executable, "-c", "import stars_deploy.spiking"]
    assert subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stderr == ""
