import pytest
import torch
from torch import nn
from torch.nn import functional

from stars_deploy.errors import TeacherError
from stars_deploy.inheritance import inherited_layers, trace_chain
from stars_deploy.norms import norm_layers
from stars_deploy.spiking import NeuronModel, SpikingLayer, Student
from stars_deploy.teacher import InputFormat, Teacher, load_teacher

FORM = InputFormat(shape=(2, 6, 6), mean=(0.4, 0.5), std=(0.5, 0.25))


def as_teacher(module, form=FORM):
    torch.manual_seed(1)
    for _, norm in norm_layers(module):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    module.eval().requires_grad_(False)
    norms = tuple(name for name, _ in norm_layers(module))
    return Teacher(spec="x", module=module, input=form, labels=("a", "b", "c"), weights={}, norms=norms)


class Written(nn.Module):
    """Two convolutions, a hidden linear layer and a readout, with as many ways to write them as there are."""

    def __init__(self, style):
        super().__init__()
        self.style = style
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.none = nn.Identity()
        self.flatten = nn.Flatten()
        self.out = nn.Linear(7, 3)
        self.conv1 = nn.Conv2d(2, 4, 3, padding="same")
        self.norm1 = nn.BatchNorm2d(4)
        self.block = nn.Sequential(
            nn.Conv2d(4, 5, 3, stride=2, bias=False), nn.Sequential(nn.BatchNorm2d(5, affine=False))
        )
        self.hidden = nn.Linear(20, 7)
        self.norm3 = nn.BatchNorm1d(7)

    def forward(self, x):
        first = self.norm1(self.conv1(x))
        if self.style == "modules":
            x = self.flatten(self.drop(self.relu(self.block(self.relu(self.none(first))))))
        elif self.style == "functions":
            x = functional.relu(self.block(torch.relu(first)), inplace=True)
            x = torch.flatten(functional.dropout(x, 0.5, self.training), 1)
        elif self.style == "methods":
            x = self.block(first.relu()).relu_()
            x = x.view(x.size(0), -1)
        elif self.style == "shape":
            x = self.block(first.relu()).relu()
            x = functional.dropout(x.reshape(x.shape[0], -1), training=self.training)
        else:
            x = self.block(first.relu()).relu().view(-1, 20).contiguous()
        return self.out(torch.relu(self.norm3(self.hidden(x))))


KINDS = [
    "Conv2d",
    "BatchNorm2d",
    "ReLU",
    "Conv2d",
    "BatchNorm2d",
    "ReLU",
    "Flatten",
    "Linear",
    "BatchNorm1d",
    "ReLU",
    "Linear",
]


@pytest.mark.parametrize("style", ["modules", "functions", "methods", "shape", "constant"])
def test_any_way_to_write_a_chain_is_understood(style):
    teacher = as_teacher(Written(style))
    chain = trace_chain(teacher)
    assert [type(item.layer).__name__ for item in chain] == KINDS
    assert chain[0].name == "teacher.conv1"
    assert chain[3].name == "teacher.block.0"
    images = torch.rand(5, 2, 6, 6)
    values = images
    for item in chain:
        values = item.layer(values)
    assert torch.allclose(values, teacher.module(images), atol=1e-6)


def test_scales_are_kept_exactly():
    """Run the inherited layers with ReLU for LIF: each activation is the teacher's over its scale, the logits equal."""
    teacher = as_teacher(Written("functions"))
    layers, scales = inherited_layers(teacher, NeuronModel(), 2.0)
    assert len(scales) == 3
    chain = trace_chain(teacher)
    norms = [item.layer for item in chain if item.name.endswith(("norm1", "norm3"))]
    for scale, norm in zip((scales[0], scales[2]), norms, strict=True):
        assert scale == pytest.approx(float((norm.bias + 2 * norm.weight.abs()).clamp_min(0).mean()))
    assert scales[1] == 2  # without affine: gamma 1, beta 0
    ours = theirs = torch.rand(5, 2, 6, 6)
    spiking = 0
    for layer, item in zip(layers, chain, strict=True):
        layer.eval()
        theirs = item.layer(theirs)
        if isinstance(layer, SpikingLayer):
            ours = torch.relu(ours)
            assert torch.allclose(ours * scales[spiking], theirs, atol=1e-5)
            spiking += 1
        else:
            ours = layer(ours)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_inheriting_leaves_the_teacher_alone():
    teacher = as_teacher(Written("modules"))
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    layers, _ = inherited_layers(teacher, NeuronModel(), 2.0)
    for layer in layers:
        for parameter in layer.parameters():
            assert parameter.requires_grad
            parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())


def test_student_follows_its_teacher_from_the_start():
    teacher = load_teacher()
    layers, _ = inherited_layers(teacher, NeuronModel(decay=0.99), 2.0)
    student = Student(layers, teacher.input, 100).eval()
    images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = student(images).mean_logits().argmax(1)
    assert (answers == teacher.predict(images)).float().mean() > 0.6  # chance is 0.1


