import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stars_deploy.architectures import build_ann
from stars_deploy.artifacts import sha256
from stars_deploy.errors import TeacherError
from stars_deploy.norms import norm_layers, norm_statistics, watched_norms
from stars_deploy.teacher import InputFormat, load_teacher, save_teacher

DESCRIPTION = {"spec": "vgg:4-6", "input_shape": [1, 8, 8], "mean": [0.3], "std": [0.4], "labels": ["a", "b", "c"]}

OWN = """
import torch
from torch import nn
from neighbour import WIDTH

class Net(nn.Module):
    input_shape, mean, std, labels = (2, 6, 6), (0.1, 0.2), (0.5, 0.6), ("x", "y", "z")

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)
        self.second = nn.BatchNorm2d(WIDTH)   # defined before, runs after
        self.first = nn.BatchNorm2d(2)
        self.unused = nn.BatchNorm2d(7)
        self.conv = nn.Conv2d(2, WIDTH, 3)

    def forward(self, x):
        x = torch.relu(self.second(self.conv(self.first(x))))
        return self.head(x.mean((2, 3)))

def make():
    return Net()
"""


def network(seed=0):
    """A vgg:4-6 with statistics that differ from channel to channel."""
    torch.manual_seed(seed)
    module = build_ann("vgg:4-6", (1, 8, 8), 3)
    for _, layer in norm_layers(module):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return module


def written(tmp_path, change=None, **description):
    module = network()
    if change is not None:
        change(module)
    save_teacher(module, tmp_path / "t.safetensors", {**DESCRIPTION, **description})
    return str(tmp_path / "t.safetensors")


def own_factory(tmp_path, body=OWN):
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "own.py").write_text(body)
    return f"{tmp_path / 'own.py'}:make"


def state_of_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace = {}
    exec((tmp_path / "own.py").read_text(), namespace)
    return namespace["make"]().state_dict()


def test_written_teacher_is_the_same_function(tmp_path):
    module = network().eval()
    teacher = load_teacher(written(tmp_path))
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(teacher.logits(images), module((images - 0.3) / torch.tensor(0.4)))
    assert torch.equal(teacher.predict(images, batch=2), teacher.logits(images).argmax(1))
    assert teacher.spec == "vgg:4-6"
    assert teacher.labels == ("a", "b", "c")
    assert teacher.classes == 3
    assert teacher.weights == {"file": "t.safetensors", "sha256": sha256(tmp_path / "t.safetensors")}
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert not teacher.module.training


def test_gradients_reach_images_and_no_weights(tmp_path):
    teacher = load_teacher(written(tmp_path))
    images = torch.rand(3, 1, 8, 8, requires_grad=True)
    teacher.logits(images).square().sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


def test_embedded_teacher_loads():
    teacher = load_teacher()
    assert teacher.input.shape == (1, 8, 8)
    assert teacher.classes == 10


def test_own_file_imports_its_neighbour_and_states_its_format(tmp_path, monkeypatch):
    spec = own_factory(tmp_path)
    save_file(state_of_own(tmp_path, monkeypatch), str(tmp_path / "w.safetensors"))
    monkeypatch.undo()
    teacher = load_teacher(spec, tmp_path / "w.safetensors")
    assert teacher.input == InputFormat(shape=(2, 6, 6), mean=(0.1, 0.2), std=(0.5, 0.6))
    assert teacher.labels == ("x", "y", "z")
    stated = load_teacher(spec, tmp_path / "w.safetensors", mean=(0, 0), std=(1, 1), input_shape=[2, 9, 9], classes=3)
    assert stated.input == InputFormat(shape=(2, 9, 9), mean=(0, 0), std=(1, 1))
    with pytest.raises(TeacherError, match=r"--classes: 4"):
        load_teacher(spec, tmp_path / "w.safetensors", classes=4)


def test_statistics_and_inputs_correspond_in_order_of_execution(tmp_path, monkeypatch):
    spec = own_factory(tmp_path)
    state = state_of_own(tmp_path, monkeypatch)
    state["first.running_mean"] = torch.tensor([1.0, 2.0])
    save_file(state, str(tmp_path / "w.safetensors"))
    teacher = load_teacher(spec, tmp_path / "w.safetensors")
    assert [name for name, _ in norm_layers(teacher.module)] == ["second", "first", "unused"]
    assert teacher.norms == ("first", "second")
    statistics = norm_statistics(teacher.module, teacher.norms)
    assert [known.name for known in statistics] == ["first", "second"]
    assert statistics[0].mean.tolist() == [1, 2]
    images = torch.rand(4, 2, 6, 6)
    with watched_norms(teacher.module, activations=True) as seen:
        teacher.logits(images)
    assert list(seen.inputs) == ["first", "second"]
    assert torch.equal(seen.inputs["first"], teacher.normalized(images))
    assert seen.inputs["second"].shape == (4, 5, 4, 4)
    assert torch.equal(seen.activations["second"], torch.relu(teacher.module.second(seen.inputs["second"])))
    teacher.logits(images)  # hooks are gone: running again does not complain


