import torch
from torch.nn import functional

from stars_deploy.views import randomly_shifted


def test_views_are_windows_of_the_padded_image():
    images = torch.rand(40, 2, 6, 5)
    views = randomly_shifted(images, 2, False, torch.Generator().manual_seed(1))
    padded = functional.pad(images, (2, 2, 2, 2), mode="replicate")
    moves = set()
    for image, view in zip(padded, views, strict=True):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(image[:, row : row + 6, column : column + 5], view)
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert {row for row, _ in moves} == {column for _, column in moves} == set(range(5))


def test_flips_mirror_about_half():
    images = torch.rand(200, 1, 3, 4)
    views = randomly_shifted(images, 0, True, torch.Generator().manual_seed(1))
    mirrored = [torch.equal(view, image.flip(2)) for image, view in zip(images, views, strict=True)]
    same = [torch.equal(view, image) for image, view in zip(images, views, strict=True)]
    assert sum(mirrored) + sum(same) == 200
    assert 60 < sum(mirrored) < 140


def test_draws_decide_and_the_global_generator_is_left_alone():
    images = torch.rand(20, 1, 8, 8)
    before = torch.get_rng_state()
    one, same, other = (randomly_shifted(images, 2, True, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_reach_every_image():
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    randomly_shifted(images, 1, True).square().sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert randomly_shifted(images, 0, False) is images
