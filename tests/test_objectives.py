import math

import numpy as np
import pytest
import torch

from stars_deploy.norms import NormStatistics
from stars_deploy.synthesis import objectives

RNG = np.random.default_rng(5)


def statistics(channels, seed=1):
    rng = np.random.default_rng(seed)
    mean, var, gamma, beta = (
        rng.normal(size=channels),
        rng.uniform(0.5, 2, channels),
        rng.normal(size=channels),
        rng.normal(size=channels),
    )
    return NormStatistics(
        name="n", **{k: torch.tensor(v) for k, v in {"mean": mean, "var": var, "gamma": gamma, "beta": beta}.items()}
    )  # fmt: skip


KNOWN = [statistics(3), statistics(4, 2)]
INPUTS = [RNG.normal(size=(6, 3, 5, 4)), RNG.normal(size=(6, 4, 2, 3)) * 2 + 1]
LOGITS, OTHER = RNG.normal(size=(2, 6, 5)) * 3
LABELS = np.array([0, 1, 2, 0, 1, 0])


def tensors(arrays, grad=False):
    return [torch.tensor(array, requires_grad=grad) for array in arrays]


def softmax(values):
    exps = np.exp(values - values.max(1, keepdims=True))
    return exps / exps.sum(1, keepdims=True)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def test_norm_matching_is_its_formula():
    expected = 0.0
    for values, known in zip(INPUTS, KNOWN, strict=True):
        mean, var = values.mean((0, 2, 3)), values.var((0, 2, 3))
        expected += np.linalg.norm(mean - known.mean.numpy()) / np.sqrt(known.var.numpy().sum())
        expected += np.linalg.norm(var - known.var.numpy()) / np.linalg.norm(known.var.numpy())
    assert float(objectives.match_norms(tensors(INPUTS), KNOWN)) == pytest.approx(expected / 2, rel=1e-6)


def test_norm_matching_is_zero_for_data_of_those_statistics():
    values = torch.randn(64, 3, 4, 4, dtype=torch.float64)
    values = (values - values.mean((0, 2, 3), keepdim=True)) / values.std((0, 2, 3), unbiased=False, keepdim=True)
    values = values * KNOWN[0].var.sqrt().view(1, -1, 1, 1) + KNOWN[0].mean.view(1, -1, 1, 1)
    assert float(objectives.match_norms([values], KNOWN[:1])) < 1e-6


def test_label_matching_is_its_formula():
    cross = -np.log(softmax(LOGITS))[np.arange(6), LABELS]
    found = objectives.match_labels(torch.tensor(LOGITS), torch.tensor(LABELS))
    assert float(found) == pytest.approx(np.maximum(cross - 0.1, 0).mean(), rel=1e-6)
    sure = torch.eye(5)[LABELS] * 20
    assert float(objectives.match_labels(sure, torch.tensor(LABELS))) == 0  # within the slack


def test_disagreement_is_its_formula():
    student = OTHER.copy()
    student[:3] = LOGITS[:3] + RNG.normal(size=(3, 5)) * 0.1  # some agree, some do not
    one, two = softmax(LOGITS), softmax(student)
    agree = LOGITS.argmax(1) == student.argmax(1)
    assert 0 < agree.sum() < 6
    divergence = (one * np.log(one / two)).sum(1)
    found = objectives.disagree(torch.tensor(LOGITS), torch.tensor(student))
    assert float(found) == pytest.approx(-(divergence * agree).mean(), rel=1e-6)
    assert float(objectives.disagree(torch.tensor(LOGITS), torch.tensor(LOGITS))) == pytest.approx(0, abs=1e-9)


def test_relation_alignment_is_its_formula():
    one, two = RNG.normal(size=(7, 5)), RNG.random(size=(7, 9))

    def gram(features):
        rows = features - features.mean(0)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ rows.T

    squared = (gram(one) - gram(two)) ** 2
    expected = squared[~np.eye(7, dtype=bool)].mean()
    assert float(objectives.align_relations(*tensors([one, two]))) == pytest.approx(expected, rel=1e-9)


def test_relation_alignment_ignores_scale_and_vanishes_for_equal_relations():
    one, two = tensors([RNG.normal(size=(7, 5)), RNG.random(size=(7, 9))])
    loss = objectives.align_relations(one, two)
    assert torch.allclose(loss, objectives.align_relations(3 * one + 2, 0.01 * two))
    turned = one @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert float(objectives.align_relations(one, turned * 4)) < 1e-12
    assert float(loss) > 0.01
    assert float(objectives.align_relations(one[:1], two[:1])) == 0


def test_relations_of_silent_students_are_finite_with_gradients():
    silent = torch.zeros(6, 4, requires_grad=True)
    loss = objectives.align_relations(torch.randn(6, 3), silent)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(silent.grad).all()


