import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from stars_deploy.norms import NormStatistics
from stars_deploy.student import StudentOutput
from stars_deploy.synthesis.objective import Observation
from stars_deploy.synthesis.objectives.adversarial import disagree
from stars_deploy.synthesis.objectives.diversity import spread_within_classes
from stars_deploy.synthesis.objectives.labels import Balance, match_labels
from stars_deploy.synthesis.objectives.norms import NormMatching, batch_statistics, match_norms
from stars_deploy.synthesis.objectives.relations import RelationalConsistency, align_relations, linear_cka
from stars_deploy.synthesis.objectives.tails import (
    TailMatching,
    boundary_kappas,
    exceedance,
    gaussian_kappas,
    paired_layer,
    rectified_share,
    soft_tail,
)
from stars_deploy.synthesis.objectives.variation import TotalVariation
from stars_deploy.teacher import load_teacher

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


def found(arrays):
    return [batch_statistics(values) for values in tensors(arrays)]


def onehot(classes):
    return torch.eye(classes, dtype=torch.float64)[LABELS]


def tails(inputs, known, kappas, targets):
    """TAR as the class computes it, on statistics that are not of a teacher."""
    objective = TailMatching(load_teacher(), TailMatching.Options())
    shares = [exceedance(*one) for one in zip(inputs, known, kappas, strict=True)]
    return objective._distance(shares, targets)


def observation(**given):
    fields = dict.fromkeys(("images", "views", "labels", "targets", "logits", "features"), torch.zeros(0))
    return Observation(**{**fields, "inputs": [], "part": slice(None), **given})


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
    assert float(match_norms(found(INPUTS), KNOWN, relative=True)) == pytest.approx(expected / 2, rel=1e-6)


def test_norm_matching_is_zero_for_data_of_those_statistics():
    values = torch.randn(64, 3, 4, 4, dtype=torch.float64)
    values = (values - values.mean((0, 2, 3), keepdim=True)) / values.std((0, 2, 3), unbiased=False, keepdim=True)
    values = values * KNOWN[0].var.sqrt().view(1, -1, 1, 1) + KNOWN[0].mean.view(1, -1, 1, 1)
    assert float(match_norms([batch_statistics(values)], KNOWN[:1], relative=True)) < 1e-6


def test_label_matching_is_its_formula():
    cross = -np.log(softmax(LOGITS))[np.arange(6), LABELS]
    value = match_labels(torch.tensor(LOGITS), onehot(5), 0.1)
    assert float(value) == pytest.approx(np.maximum(cross - 0.1, 0).mean(), rel=1e-6)
    sure = torch.eye(5)[LABELS] * 20
    assert float(match_labels(sure, onehot(5).float(), 0.1)) == 0  # within the slack


def test_ambiguous_images_are_paid_for_being_between_their_classes():
    targets = torch.tensor([[0.7, 0.3, 0.0]], dtype=torch.float64)
    between = torch.tensor([[0.7, 0.3, 1e-9]], dtype=torch.float64).log()
    assert float(match_labels(between, targets, 0.0)) == pytest.approx(0, abs=1e-6)
    sure = torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64)
    expected = 0.7 * math.log(0.7 / 0.98) + 0.3 * math.log(0.3 / 0.01)
    assert float(match_labels(sure.log(), targets, 0.2)) == pytest.approx(expected - 0.2, rel=1e-6)


def test_disagreement_is_its_formula():
    student = OTHER.copy()
    student[:3] = LOGITS[:3] + RNG.normal(size=(3, 5)) * 0.1  # some agree, some do not
    one, two = softmax(LOGITS), softmax(student)
    agree = LOGITS.argmax(1) == student.argmax(1)
    assert 0 < agree.sum() < 6
    divergence = (one * np.log(one / two)).sum(1)
    value = disagree(torch.tensor(LOGITS), torch.tensor(student))
    assert float(value) == pytest.approx(-(divergence * agree).mean(), rel=1e-6)
    assert float(disagree(torch.tensor(LOGITS), torch.tensor(LOGITS))) == pytest.approx(0, abs=1e-9)


