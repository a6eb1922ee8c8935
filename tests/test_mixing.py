"""How images of the pool are varied."""

import pytest
import torch

from stars_deploy.distill.mixing import mixed


def images(count=200, shape=(2, 12, 10)):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kinds", [("affine",), ("mixup",), ("cutmix",), ("affine", "mixup", "cutmix")])
def test_images_stay_images_and_the_seed_decides(kinds):
    before = images()
    after = mixed(before, kinds, draws())
    assert after.shape == before.shape
    assert 0 <= after.min() < after.max() <= 1
    assert torch.equal(after, mixed(before, kinds, draws()))
    assert not torch.equal(after, mixed(before, kinds, draws(1)))


def test_nothing_asked_for_changes_nothing():
    assert torch.equal(mixed(images(), (), draws()), images())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_half_of_the_images_stay(kind):
    before = images()
    same = (mixed(before, (kind,), draws()) == before).flatten(1).all(1).float().mean()
    assert 0.4 < float(same) < 0.6


def test_mixup_blends_two_images():
    constant = torch.arange(50.0).view(50, 1, 1, 1).expand(50, 1, 3, 3) / 49
    after = mixed(constant, ("mixup",), draws())
    assert torch.allclose(after, after[:, :, :1, :1].expand_as(after))
    assert not torch.isin(after[:, 0, 0, 0], constant[:, 0, 0, 0]).all()


def test_cutmix_takes_one_rectangle_of_another_image():
    constant = torch.arange(100.0).view(100, 1, 1, 1).expand(100, 1, 16, 16).contiguous()
    after = mixed(constant, ("cutmix",), draws())
    changed = 0
    for number, image in enumerate(after[:, 0]):
        others = (image != number).nonzero()
        if len(others):
            (top, left), (bottom, right) = others.min(0).values, others.max(0).values
            patch = image[top : bottom + 1, left : right + 1]
            assert (patch == patch[0, 0]).all()
            changed += 1
    assert changed > 25


def test_affine_moves_a_picture_without_losing_it():
    square = torch.zeros(100, 1, 20, 20)
    square[:, :, 6:14, 6:14] = 1
    after = mixed(square, ("affine",), draws())
    mass = after.sum((1, 2, 3))
    assert (mass > 25).all()
    assert (mass < 140).all()
    rows = (after.sum((1, 3)) * torch.arange(20)).sum(1) / mass
    assert 0.1 < float(rows.std()) < 2
