"""Weights, schedules, gradients of the objectives in force."""

import pytest
import torch

from stars_deploy.config import SynthesisConfig
from stars_deploy.student import NeuronModel, build_student
from stars_deploy.synthesis.registry import build_backbone
from stars_deploy.synthesis.scoring import Wanted
from stars_deploy.teacher import load_teacher

WEIGHTS = {"bn": 2.0, "onehot": 0.5, "adversarial": 0, "diversity": 0}


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture(scope="module")
def student(teacher):
    return build_student(teacher, "inherit", 2, NeuronModel())[0].eval().requires_grad_(False)


def scorer(teacher, objectives, **given):
    config = SynthesisConfig(objectives={**WEIGHTS, **objectives}, **given)
    return build_backbone(teacher, config, "bn", torch.Generator()).scorer


def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20) % 10
    return torch.rand(20, 1, 8, 8, generator=generator), Wanted(labels=labels, targets=torch.eye(10)[labels])


def draws():
    return torch.Generator().manual_seed(5)


def test_total_is_the_weighted_sum(teacher, student):
    total, terms = scorer(teacher, {})(*batch(), student, 0.3, draws())
    assert terms.keys() == {"bn", "onehot"}
    assert float(total) == pytest.approx(2 * terms["bn"] + 0.5 * terms["onehot"], rel=1e-5)


def test_student_is_run_only_for_objectives_that_look_at_it(teacher, student):
    def never(*_, **__):
        pytest.fail("the student was run")

    scorer(teacher, {"tar": 1.0})(*batch(), never, 0.0, draws())
    looked = []

    def run(images, potentials=False):
        looked.append((len(images), potentials))
        return student(images, potentials=potentials)

    scorer(teacher, {"rca": 1.0}, student_samples=7)(*batch(), run, 0.0, draws())
    scorer(teacher, {"tar": {"weight": 1.0, "thresholds": "student"}})(*batch(), run, 0.0, draws())
    assert looked == [(7, False), (20, True)]


def test_schedule_decides_when_an_objective_counts(teacher, student):
    scheduled = scorer(teacher, {"tar": {"weight": 4.0, "begin": 0.2, "ramp": 0.2, "until": 0.8}})

    def terms(progress):
        return scheduled(*batch(), student, progress, draws())

    assert "tar" not in terms(0.1)[1]
    assert "tar" not in terms(0.9)[1]
    plain = terms(0.1)[0]
    for progress, weight in ((0.3, 2.0), (0.5, 4.0), (0.8, 4.0)):
        total, found = terms(progress)
        assert float(total - plain) == pytest.approx(weight * found["tar"], rel=1e-4)


def test_nothing_in_force_is_zero_and_differentiable(teacher, student):
    late = {"weight": 1.0, "begin": 0.5}
    images, wanted = batch()
    images.requires_grad_(True)
    total, terms = scorer(teacher, {"bn": late, "onehot": late})(images, wanted, student, 0.0, draws())
    total.backward()
    assert terms == {}
    assert float(total) == 0
    assert float(images.grad.abs().sum()) == 0


def test_gradient_norms_are_those_of_the_weighted_terms(teacher, student):
    made = scorer(teacher, {})
    images, wanted = batch()
    norms = made.gradient_norms(images, wanted, student, 0.0)
    leaf = images.clone().requires_grad_(True)
    made.terms(leaf, wanted, student, 0.0, torch.Generator().manual_seed(0))["bn"].backward()
    assert norms["bn"] == pytest.approx(2 * float(leaf.grad.norm()), rel=1e-4)
    assert norms["onehot"] > 0
    assert not images.requires_grad


def test_views_move_unless_told_not_to(teacher, student):
    images, wanted = batch()
    still = scorer(teacher, {}, shift=0)
    moving = scorer(teacher, {}, shift=3)
    one, two = (still(images, wanted, student, 0.0, torch.Generator().manual_seed(seed))[1] for seed in (1, 2))
    assert one == two
    one, two = (moving(images, wanted, student, 0.0, torch.Generator().manual_seed(seed))[1] for seed in (1, 2))
    assert one != two