def test_relation_alignment_is_its_formula():
    one, two = RNG.normal(size=(7, 5)), RNG.random(size=(7, 9))

    def gram(features):
        rows = features - features.mean(0)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ rows.T

    squared = (gram(one) - gram(two)) ** 2
    expected = squared[~np.eye(7, dtype=bool)].mean()
    assert float(align_relations(*tensors([one, two]))) == pytest.approx(expected, rel=1e-9)


def test_relation_alignment_ignores_scale_and_vanishes_for_equal_relations():
    one, two = tensors([RNG.normal(size=(7, 5)), RNG.random(size=(7, 9))])
    loss = align_relations(one, two)
    assert torch.allclose(loss, align_relations(3 * one + 2, 0.01 * two))
    turned = one @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert float(align_relations(one, turned * 4)) < 1e-12
    assert float(loss) > 0.01


def test_relations_of_silent_students_are_finite_with_gradients():
    silent = torch.zeros(6, 4, requires_grad=True)
    loss = align_relations(torch.randn(6, 3), silent)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(silent.grad).all()


def test_soft_tail_values_are_the_published_quadrature():
    value = soft_tail(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    assert [round(value, 4) for value in value.tolist()] == [0.3238, 0.1805, 0.0856, 0.0343]
    samples = np.random.default_rng(0).normal(size=400_000)
    assert float(soft_tail(torch.tensor(-0.7))) == pytest.approx(sigmoid((samples + 0.7) / 0.25).mean(), abs=2e-3)


def test_tail_matching_is_its_formula():
    kappas = gaussian_kappas(KNOWN, (1.0, 2.0))
    targets = [soft_tail(kappa) for kappa in kappas]
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
    value = tails(tensors(INPUTS), KNOWN, kappas, targets)
    assert float(value) == pytest.approx(np.mean(expected), rel=1e-5)


def test_tail_matching_vanishes_for_gaussians():
    values = torch.randn(4000, 3, 4, 4, dtype=torch.float64) * KNOWN[0].var.sqrt().view(1, -1, 1, 1) + KNOWN[
        0
    ].mean.view(1, -1, 1, 1)
    for kappas in (gaussian_kappas(KNOWN[:1], (1.0, 2.0)), boundary_kappas(KNOWN[:1])):
        targets = [soft_tail(kappa) for kappa in kappas]
        assert float(tails([values], KNOWN[:1], kappas, targets)) < 1e-4


def test_boundary_thresholds_are_where_the_affine_crosses_zero():
    known = statistics(4)
    (kappa,) = boundary_kappas([known])
    assert kappa.shape == (1, 4)
    inside = kappa[0].abs() < 2.5
    assert inside.any()
    crossing = known.gamma * kappa[0] + known.beta
    assert torch.allclose(crossing[inside], torch.zeros(int(inside.sum()), dtype=torch.float64), atol=1e-9)
    flat = NormStatistics(
        name="n", mean=torch.zeros(2), var=torch.ones(2), gamma=torch.zeros(2), beta=torch.tensor([1.0, -1.0])
    )
    assert boundary_kappas([flat])[0].tolist() == [[-2.5, 2.5]]


@pytest.mark.parametrize("gamma", [-5e-4, 5e-4])
def test_a_relu_that_always_passes_is_known_to_whatever_the_sign_of_a_small_gamma(gamma):
    known = replace(statistics(1), gamma=torch.tensor([gamma]), beta=torch.tensor([0.2]))
    values = torch.randn(1000, 1, dtype=torch.float64) * known.var.sqrt() + known.mean
    assert float(rectified_share(values, known, boundary_kappas([known])[0])) > 0.97


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
    value = spread_within_classes(*tensors([images, features]), torch.tensor(LABELS), 0.7, 0.93)
    assert float(value) == pytest.approx(np.mean(terms), rel=1e-4)
    assert float(value) > 0
    alone = spread_within_classes(*tensors([images[:3], features[:3]]), torch.tensor(LABELS[:3]), 0.7, 0.93)
    assert float(alone) == 0


def losses():
    kappas = gaussian_kappas(KNOWN[:1], (1.0, 2.0))
    targets = [soft_tail(kappa) for kappa in kappas]
    labels, other = torch.tensor(LABELS), torch.tensor(OTHER)
    teacher = torch.tensor(RNG.normal(size=(6, 7)))
    return {
        "bn": (lambda x: match_norms([batch_statistics(x)], KNOWN[:1], relative=True), INPUTS[0]),
        "onehot": (lambda x: match_labels(x, onehot(5), 0.1), LOGITS),
        "adversarial": (lambda x: disagree(x, other), OTHER + 0.1 * LOGITS),
        "rca": (lambda x: align_relations(teacher, x), RNG.normal(size=(6, 7))),
        "tar": (lambda x: tails([x], KNOWN[:1], kappas, targets), INPUTS[0]),
        "diversity": (
            lambda x: spread_within_classes(x, x, labels, 0.7, 0.93),
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


@pytest.mark.parametrize("shape", [(5, 3, 2, 4), (6, 3)])
def test_batch_statistics_have_the_gradients_of_the_formula(shape):
    values = torch.tensor(RNG.normal(size=shape) + 2, requires_grad=True)
    assert torch.autograd.gradcheck(batch_statistics, (values,))
    axes = [axis for axis in range(len(shape)) if axis != 1]
    mean, var = batch_statistics(values)
    assert torch.allclose(mean, values.mean(axes))
    assert torch.allclose(var, values.var(axes, unbiased=False))


def test_absolute_norm_matching_is_the_published_sum():
    expected = sum(
        np.linalg.norm(values.mean((0, 2, 3)) - known.mean.numpy())
        + np.linalg.norm(values.var((0, 2, 3)) - known.var.numpy())
        for values, known in zip(INPUTS, KNOWN, strict=True)
    )
    assert float(match_norms(found(INPUTS), KNOWN, relative=False)) == pytest.approx(expected, rel=1e-6)


def test_norm_matching_with_momentum_looks_at_earlier_batches():
    teacher = load_teacher()
    torch.manual_seed(0)
    inputs = [
        torch.randn(6, len(known.mean), 4, 4) for known in NormMatching(teacher, NormMatching.Options()).statistics
    ]
    objective = NormMatching(teacher, NormMatching.Options(momentum=0.9))
    alone = NormMatching(teacher, NormMatching.Options())(observation(inputs=inputs))
    # Before the first batch is finished, the teacher's own statistics stand for the earlier ones: less is missing.
    assert float(objective(observation(inputs=inputs))) == pytest.approx(0.1 * float(alone), rel=0.2)
    for _ in range(200):
        last = objective(observation(inputs=inputs))
        objective.batch_done()
    assert float(last) == pytest.approx(float(alone), rel=1e-3)
    assert {"mean_0", "var_2"} <= objective.state_dict().keys()


def test_balance_is_its_formula():
    objective = Balance(load_teacher(), Balance.Options())
    mean = softmax(LOGITS).mean(0)
    expected = math.log(5) + (mean * np.log(mean)).sum()
    assert float(objective(observation(logits=torch.tensor(LOGITS)))) == pytest.approx(expected, rel=1e-6)
    assert float(objective(observation(logits=torch.zeros(3, 4)))) == pytest.approx(0, abs=1e-6)


def test_variation_is_its_formula():
    images = RNG.random(size=(3, 2, 4, 5))
    expected = (np.diff(images, axis=2) ** 2).sum() + (np.diff(images, axis=3) ** 2).sum()
    objective = TotalVariation(load_teacher(), TotalVariation.Options())
    assert float(objective(observation(images=torch.tensor(images)))) == pytest.approx(expected / images.size)


def test_cka_and_softmax_relations_are_their_formulas():
    one, two = RNG.normal(size=(7, 5)), RNG.random(size=(7, 9))
    centre = np.eye(7) - 1 / 7
    first, second = centre @ one @ one.T @ centre, centre @ two @ two.T @ centre
    cka = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
    assert float(linear_cka(*tensors([one, two]))) == pytest.approx(cka, rel=1e-9)
    assert float(align_relations(*tensors([one, two]), "cka")) == pytest.approx(1 - cka, rel=1e-9)

    def rows(features):
        centred = features - features.mean(0)
        centred = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        gram = centred @ centred.T
        return softmax(gram[~np.eye(7, dtype=bool)].reshape(7, 6) / 0.2)

    expected = (rows(one) * np.log(rows(one) / rows(two))).sum(1).mean()
    assert float(align_relations(*tensors([one, two]), "softmax")) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("similarity", ["gram", "cka", "softmax"])
def test_relations_are_aligned_when_they_are_equal(similarity):
    one = torch.tensor(RNG.normal(size=(7, 5)))
    turned = one @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert float(align_relations(one, 3 * turned, similarity)) == pytest.approx(0, abs=1e-9)


def output(spikes, logits=None, potentials=()):
    return StudentOutput(
        logits=torch.zeros(2, 6, 5) if logits is None else logits, spikes=spikes, potentials=potentials
    )


def test_rca_compares_pooled_features_with_rates_or_logits():
    torch.manual_seed(1)
    features, spikes = torch.rand(8, 3, 4, 4), (torch.rand(2, 6, 5, 2, 2) > 0.5).float()
    logits, each = torch.randn(8, 5), torch.randn(2, 6, 5)
    seen = observation(features=features, logits=logits, part=slice(0, 6), student=output((spikes,), each))
    teacher = load_teacher()
    last = RelationalConsistency(teacher, RelationalConsistency.Options())(seen)
    assert torch.allclose(last, align_relations(features[:6].mean((2, 3)), spikes.mean((0, 3, 4))))
    on_logits = RelationalConsistency(teacher, RelationalConsistency.Options(features="logits", similarity="cka"))(seen)
    assert torch.allclose(on_logits, align_relations(logits[:6], each.mean(0), "cka"))


def test_layers_are_paired_by_depth():
    assert [paired_layer(index, 3, 3) for index in range(3)] == [0, 1, 2]
    assert [paired_layer(index, 2, 4) for index in range(2)] == [1, 3]
    assert [paired_layer(index, 4, 2) for index in range(4)] == [0, 0, 1, 1]
    assert all(0 <= paired_layer(i, n, m) < m for n in range(1, 7) for m in range(1, 7) for i in range(n))
    assert all(paired_layer(n - 1, n, m) == m - 1 for n in range(1, 7) for m in range(1, 7))


def test_share_that_a_relu_passes_follows_the_sign_of_gamma():
    drawn = statistics(4)
    known = replace(drawn, gamma=drawn.gamma * torch.tensor([1, -1, 1, -1]))
    values = torch.randn(3000, 4, dtype=torch.float64) * known.var.sqrt() + known.mean
    kappa = boundary_kappas([known])[0]
    passed = (known.gamma * (values - known.mean) / known.deviation() + known.beta > 0).double().mean(0)
    assert torch.allclose(rectified_share(values, known, kappa), passed, atol=0.06)


def test_student_tails_compare_potentials_with_the_teachers_exceedance():
    teacher = load_teacher()
    objective = TailMatching(teacher, TailMatching.Options(thresholds="student", distance="absolute"))
    assert objective.needs_student
    assert objective.needs_potentials
    assert not TailMatching(teacher, TailMatching.Options()).needs_student
    torch.manual_seed(0)
    inputs = [torch.randn(5, len(known.mean), 3, 3) + known.mean.view(1, -1, 1, 1) for known in objective.statistics]
    channels = [len(known.mean) for known in objective.statistics]
    same = [torch.randn(2, 4, count, 3, 3, requires_grad=True) for count in channels]
    seen = observation(inputs=inputs, part=slice(0, 4), student=output((), potentials=tuple(same)))
    expected = []
    for values, potentials, known, kappa in zip(inputs, same, objective.statistics, objective.kappas, strict=True):
        wanted = rectified_share(values[:4], known, kappa)
        fired = torch.sigmoid((potentials - 1) / 0.25).mean((0, 1, 3, 4))
        expected.append((fired - wanted.clamp(0.01, 0.99)).abs().mean())
    loss = objective(seen)
    assert float(loss) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    loss.backward()
    assert all(potentials.grad.abs().sum() > 0 for potentials in same)
    # Of other widths and another depth: layer against layer.
    narrow = (torch.randn(2, 4, 2, 3, 3), torch.randn(2, 4, 3))
    assert math.isfinite(
        float(objective(observation(inputs=inputs, part=slice(0, 4), student=output((), potentials=narrow))))
    )


def test_looking_at_a_student_that_was_not_run_is_a_programming_error():
    with pytest.raises(ValueError, match="needs_student"):
        observation().answers()