class Pieces(nn.Module):
    """Conv, norm, ReLU, linear readout, with one thing wrong in `forward`."""

    def __init__(self, wrong, **extra):
        super().__init__()
        self.wrong = wrong
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.same = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(144, 3)
        for name, layer in extra.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.wrong(self, x)


def head(net, x):
    return net.out(x.flatten(1))


def start(net, x):
    return torch.relu(net.norm(net.conv(x)))


def residual(net, x):
    x = start(net, x)
    return head(net, x + net.same(x))


def controlled(net, x):
    x = start(net, x)
    return head(net, x if x.sum() > 0 else -x)


def ignored_inplace(net, x):
    x = net.norm(net.conv(x))
    x.relu_()
    return head(net, x)


def pooled(net, x):
    return head(net, net.pool(start(net, x)))


def activated(net, x):
    return head(net, net.relu(net.norm(net.conv(x))))


def plain(net, x):
    return head(net, start(net, x))


POOLED = {"out": nn.Linear(36, 3)}


@pytest.mark.parametrize(
    ("wrong", "extra", "message"),
    [
        (residual, {}, r"teacher:relu: feeds 2 operations \(.*add.*--student vgg"),
        (controlled, {}, "cannot be followed|feeds 2 operations"),
        (ignored_inplace, {}, "feeds 2 operations"),
        (pooled, {"pool": nn.MaxPool2d(2), **POOLED}, r"teacher.pool: MaxPool2d.*stride 2 for pooling"),
        (pooled, {"pool": nn.AvgPool2d(3, 1, 1)}, "teacher.pool: AvgPool2d"),
        (pooled, {"pool": nn.AvgPool2d(1, divisor_override=2)}, "AvgPool2d"),
        (pooled, {"pool": nn.AdaptiveAvgPool2d(3), **POOLED}, "AdaptiveAvgPool2d"),
        (lambda net, x: head(net, functional.max_pool2d(start(net, x), 2)), POOLED, "max_pool2d"),
        (lambda net, x: net.out(start(net, x).mean((2, 3))), {"out": nn.Linear(4, 3)}, "teacher:mean"),
        (lambda net, x: head(net, functional.gelu(net.norm(net.conv(x)))), {}, "gelu"),
        (activated, {"relu": nn.ReLU6()}, "teacher.relu: ReLU6"),
        (activated, {"relu": nn.Hardswish()}, "teacher.relu: Hardswish"),
        (lambda net, x: head(net, start(net, x)).log_softmax(1), {}, "log_softmax"),
        (lambda net, x: head(net, functional.dropout(start(net, x))), {}, "dropout"),
        (lambda net, x: head(net, torch.relu(net.conv(x))), {}, "a ReLU where BatchNorm is expected"),
        (lambda net, x: head(net, net.norm(torch.relu(net.conv(x)))), {}, "a ReLU where BatchNorm is expected"),
        (lambda net, x: head(net, net.same(start(net, x))), {}, "the last of 5 layers"),
        (lambda net, x: start(net, x).flatten(1), {}, "Flatten before the output"),
        (lambda net, x: net.out(torch.relu(net.norm(net.conv(x)).flatten(1))), {}, "Flatten before ReLU"),
        (lambda net, x: net.out(start(net, x).transpose(1, 2).flatten(1)), {}, "transpose"),
        (lambda net, x: net.row(start(net, x))[:, 0, 0], {"row": nn.Linear(6, 3)}, "Linear"),
        (lambda net, x: head(net, start(net, x).view(3, 4, 36)), {}, "reshapes"),
        (lambda net, x: head(net, start(net, x) * 2), {}, "mul"),
        (plain, {"conv": nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")}, "reflect"),
        (plain, {"conv": nn.Conv2d(2, 4, 2, padding="same")}, "padding 'same'"),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_refused_by_name(wrong, extra, message):
    with pytest.raises(TeacherError, match=message):
        inherited_layers(as_teacher(Pieces(wrong, **extra)), NeuronModel(), 2.0)


@pytest.mark.parametrize(
    "pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(1), nn.MaxPool2d((1, 1)), nn.AdaptiveMaxPool2d(1)]
)
def test_pooling_of_one_pixel_is_passed_over(pool):
    layers = [nn.Conv2d(2, 4, 6), nn.BatchNorm2d(4), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 3)]
    teacher = as_teacher(nn.Sequential(*layers))
    assert [type(item.layer) for item in trace_chain(teacher)][-2:] == [nn.Flatten, nn.Linear]
    wide = as_teacher(nn.Sequential(nn.Conv2d(2, 4, 5), *layers[1:]))
    if isinstance(pool, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        with pytest.raises(TeacherError, match=r"Adaptive"):
            trace_chain(wide)