def test_inplace_relu_does_not_reach_what_was_watched(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2))
    images = torch.randn(3, 1, 4, 4)
    with torch.no_grad(), watched_norms(module.eval(), activations=True) as seen:
        module(images)
    before = module[0](images)
    assert torch.allclose(seen.inputs["1"], before)
    assert torch.allclose(seen.activations["1"], torch.relu(module[1](before)))


@pytest.mark.parametrize("shape", ["prefix", "nested"])
def test_data_parallel_checkpoints_load(tmp_path, shape):
    module = network()
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"state_dict": state} if shape == "nested" else state, tmp_path / "w.pt")
    teacher = load_teacher("vgg:4-6", tmp_path / "w.pt", input_shape=(1, 8, 8), mean=(0,), std=(1,), trust_weights=True)
    assert torch.equal(teacher.module[0].weight, module[0].weight)
    assert teacher.labels == ("0", "1", "2")


def set_value(name, value):
    def change(module):
        module.state_dict()[name].view(-1)[0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("0.weight", float("nan")), "0.weight: 1 of 36 values are NaN"),
        (set_value("7.bias", float("inf")), "7.bias"),
        (set_value("1.running_var", -1.0), "negative or not finite"),
        (lambda module: module[1].running_var.zero_(), "zero running variance in every channel"),
    ],
)
def test_broken_weights_are_refused(tmp_path, change, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(written(tmp_path, change))


def test_weights_that_overflow_the_networks_precision_are_refused(tmp_path):
    state = {
        name: value.double() if value.is_floating_point() else value for name, value in network().state_dict().items()
    }
    state["0.weight"][0] = 1e300
    save_file(state, str(tmp_path / "w.safetensors"))
    with pytest.raises(TeacherError, match=r"0.weight"):
        load_teacher("vgg:4-6", tmp_path / "w.safetensors", input_shape=(1, 8, 8), mean=(0,), std=(1,))


def test_a_dead_channel_is_no_reason_to_refuse(tmp_path):
    teacher = load_teacher(written(tmp_path, set_value("1.running_var", 0.0)))
    known = norm_statistics(teacher.module, teacher.norms)[0]
    assert known.var[0] == 0
    assert (known.deviation() > 0).all()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"spec": ""}, "holds no description"),
        ({"spec": "os:abort"}, "describes its network as 'os:abort'"),
        ({"spec": 3}, "describes its network as 3"),
        ({"spec": "vgg:9999x9-9999x9"}, "missing"),
        ({"spec": "vgg:400-6"}, "shape"),
        ({"spec": "vgg:x"}, "--teacher"),
        ({"input_shape": [1, 10**6, 10**6]}, "check the class count and the input shape"),
        ({"input_shape": [1, 8]}, "--input-shape"),
        ({"input_shape": [1.0, 8, 8]}, "--input-shape"),
        ({"input_shape": "188"}, "--input-shape"),
        ({"input_shape": None}, "--input-shape: not given"),
        ({"mean": None}, "--mean: not known"),
        ({"mean": [0.1, 0.2]}, "--mean/--std"),
        ({"std": [0]}, "--mean/--std"),
        ({"std": [float("1e999")]}, "--mean/--std"),
        ({"labels": ["a", "b"]}, "2 labels"),
        ({"labels": "abc"}, "str"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, description, message):
    state = {name: value.clone() for name, value in network().state_dict().items()}
    text = json.dumps({**DESCRIPTION, **description})
    save_file(state, str(tmp_path / "t.safetensors"), metadata={"stars_deploy": text})
    with pytest.raises(TeacherError, match=message):
        load_teacher(str(tmp_path / "t.safetensors"))


def test_weights_of_another_network_are_refused(tmp_path):
    written(tmp_path)
    options = {"input_shape": (1, 8, 8), "mean": (0,), "std": (1,)}
    with pytest.raises(TeacherError, match=r"missing \[\], unknown \['3.weight'"):
        load_teacher("vgg:4", tmp_path / "t.safetensors", **options)
    with pytest.raises(TeacherError, match=r"shape"):
        load_teacher("vgg:4-8", tmp_path / "t.safetensors", **options)
    with pytest.raises(TeacherError, match=r"--weights: not given"):
        load_teacher("vgg:4-6", **options)
    save_file({"7.weight": torch.zeros(3, 24, dtype=torch.int32)}, str(tmp_path / "i.safetensors"))
    with pytest.raises(TeacherError, match=r"missing"):
        load_teacher("vgg:4-6", tmp_path / "i.safetensors", **options)
    state = network().state_dict()
    state["0.weight"] = state["0.weight"].to(torch.int8)
    save_file(state, str(tmp_path / "i.safetensors"))
    with pytest.raises(TeacherError, match=r"torch.int8"):
        load_teacher("vgg:4-6", tmp_path / "i.safetensors", **options)
    save_file({"a": torch.zeros(3)}, str(tmp_path / "i.safetensors"))
    with pytest.raises(TeacherError, match=r"0 matrices"):
        load_teacher("vgg:4-6", tmp_path / "i.safetensors", **options)


