"""The float graph of a norse student does what the student does, spike for spike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stars_deploy.errors import GraphError
from stars_deploy.export.execution import run_float
from stars_deploy.export.trace import trace_student
from stars_deploy.graph import LIF, BatchNorm
from stars_deploy.lowering.passes import lower
from stars_deploy.student import NeuronModel, SpikingLayer, Student, build_student
from stars_deploy.teacher import InputFormat, Teacher

FORM = InputFormat(shape=(3, 10, 7), mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
LABELS = ("cat", "dog", "cow", "owl")


def randomize_norms(module, seed):
    """Statistics and affine parameters as after training: nothing at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.uniform_(-0.5, 0.5, generator=generator)
            layer.running_var.uniform_(0.01, 0.1, generator=generator)
            if layer.affine:
                with torch.no_grad():
                    layer.weight.uniform_(0.6, 1.4, generator=generator)
                    layer.bias.uniform_(-0.2, 0.6, generator=generator)


def teacher():
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 2)), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 5 * 10, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, len(LABELS)),
    ).eval()
    randomize_norms(module, 1)
    return Teacher(spec="test", module=module, input=FORM, labels=LABELS, weights={}, norms=())


def student_of(spec, timesteps=5, decay=0.8):
    torch.manual_seed(4)
    student, _ = build_student(teacher(), spec, timesteps, NeuronModel(decay=decay))
    if spec != "inherit":
        randomize_norms(student, 2)
    return student.eval()


def images(samples=4):
    """Distinct in contrast as well, so that every layer answers them differently."""
    noise = torch.rand(samples, *FORM.shape, generator=torch.Generator().manual_seed(5))
    return noise * torch.linspace(0.1, 1, samples).view(-1, 1, 1, 1)


@pytest.mark.parametrize("spec", ["inherit", "vgg:5-8"])
@pytest.mark.parametrize("decay", [0.8, 0.0])
def test_graph_fires_as_the_student_does(spec, decay):
    student = student_of(spec, decay=decay)
    with torch.no_grad():
        output = student(images())
    graph = trace_student(student, LABELS)
    assert graph.labels == LABELS
    assert graph.timesteps == 5
    for form in (graph, lower(graph)):
        record = run_float(form, images().double().numpy())
        populations = [node.name for node in form.ordered() if isinstance(node, LIF)]
        assert len(populations) == len(output.spikes) > 1
        for name, spikes in zip(populations, output.spikes, strict=True):
            assert 0.02 < spikes.mean() < 0.98
            np.testing.assert_array_equal(record.values[name], spikes.numpy())
        assert len(np.unique(record.logits, axis=0)) == len(images())
        scale = np.abs(record.logits).max()
        np.testing.assert_allclose(record.logits, output.mean_logits().numpy(), atol=1e-5 * scale)


def test_lowered_graph_has_no_normalization_left_and_other_weights():
    graph = trace_student(student_of("inherit"))
    lowered = lower(graph)
    assert any(isinstance(node, BatchNorm) for node in graph.nodes)
    assert [type(node).__name__ for node in lowered.ordered()] == [
        "Input", "Conv2d", "LIF", "Conv2d", "LIF", "Linear", "LIF", "Linear", "Integrator",
    ]  # fmt: skip
    assert [node.name for node in lowered.ordered()][1:3] == ["conv1", "lif1"]


def test_batch_norm_without_affine_parameters_is_traced():
    layers = [nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, affine=False), SpikingLayer(NeuronModel()), nn.Flatten(),
              nn.Linear(2 * 8 * 5, 2)]  # fmt: skip
    randomize_norms(nn.ModuleList(layers), 6)
    student = Student(layers, FORM, 2).eval()
    with torch.no_grad():
        expected = student(images())
    record = run_float(trace_student(student), images().double().numpy())
    assert 0.02 < expected.spikes[0].mean() < 0.98
    np.testing.assert_array_equal(record.values["lif1"], expected.spikes[0].numpy())
    np.testing.assert_allclose(record.logits, expected.mean_logits().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "where"),
    [
        (nn.ReLU(), "student.layers.1: ReLU"),
        (nn.Conv2d(4, 4, 3, padding="same"), "padding 'same'"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "circular"),
        (nn.BatchNorm2d(4, track_running_stats=False), "without running statistics"),
    ],
)
def test_layers_without_a_word_are_refused_by_name(layer, where):
    student = Student([nn.Conv2d(3, 4, 3), layer, SpikingLayer(NeuronModel()), nn.Flatten(), nn.Linear(4, 2)], FORM, 2)
    with pytest.raises(GraphError, match=where):
        trace_student(student)