def test_soft_tail_values_are_the_published_quadrature():
    found = objectives.soft_tail(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    assert [round(value, 4) for value in found.tolist()] == [0.3238, 0.1805, 0.0856, 0.0343]
    samples = np.random.default_rng(0).normal(size=400_000)
    assert float(objectives.soft_tail(torch.tensor(-0.7))) == pytest.approx(
        sigmoid((samples + 0.7) / 0.25).mean(), abs=2e-3
    )


def test_tail_matching_is_its_formula():
    kappas = objectives.gaussian_kappas(KNOWN, (1.0, 2.0))
    targets = [objectives.soft_tail(kappa) for kappa in kappas]
    grid = np.linspace(-9, 9, 20001)
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    pi = [(sigmoid((grid - kappa) / 0.25) * density).sum() for kappa in (1.0, 2.0)]
    expected = []
    for values, known in zip(INPUTS, KNOWN, strict=True):
        terms = []
        for channel in range(values.shape[1]):
            sigma = math.sqrt(float(known.var[channel]) + 1e-5)
            for kappa, target in zip((1.0, 2.0), pi, strict=True):
                theta = float(known.mean[channel]) + kappa * sigma
                exceed = sigmoid((values[:, channel] - theta) / (0.25 * sigma)).mean()
                terms.append((exceed - target) ** 2 / (target * (1 - target)))
        expected.append(np.mean(terms))
    found = objectives.match_tails(tensors(INPUTS), KNOWN, kappas, targets)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_tail_matching_vanishes_for_gaussians():
    values = torch.randn(4000, 3, 4, 4, dtype=torch.float64) * KNOWN[0].var.sqrt().view(1, -1, 1, 1) + KNOWN[
        0
    ].mean.view(1, -1, 1, 1)
    for kappas in (objectives.gaussian_kappas(KNOWN[:1], (1.0, 2.0)), objectives.boundary_kappas(KNOWN[:1])):
        targets = [objectives.soft_tail(kappa) for kappa in kappas]
        assert float(objectives.match_tails([values], KNOWN[:1], kappas, targets)) < 1e-4


def test_boundary_thresholds_are_where_the_affine_crosses_zero():
    known = statistics(4)
    (kappa,) = objectives.boundary_kappas([known])
    assert kappa.shape == (1, 4)
    inside = kappa[0].abs() < 2.5
    assert inside.any()
    crossing = known.gamma * kappa[0] + known.beta
    assert torch.allclose(crossing[inside], torch.zeros(int(inside.sum()), dtype=torch.float64), atol=1e-9)
    flat = NormStatistics(
        name="n", mean=torch.zeros(2), var=torch.ones(2), gamma=torch.zeros(2), beta=torch.tensor([1.0, -1.0])
    )
    assert objectives.boundary_kappas([flat])[0].tolist() == [[-2.5, 2.5]]


def test_diversity_is_its_formula():
    images, features = RNG.random(size=(6, 1, 3, 3)), RNG.random(size=(6, 4)) + 0.5
    images[3] = images[0] + 0.01  # near each other, of one class
    deviation = images.reshape(6, -1).std(ddof=1)
    terms = []
    for first in range(6):
        for second in range(first + 1, 6):
            if LABELS[first] == LABELS[second]:
                distance = math.sqrt(((images[first] - images[second]) ** 2).mean() + 1e-8) / deviation
                one, two = features[first], features[second]
                cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
                terms.append(max(0.7 - distance, 0) / 0.7 + max(cosine - 0.93, 0) / 0.07)
    assert len(terms) == 4
    found = objectives.spread_within_classes(*tensors([images, features]), torch.tensor(LABELS))
    assert float(found) == pytest.approx(np.mean(terms), rel=1e-4)
    assert float(found) > 0
    alone = objectives.spread_within_classes(*tensors([images[:3], features[:3]]), torch.tensor(LABELS[:3]))
    assert float(alone) == 0


def losses():
    kappas = objectives.gaussian_kappas(KNOWN[:1], (1.0, 2.0))
    targets = [objectives.soft_tail(kappa) for kappa in kappas]
    labels, other = torch.tensor(LABELS), torch.tensor(OTHER)
    teacher = torch.tensor(RNG.normal(size=(6, 7)))
    return {
        "bn": (lambda x: objectives.match_norms([x], KNOWN[:1]), INPUTS[0]),
        "onehot": (lambda x: objectives.match_labels(x, labels), LOGITS),
        "adversarial": (lambda x: objectives.disagree(x, other), OTHER + 0.1 * LOGITS),
        "rca": (lambda x: objectives.align_relations(teacher, x), RNG.normal(size=(6, 7))),
        "tar": (lambda x: objectives.match_tails([x], KNOWN[:1], kappas, targets), INPUTS[0]),
        "diversity": (
            lambda x: objectives.spread_within_classes(x, x, labels),
            np.ones((6, 9)) + 0.05 * RNG.random((6, 9)),
        ),
    }


@pytest.mark.parametrize("name", losses())
def test_every_objective_falls_when_it_is_optimised_alone(name):
    loss, start = losses()[name]
    values = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Adam([values], lr=0.02)
    first = float(loss(values))
    for step in range(40):
        optimizer.zero_grad()
        current = loss(values)
        current.backward()
        if step == 0:
            assert (values.grad.flatten(1).norm(dim=1) > 0).any()
        optimizer.step()
    assert float(loss(values)) < first - 0.2 * abs(first)