def module_text(body, forward="return self.layers(x)"):
    return (
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    input_shape, mean, std = (1, 4, 4), (0.0,), (1.0,)\n"
        f"    def __init__(self):\n        super().__init__()\n        self.layers = nn.Sequential({body})\n"
        f"    def forward(self, x):\n        {forward}\n"
        "def make():\n    return Net()\n"
    )


NORMED = "nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (module_text("nn.Flatten(), nn.Linear(16, 3)"), "has no batch normalisation.*take or train such a network"),
        (module_text(NORMED.replace("BatchNorm2d(2)", "SyncBatchNorm(2)")), "but SyncBatchNorm.*in their place"),
        (module_text(NORMED.replace("Norm2d(2)", "Norm2d(2, track_running_stats=False)")), "without running stat"),
        (module_text(NORMED, "return self.layers[4](torch.relu(self.layers[0](x)).flatten(1))"), "runs none of its"),
        (module_text("nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)",
                     "return self.layers(self.layers[1](x))"), "runs more than once"),
        (module_text(NORMED, "return self.layers[:3](x)"), r"returns \(2, 2, 2, 2\)"),
        (module_text(NORMED, "return {'logits': self.layers(x)}"), "returns dict"),
        (module_text(NORMED.replace("8, 3", "9, 3")), "does not run on images"),
        (module_text(NORMED.replace("8, 3", "8, 1")), "at least 2 classes"),
        (module_text(NORMED, "return self.layers(x) / 0"), "NaN or infinite logits"),
        (module_text(NORMED).replace("(1, 4, 4), (0.0,)", "(1, 4, 4), torch.zeros(1)"), "--mean: tensor.*state it"),
        (module_text(NORMED).replace("(1, 4, 4), (0.0,)", "None, (0.0,)"), "--input-shape: not known"),
        ("raise ValueError('at import')", "importing .* raised ValueError: at import"),
        ("import sys\nsys.exit(3)", "raised SystemExit"),
        ("def make():\n    raise KeyError('inside')", "raised KeyError: 'inside'"),
        ("def make():\n    return 3", "made a int"),
        ("make = 3", "has no callable make"),
        ("def make(width):\n    pass", "a factory without arguments"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_distilled_are_refused(tmp_path, text, message):
    spec = own_factory(tmp_path, text)
    weights = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, str(weights))
    if "class Net" in text:
        namespace = {}
        exec(text, namespace)
        save_file(namespace["make"]().state_dict(), str(weights))
    with pytest.raises(TeacherError, match=message):
        load_teacher(spec, weights)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "--teacher: nonsense"),
        ("missing.py:make", "missing.py does not exist"),
        ("no_such_package.module:make", "raised ModuleNotFoundError"),
        ("torchvision:resnet17", "no classifier resnet17.*resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier"),
        (":make", "--teacher: :make"),
    ],
)
def test_networks_that_are_not_there_are_refused(tmp_path, spec, message):
    save_file({"x": torch.zeros(1)}, str(tmp_path / "w.safetensors"))
    with pytest.raises(TeacherError, match=message):
        load_teacher(spec, tmp_path / "w.safetensors")


def test_module_in_the_working_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_for_this_test.py").write_text(module_text(NORMED))
    namespace = {}
    exec(module_text(NORMED), namespace)
    save_file(namespace["make"]().state_dict(), str(tmp_path / "w.safetensors"))
    assert load_teacher("nets_for_this_test:make", "w.safetensors").classes == 3


def test_torchvision_networks_know_their_input_and_take_a_class_count(tmp_path):
    from torchvision import models

    save_file(models.shufflenet_v2_x0_5(num_classes=4).state_dict(), str(tmp_path / "w.safetensors"))
    teacher = load_teacher(
        "torchvision:shufflenet_v2_x0_5", tmp_path / "w.safetensors", classes=4, input_shape=(3, 64, 64)
    )
    assert teacher.classes == 4
    assert teacher.input.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "wrong", [{"shape": (1, 8)}, {"shape": (0, 8, 8)}, {"mean": (float("nan"),)}, {"std": (-1.0,)}, {"std": (1.0, 1.0)}]
)
def test_impossible_formats_are_refused(wrong):
    with pytest.raises(TeacherError):
        InputFormat(**{"shape": (1, 8, 8), "mean": (0.0,), "std": (1.0,), **wrong})
