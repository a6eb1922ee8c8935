import pytest
import torch

from stars_deploy.config import ObjectiveWeights, SynthesisConfig
from stars_deploy.errors import ConfigError
from stars_deploy.student import NeuronModel, build_student
from stars_deploy.synthesis import backbone as backbone_module
from stars_deploy.synthesis import objectives
from stars_deploy.synthesis.backbone import FastBackbone
from stars_deploy.synthesis.generator import Generator, ImagePool
from stars_deploy.teacher import load_teacher

CONFIG = SynthesisConfig(batch=20, inner_steps=2, width=4, latent=8)
ALL = ObjectiveWeights(bn=1, onehot=1, adversarial=1, diversity=1, rca=1, tar=1)
NONE = {"bn": 0, "onehot": 0, "adversarial": 0, "diversity": 0, "rca": 0, "tar": 0}
FUNCTIONS = {
    "bn": "match_norms",
    "onehot": "match_labels",
    "adversarial": "disagree",
    "diversity": "spread_within_classes",
    "rca": "align_relations",
    "tar": "match_tails",
}


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture(scope="module")
def student(teacher):
    return build_student(teacher, "inherit", 2, NeuronModel())[0].eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 6), (2, 28, 30)])
def test_generator_makes_images_of_the_shape(shape):
    images = Generator(shape, 5, 6, 4)(torch.randn(7, 6), torch.arange(7) % 5)
    assert images.shape == (7, *shape)
    assert 0 <= images.min() < images.max() <= 1


def test_generator_listens_to_latent_and_class():
    generator = Generator((1, 8, 8), 3, 6, 4).eval()
    latent, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    images = generator(latent, labels)
    assert not torch.allclose(images, generator(latent, (labels + 1) % 3))
    assert not torch.allclose(images, generator(latent.flip(0), labels))


def test_pool_keeps_the_newest_rounded_to_8_bits():
    pool = ImagePool((1, 1, 1), 5)
    with pytest.raises(ConfigError, match=r"image pool: empty"):
        pool.sample(2, torch.Generator())
    pool.add(torch.tensor([10.0, 11, 12]).view(3, 1, 1, 1) / 255)
    assert len(pool) == 3
    pool.add(torch.tensor([13.3, 14, 15, 16]).view(4, 1, 1, 1) / 255)
    assert len(pool) == 5
    assert sorted(pool.images.flatten().tolist()) == [12, 13, 14, 15, 16]
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


def test_batches_are_class_balanced_and_reach_every_objective(teacher, student):
    backbone = FastBackbone(teacher, CONFIG, ALL, seed=3)
    batch = backbone.synthesize(student)
    assert batch.images.shape == (20, 1, 8, 8)
    assert torch.bincount(batch.labels).tolist() == [2] * 10
    assert batch.terms.keys() == FUNCTIONS.keys()
    assert all(isinstance(value, float) for value in batch.terms.values())
    assert all(parameter.grad is None for parameter in (*teacher.module.parameters(), *student.parameters()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_weight_zero_switches_a_term_off(teacher, student, monkeypatch, name):
    calls = []
    for other, function in FUNCTIONS.items():
        original = getattr(objectives, function)
        monkeypatch.setattr(objectives, function, lambda *a, _f=original, _n=other: (calls.append(_n), _f(*a))[1])
    FastBackbone(teacher, CONFIG, ALL.model_copy(update={name: 0.0}), seed=0).synthesize(student)
    assert set(calls) == FUNCTIONS.keys() - {name}


def test_student_is_not_run_without_a_term_for_it(teacher):
    def never(*_):
        pytest.fail("the student was run")

    weights = ALL.model_copy(update={"adversarial": 0.0, "rca": 0.0})
    batch = FastBackbone(teacher, CONFIG, weights, seed=0).synthesize(never)
    assert batch.terms.keys() == FUNCTIONS.keys() - {"adversarial", "rca"}


def test_weights_count(teacher, student):
    def images(weights):
        return FastBackbone(teacher, CONFIG, weights, seed=3).synthesize(student).images

    assert not torch.equal(images(ALL), images(ALL.model_copy(update={"tar": 3.0})))


def test_something_must_be_wanted(teacher):
    with pytest.raises(ConfigError, match=r"every weight is 0"):
        FastBackbone(teacher, CONFIG, ObjectiveWeights(**NONE), seed=0)


@pytest.mark.parametrize("name", ["bn", "onehot", "tar"])
def test_synthesis_lowers_an_objective_on_its_own(teacher, student, name):
    weights = ObjectiveWeights(**{**NONE, name: 1})
    backbone = FastBackbone(teacher, CONFIG, weights, seed=1)
    first = backbone.synthesize(student, 1).terms[name]
    assert backbone.synthesize(student, 40).terms[name] < 0.8 * first


def test_seed_decides_alone(teacher, student):
    def run(seed):
        backbone = FastBackbone(teacher, CONFIG, ALL, seed)
        return torch.cat([backbone.synthesize(student).images for _ in range(2)])

    before = torch.get_rng_state()
    one = run(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(one, run(3))
    assert not torch.equal(one, run(4))


def test_shared_generator_moves_toward_the_adapted(teacher, student):
    backbone = FastBackbone(teacher, CONFIG, ALL, seed=3)
    before = {name: value.clone() for name, value in backbone.generator.state_dict().items()}
    kept = []
    original = backbone._move_toward
    backbone._move_toward = lambda adapted: (kept.append(adapted.state_dict()), original(adapted))[1]
    backbone.synthesize(student)
    after = backbone.generator.state_dict()
    name = "last.0.weight"
    expected = before[name] + backbone_module.META_RATE * (kept[0][name] - before[name])
    assert torch.allclose(after[name], expected)
    assert not torch.equal(after[name], before[name])


def test_diverging_synthesis_is_refused(teacher, student):
    config = CONFIG.model_copy(update={"generator_rate": 1e38, "latent_rate": 1e38, "inner_steps": 5})
    with pytest.raises(ConfigError, match=r"synthesis: objective"):
        FastBackbone(teacher, config, ALL, seed=0).synthesize(student)


def test_gaussian_thresholds_can_be_chosen(teacher, student):
    config = CONFIG.model_copy(update={"tar_thresholds": "gaussian"})
    backbone = FastBackbone(teacher, config, ALL, seed=0)
    assert [tuple(kappa.shape) for kappa in backbone.kappas] == [(2, 16), (2, 32), (2, 32)]
    assert backbone.synthesize(student).terms["tar"] > 0
