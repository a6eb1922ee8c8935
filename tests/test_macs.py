from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from stars_deploy.macs import count_macs, describe_teacher
from stars_deploy.norms import norm_layers
from stars_deploy.teacher import InputFormat, Teacher

FORM = InputFormat(shape=(2, 7, 6), mean=(0.0, 0.0), std=(1.0, 0.5))


def as_teacher(module, form=FORM):
    module.eval().requires_grad_(False)
    norms = tuple(name for name, _ in norm_layers(module))
    return Teacher(spec="x", module=module, input=form, labels=("a", "b", "c"), weights={}, norms=norms)


def sparse_images(samples, share=0.4, form=FORM):
    torch.manual_seed(3)
    images = torch.rand(samples, *form.shape)
    return images * (torch.rand_like(images) < share)


def loops(conv, image):
    """Multiply-accumulates of one convolution of zero padding, and those that meet something, one by one."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    _, height, width = image.shape
    rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    columns = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    read, made = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    total = met = 0
    for out, row, column in product(range(conv.out_channels), range(rows), range(columns)):
        for channel, y, x in product(range(read), range(kh), range(kw)):
            total += 1
            at = row * sh - ph + y * dh, column * sw - pw + x * dw
            inside = 0 <= at[0] < height and 0 <= at[1] < width
            met += inside and float(image[(out // made) * read + channel, at[0], at[1]]) != 0
    return total, met


CONVOLUTIONS = {
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)},
    "grouped": {"kernel_size": 2, "groups": 2},
    "dilated": {"kernel_size": (2, 3), "dilation": (3, 2), "padding": (0, 2)},
    "with pixels that nothing reads": {"kernel_size": 1, "stride": 4},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_what_meets_something_is_counted_exactly(options):
    conv = nn.Conv2d(2, 4, **options)
    teacher = as_teacher(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    images = sparse_images(5)
    first = describe_teacher(teacher, images)[0]
    counted = [loops(conv, image) for image in teacher.normalized(images)]
    assert {total for total, _ in counted} == {first.macs}
    assert (1 - first.zero_share) * first.macs == pytest.approx(sum(met for _, met in counted) / 5, rel=1e-12)
    assert 0 < first.zero_share < 1


def test_layers_are_described_in_order_of_execution():
    class Odd(nn.Module):
        """Runs in another order than it is defined, one layer twice, one never, one by keyword."""

        def __init__(self):
            super().__init__()
            self.read = nn.Linear(4 * 7 * 6, 3)
            self.unused = nn.Linear(9, 9)
            self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            self.stem = nn.Conv2d(2, 4, 1)

        def forward(self, x):
            x = self.block(self.block(self.stem(input=x).relu()))
            return self.read(x.flatten(1))

    torch.manual_seed(0)
    teacher = as_teacher(Odd())
    assert [layer.zero_share for layer in describe_teacher(teacher)] == [None, None, None]
    images = sparse_images(40)  # two parts
    stem, block, read = describe_teacher(teacher, images)
    assert [layer.name for layer in (stem, block, read)] == ["stem", "block.0", "read"]
    assert (stem.macs, stem.weights, stem.inputs, stem.outputs) == (8 * 42, 8, 2 * 42, 4 * 42)
    assert (block.macs, block.weights, block.inputs, block.outputs) == (2 * 144 * 42, 144, 2 * 4 * 42, 2 * 4 * 42)
    assert (read.macs, read.weights, read.inputs, read.outputs) == (3 * 168, 3 * 168, 168, 3)
    assert [layer.reads_image for layer in (stem, block, read)] == [True, False, False]
    assert count_macs(teacher) == stem.macs + block.macs + read.macs
    # A kernel of one pixel and a linear layer read each input equally often: the share of zeros itself.
    normal = teacher.normalized(images)
    assert stem.zero_share == pytest.approx(float((normal == 0).double().mean()), rel=1e-12)
    with torch.no_grad():
        last = teacher.module.block(teacher.module.block(teacher.module.stem(normal).relu()))
    assert read.zero_share == pytest.approx(float((last == 0).double().mean()), rel=1e-12)
    # Both runs of the block, and its padding.
    with torch.no_grad():
        inputs = [teacher.module.stem(normal).relu()]
        inputs.append(teacher.module.block(inputs[0]))
    met = sum(loops(teacher.module.block[0], image)[1] for batch in inputs for image in batch[:2]) / 2
    twice = describe_teacher(teacher, images[:2])[1]
    assert (1 - twice.zero_share) * twice.macs == pytest.approx(met, rel=1e-12)


def test_batches_do_not_change_what_is_counted():
    torch.manual_seed(0)
    teacher = as_teacher(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(168, 3)))
    images = sparse_images(70)
    together = describe_teacher(teacher, images)
    alone = [describe_teacher(teacher, images[index : index + 1]) for index in range(70)]
    for index, layer in enumerate(together):
        shares = [layers[index].zero_share for layers in alone]
        assert layer.zero_share == pytest.approx(sum(shares) / 70, rel=1e-9)
        assert len(set(shares)) > 1


def test_padding_of_pixels_meets_what_they_are():
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate", bias=False)
    form = InputFormat(shape=(1, 3, 3), mean=(0.0,), std=(1.0,))
    teacher = as_teacher(nn.Sequential(conv, nn.Flatten(), nn.Linear(9, 3)), form)
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 0] = 1
    padded = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    met = int(nn.functional.conv2d(padded, torch.ones(1, 1, 3, 3)).sum())
    layer = describe_teacher(teacher, image)[0]
    assert (1 - layer.zero_share) * layer.macs == pytest.approx(met)
    assert met > 4  # without padding the corner is read by 4 outputs


@pytest.mark.parametrize("flat", [False, True])
def test_black_pixels_are_zeros_whatever_the_normalisation(flat):
    torch.manual_seed(0)
    first = [nn.Flatten(), nn.Linear(84, 5)] if flat else [nn.Conv2d(2, 4, 3, padding=1), nn.Flatten()]
    module = nn.Sequential(*first, nn.ReLU(), nn.Linear(5 if flat else 168, 3))
    plain, shifted = (
        as_teacher(module),
        as_teacher(module, InputFormat(shape=FORM.shape, mean=(0.4, 0.5), std=(0.5, 0.5))),
    )
    images = sparse_images(6)
    assert describe_teacher(shifted, images)[0] == describe_teacher(plain, images)[0]
    assert describe_teacher(shifted, images)[1].zero_share != describe_teacher(plain, images)[1].zero_share


def test_counting_leaves_the_teacher_as_it_was():
    conv = nn.Conv2d(2, 4, 3, padding=1)
    module = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(168, 3))
    teacher = as_teacher(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images, state = sparse_images(3), torch.get_rng_state()
    describe_teacher(teacher, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert conv.weight.grad is None


def test_what_reads_the_image_is_known_through_layers_that_do_nothing():
    layers = [nn.Identity(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(84, 5), nn.BatchNorm1d(5), nn.ReLU()]
    teacher = as_teacher(nn.Sequential(*layers, nn.Linear(5, 3)))
    assert [layer.reads_image for layer in describe_teacher(teacher, sparse_images(2))] == [True, False]


def test_layers_that_are_called_as_functions_count_too():
    class Written(nn.Module):
        """The same network in functions, one weight made of others."""

        def __init__(self, conv, read):
            super().__init__()
            self.kernel, self.bias = conv.weight, conv.bias
            self.read = nn.utils.parametrizations.weight_norm(read)

        def forward(self, x):
            x = torch.conv2d(x, self.kernel, self.bias, stride=(2, 1), padding="valid", groups=2).relu()
            return nn.functional.linear(input=x.flatten(1), weight=self.read.weight, bias=self.read.bias)

    torch.manual_seed(0)
    conv, read = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), groups=2), nn.Linear(60, 3)
    images = sparse_images(6)
    modules = describe_teacher(as_teacher(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), read)), images)
    functions = describe_teacher(as_teacher(Written(conv, read)), images)
    assert [layer.name for layer in modules] == ["0", "3"]
    assert [layer.name for layer in functions] == ["kernel", "layer 1"]
    assert [replace(layer, name="") for layer in functions] == [replace(layer, name="") for layer in modules]


def test_a_network_of_neither_kind_has_no_layers():
    class Matrix(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(84, 3))

        def forward(self, x):
            return x.flatten(1) @ self.weight

    teacher = as_teacher(Matrix())
    assert describe_teacher(teacher, sparse_images(3)) == () and count_macs(teacher) == 0


def test_no_images_count_no_zeros():
    teacher = as_teacher(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(168, 3)))
    assert describe_teacher(teacher, torch.zeros(0, *FORM.shape)) == describe_teacher(teacher)
