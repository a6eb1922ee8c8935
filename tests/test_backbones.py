"""Every backbone with every objective; generator and pool."""

import pytest
import torch

from stars_deploy.config import SynthesisConfig
from stars_deploy.errors import ConfigError
from stars_deploy.student import NeuronModel, build_student
from stars_deploy.synthesis.backbones import BACKBONES
from stars_deploy.synthesis.generator import Generator, seeded_generator
from stars_deploy.synthesis.objectives import OBJECTIVES
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.synthesis.registry import build_backbone
from stars_deploy.teacher import load_teacher

SMALL = {
    "fast": {"inner_steps": 2, "warmup_steps": 2, "width": 4, "latent": 8},
    "dfq": {"generator_steps": 2, "warmup_steps": 1, "fresh": 2, "width": 4, "latent": 8},
    "cmi": {"iterations": 2, "negatives": 16, "head": 8, "width": 4, "latent": 8},
    "deepinversion": {"iterations": 2},
    "noise": {},
}
OBJECTIVE_NAMES = tuple(one.name for one in OBJECTIVES)
OPTIMISING = tuple(one.name for one in BACKBONES if one.name != "noise")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture(scope="module")
def student(teacher):
    return build_student(teacher, "inherit", 2, NeuronModel())[0].eval().requires_grad_(False)


def make(teacher, name, seed=3, objectives=None, **options):
    config = SynthesisConfig(
        backbone=name, batch=20, objectives=objectives or {}, options={**SMALL[name], **options}, student_samples=10
    )
    return build_backbone(teacher, config, "bn", torch.Generator().manual_seed(seed))


def only(name, backbone, **setting):
    """Return objectives of which just one counts, whatever the backbone's own are."""
    base = next(one for one in BACKBONES if one.name == backbone).base_weights
    return {**dict.fromkeys(base, 0.0), name: {"weight": 1.0, **setting}}


def pool_of(teacher, images=None):
    pool = ImagePool(teacher.input.shape, 64)
    if images is not None:
        pool.add(images)
    return pool


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 6), (2, 28, 30)])
@pytest.mark.parametrize("classes", [5, 0])
def test_generator_makes_images_of_the_shape(shape, classes):
    images = Generator(shape, classes, 6, 4)(torch.randn(7, 6), torch.arange(7) % 5)
    assert images.shape == (7, *shape)
    assert 0 <= images.min() < images.max() <= 1


def test_generator_listens_to_latent_and_class():
    generator = Generator((1, 8, 8), 3, 6, 4).eval()
    latent, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    images = generator(latent, labels)
    assert not torch.allclose(images, generator(latent, (labels + 1) % 3))
    assert not torch.allclose(images, generator(latent.flip(0), labels))


