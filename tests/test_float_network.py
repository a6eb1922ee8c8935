import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional

from stars_deploy.errors import TargetError, TeacherError
from stars_deploy.export.teacher_trace import trace_teacher
from stars_deploy.norms import norm_layers
from stars_deploy.targets.base import Availability
from stars_deploy.targets.onnx_model import float_network
from stars_deploy.targets.onnx_model.float_network import FloatNetwork
from stars_deploy.teacher import InputFormat, Teacher, load_teacher

FORM = InputFormat(shape=(2, 9, 8), mean=(0.4, 0.5), std=(0.5, 0.25))


def as_teacher(module, form=FORM):
    torch.manual_seed(1)
    module(torch.randn(8, *form.shape))  # batch norms get statistics of their own
    for _, norm in norm_layers(module):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    module.eval().requires_grad_(False)
    norms = tuple(name for name, _ in norm_layers(module))
    return Teacher(spec="x", module=module, input=form, labels=("a", "b", "c"), weights={}, norms=norms)


class Branched(nn.Module):
    """What image classifiers are made of besides a chain: sums, joins, pools, groups, gates, functions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.BatchNorm2d(6), nn.SiLU())
        self.down = nn.Conv2d(12, 8, (3, 2), stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.hidden = nn.Linear(8, 7)
        self.norm1 = nn.BatchNorm1d(7)
        self.drop = nn.Dropout(0.5)
        self.read = nn.Linear(7, 3)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x + self.depth(x), functional.max_pool2d(x, 3, 1, 1)], dim=1)
        x = self.norm(self.down(functional.avg_pool2d(x, 2, padding=1))).relu()
        x = x * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(x, 1)))
        x = functional.relu(self.norm1(self.hidden(x.mean((2, 3)).view(x.size(0), -1))))
        return self.read(self.drop(x))


TEACHERS = {"branched": lambda: as_teacher(Branched()), "digits": load_teacher}


@pytest.fixture(scope="module", params=TEACHERS)
def teacher(request):
    return TEACHERS[request.param]()


@pytest.fixture(scope="module")
def network(teacher):
    return FloatNetwork(trace_teacher(teacher))


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_the_network_answers_as_torch_does(teacher, network, samples):
    images = torch.rand(samples, *teacher.input.shape, generator=torch.Generator().manual_seed(samples))
    with torch.no_grad():
        wanted = teacher.logits(images).numpy()
    got = network.run(images.numpy())
    assert got.dtype == np.float32 and got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert len(np.unique(got.round(4), axis=0)) == samples


def test_each_image_has_its_own_answer(teacher, network):
    images = np.random.default_rng(0).random((4, *teacher.input.shape), dtype=np.float32)
    together = network.run(images)
    alone = np.concatenate([network.run(images[[index]]) for index in (3, 0, 2, 1)])
    np.testing.assert_allclose(alone, together[[3, 0, 2, 1]], rtol=1e-4, atol=1e-5)


def test_tracing_leaves_the_teacher_as_it_was_and_stdout_alone(capfd):
    teacher = as_teacher(Branched())
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    trace_teacher(teacher)
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())
    assert not any(part.training for part in teacher.module.modules())
    assert capfd.readouterr().out == ""


def test_the_runtime_is_named(network):
    import onnxruntime

    assert onnxruntime.__version__ in network.runtime and network.runtime.startswith("ONNX Runtime")


def test_what_onnx_has_no_word_for_is_refused():
    class Exotic(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.read = nn.Linear(144, 3)

        def forward(self, x):
            return self.read(torch.special.bessel_j0(self.norm(x)).flatten(1))

    with pytest.raises(TeacherError, match=f"cannot be written as ONNX by torch {torch.__version__.split('+')[0]}"):
        trace_teacher(as_teacher(Exotic()))


def test_a_forward_that_fails_is_refused():
    teacher = as_teacher(Branched())
    teacher.module.read = nn.Linear(8, 3)
    with pytest.raises(TeacherError, match="RuntimeError"):
        trace_teacher(teacher)


def test_bytes_that_are_no_model_are_refused():
    for content in (b"", b"no model"):
        with pytest.raises(TargetError, match="refuses the float model"):
            FloatNetwork(content)


def test_a_model_of_two_outputs_is_refused():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xyz"]
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    graph = helper.make_graph(nodes, "two", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    with pytest.raises(TargetError, match="1 inputs and 2 outputs"):
        FloatNetwork(model.SerializeToString())


def test_images_of_another_shape_are_refused(network):
    with pytest.raises(TargetError, match="ONNX Runtime fails"):
        network.run(np.zeros((2, 5, 3, 3), np.float32))


def test_a_missing_runtime_is_said(monkeypatch):
    missing = Availability(ok=False, reason="install it")
    monkeypatch.setattr(float_network, "find_runtime", lambda: missing)
    with pytest.raises(TargetError, match="install it"):
        FloatNetwork(b"")