def test_initial_weights_come_from_the_draws_alone():
    def weights(seed):
        made = seeded_generator((1, 8, 8), 3, 6, 4, torch.Generator().manual_seed(seed), torch.device("cpu"))
        return torch.cat([value.flatten() for value in made.parameters()])

    before = torch.get_rng_state()
    one = weights(1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    assert torch.equal(one, weights(1))
    assert not torch.equal(one, weights(2))


def test_pool_keeps_the_newest_rounded_to_8_bits():
    pool = ImagePool((1, 1, 1), 5)
    with pytest.raises(ConfigError, match=r"image pool: empty"):
        pool.sample(2, torch.Generator())
    pool.add(torch.tensor([10.0, 11, 12]).view(3, 1, 1, 1) / 255)
    assert len(pool) == 3
    pool.add(torch.tensor([13.3, 14, 15, 16]).view(4, 1, 1, 1) / 255)
    assert len(pool) == 5
    assert sorted(pool.images.flatten().tolist()) == [12, 13, 14, 15, 16]
    assert pool.newest(3).flatten().tolist() == [14, 15, 16]
    assert pool.newest(30).flatten().tolist() == [12, 13, 14, 15, 16]
    pool.add(torch.arange(20.0).view(20, 1, 1, 1) / 255)
    assert sorted(pool.images.flatten().tolist()) == [15, 16, 17, 18, 19]
    drawn = pool.sample(200, torch.Generator().manual_seed(0))
    assert {round(value * 255) for value in drawn.flatten().tolist()} == {15, 16, 17, 18, 19}


def test_pool_refuses_what_it_cannot_hold():
    pool = ImagePool((1, 2, 2), 5)
    images = torch.randint(0, 256, (3, 1, 2, 2), dtype=torch.uint8)
    pool.restore(images, 3)
    assert len(pool) == 3
    assert torch.equal(pool.images[:3], images)
    for wrong, added in ((images, 4), (images.float(), 3), (images[:, :, :1], 3)):
        with pytest.raises(ConfigError, match=r"image pool"):
            pool.restore(wrong, added)


@pytest.mark.parametrize("name", SMALL)
def test_backbone_makes_images_and_touches_nothing_else(teacher, student, name):
    backbone, pool = make(teacher, name), pool_of(teacher, torch.rand(9, 1, 8, 8))
    before = torch.get_rng_state()
    batch = backbone.synthesize(student, pool, 0.0)
    assert torch.equal(before, torch.get_rng_state())
    assert batch.images.shape[1:] == (1, 8, 8)
    assert len(batch.images) == len(batch.wanted.labels) == 20 * SMALL[name].get("fresh", 1)
    assert 0 <= batch.images.min() < batch.images.max() <= 1
    assert not batch.images.requires_grad
    assert all(parameter.grad is None for parameter in (*teacher.module.parameters(), *student.parameters()))


@pytest.mark.parametrize("name", ["fast", "cmi", "deepinversion"])
def test_conditional_backbones_balance_the_classes(teacher, student, name):
    batch = make(teacher, name).synthesize(student, pool_of(teacher), 0.0)
    assert torch.bincount(batch.wanted.labels, minlength=10).tolist() == [2] * 10


def test_ambiguous_images_are_of_two_classes(teacher):
    backbone = make(teacher, "fast")
    backbone.ambiguous = 0.3
    wanted = backbone.balanced(5000)
    assert torch.allclose(wanted.targets.sum(1), torch.ones(5000))
    assert torch.equal(wanted.targets.argmax(1), wanted.labels)
    second = wanted.targets.sort(1, descending=True).values[:, 1]
    assert 0.27 < float((second > 0).float().mean()) < 0.33
    assert float(second.max()) <= 0.5
    assert 0.2 < float(second[second > 0].mean()) < 0.3
    assert int((wanted.targets > 0).sum(1).max()) == 2
    backbone.ambiguous = 0.0
    assert torch.equal(backbone.balanced(50).targets.max(1).values, torch.ones(50))


@pytest.mark.parametrize("name", OPTIMISING)
@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_any_backbone_takes_any_objective(teacher, student, name, objective):
    setting = {"thresholds": "student"} if objective == "tar" else {}
    backbone = make(teacher, name, objectives=only(objective, name, **setting))
    terms = backbone.synthesize(student, pool_of(teacher), 0.0).terms
    assert objective in terms
    assert not set(terms) & (set(OBJECTIVE_NAMES) - {objective})


@pytest.mark.parametrize(("name", "steps"), [("fast", "inner_steps"), ("dfq", "generator_steps"), ("cmi", "iterations"),
                                             ("deepinversion", "iterations")])  # fmt: skip
def test_more_steps_lower_an_objective(teacher, student, name, steps):
    def reached(count):
        more = {"fast": {"warmup_steps": count}, "cmi": {"contrastive": 0}}.get(name, {})
        backbone = make(teacher, name, objectives=only("bn", name), **{steps: count, **more})
        return backbone.synthesize(student, pool_of(teacher), 0.0).terms["bn"]

    assert reached(80) < 0.8 * reached(1)


@pytest.mark.parametrize("name", SMALL)
def test_seed_decides_alone(teacher, student, name):
    def run(seed):
        backbone, pool = make(teacher, name, seed), pool_of(teacher)
        for _ in range(2):
            pool.add(backbone.synthesize(student, pool, 0.0).images)
        return pool.images

    one = run(3)
    torch.manual_seed(99)
    assert torch.equal(one, run(3))
    assert not torch.equal(one, run(4))


def test_shared_generator_moves_toward_the_adapted(teacher, student):
    backbone = make(teacher, "fast", meta_rate=0.7)
    before = {name: value.clone() for name, value in backbone.generator.state_dict().items()}
    kept = []
    original = backbone._move_toward
    backbone._move_toward = lambda adapted: (kept.append(adapted.state_dict()), original(adapted))[1]
    backbone.synthesize(student, pool_of(teacher), 0.0)
    after = backbone.generator.state_dict()
    name = "last.0.weight"
    assert torch.allclose(after[name], before[name] + 0.7 * (kept[0][name] - before[name]))
    assert not torch.equal(after[name], before[name])


def test_first_batch_gets_the_warm_up(teacher, student, monkeypatch):
    backbone = make(teacher, "fast", warmup_steps=5)
    calls = []
    original = backbone.score
    monkeypatch.setattr(backbone, "score", lambda *given: (calls.append(1), original(*given))[1])
    backbone.synthesize(student, pool_of(teacher), 0.0)
    backbone.synthesize(student, pool_of(teacher), 0.0)
    assert len(calls) == 5 + 2


def test_contrast_is_lower_for_images_that_differ(teacher, student):
    backbone = make(teacher, "cmi")
    torch.manual_seed(0)
    varied = torch.rand(10, 1, 8, 8)
    alike = varied[:1].expand(10, -1, -1, -1)
    assert float(backbone._contrast(varied, None)) < float(backbone._contrast(alike, None)) - 0.1
    # Against images that were there before, the same ones are told apart less well.
    earlier = backbone._features(varied)
    assert float(backbone._contrast(varied, earlier)) > float(backbone._contrast(varied, None))


def test_diverging_synthesis_is_refused(teacher, student):
    backbone = make(teacher, "fast", generator_rate=1e38, latent_rate=1e38, warmup_steps=5)
    with pytest.raises(ConfigError, match=r"synthesis: objective.*bn"):
        backbone.synthesize(student, pool_of(teacher), 0.0)


def test_classes_that_a_batch_cannot_hold_are_refused(teacher):
    with pytest.raises(ConfigError, match=r"8 images for 10 classes.*at least 10"):
        build_backbone(teacher, SynthesisConfig(batch=8), "bn", torch.Generator())
