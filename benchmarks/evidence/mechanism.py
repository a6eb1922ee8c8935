"""Why an arm did as it did: measured after training, on real training images, as a diagnosis only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stars_deploy.norms import norm_statistics, watched_norms
from stars_deploy.spiking import Student
from stars_deploy.synthesis.objective import pooled
from stars_deploy.synthesis.objectives.relations import relations
from stars_deploy.synthesis.objectives.tails import boundary_kappas, exceedance, gaussian_kappas
from stars_deploy.teacher import Teacher

#: Samples of which all pairs are compared.
PAIRED = 256
#: Firing rate of a saturated channel [spikes/timestep], as in stars_deploy.distill.health.
SATURATED = 0.95


def diagnose(teacher: Teacher, student: Student, real: Tensor, synthetic: Tensor | None) -> dict[str, Any]:
    """Return what the two networks see in real images and, if there are any, in synthetic ones, (N, C, H, W)."""
    found: dict[str, Any] = {"real": _seen(teacher, student, real)}
    if synthetic is None:
        return found
    found["synthetic"] = _seen(teacher, student, synthetic)
    shares = [_shares(teacher, images) for images in (real, synthetic)]
    found["tail_error"] = {
        name: [float((one - other).abs().mean()) for one, other in zip(shares[0][name], shares[1][name], strict=True)]
        for name in shares[0]
    }
    return found


def gradient_ratios(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean norm of each objective's gradient over that of bn, where both were measured."""
    ratios: dict[str, list[float]] = {}
    for entry in history:
        base = entry.get("gradient/bn", 0.0)
        for name, value in entry.items():
            if base and name.startswith("gradient/") and name != "gradient/bn":
                ratios.setdefault(name.removeprefix("gradient/"), []).append(value / base)
    return {name: sum(values) / len(values) for name, values in ratios.items()}


def _seen(teacher: Teacher, student: Student, images: Tensor) -> dict[str, Any]:
    with torch.no_grad(), watched_norms(teacher.module, activations=True) as watched:
        logits = teacher.logits(images)
    features = pooled(watched.activations[teacher.norms[-1]])
    with torch.no_grad():
        parts = [student(part) for part in images.split(PAIRED)]
    rates = [torch.cat([part.rates()[layer] for part in parts]) for layer in range(len(parts[0].spikes))]
    by_channel = [rate.transpose(0, 1).flatten(1).mean(1) for rate in rates]
    classes = logits.argmax(1)
    answers = torch.cat([part.mean_logits().argmax(1) for part in parts])
    probabilities = logits.softmax(1)
    return {
        "agreement": float((answers == classes).float().mean()),
        "teacher_confidence": float(probabilities.max(1).values.mean()),
        "rates": [float(rate.mean()) for rate in rates],
        "dead": [float((rate == 0).float().mean()) for rate in by_channel],
        "saturated": [float((rate > SATURATED).float().mean()) for rate in by_channel],
        "gram_correlation": _correlation(features[:PAIRED], pooled(rates[-1][:PAIRED])),
        "diversity": _diversity(images[:PAIRED], features[:PAIRED], classes[:PAIRED]),
    }


def _correlation(first: Tensor, second: Tensor) -> float:
    """Return the correlation of the cosines between samples as two networks see them."""
    others = ~torch.eye(len(first), dtype=torch.bool)
    pairs = torch.stack([relations(first)[others], relations(second)[others]])
    return float(torch.nan_to_num(torch.corrcoef(pairs)[0, 1]))


def _diversity(images: Tensor, features: Tensor, classes: Tensor) -> dict[str, float]:
    """Return mean distance in pixels (in deviations) and mean cosine of features, over pairs of a class."""
    pairs = (classes[:, None] == classes[None, :]).fill_diagonal_(False)
    pixels = images.flatten(1)
    distance = torch.cdist(pixels, pixels) / pixels.shape[1] ** 0.5 / pixels.std()
    rows = torch.nn.functional.normalize(features, dim=1)
    return {"pixel_distance": float(distance[pairs].mean()), "feature_cosine": float((rows @ rows.T)[pairs].mean())}


def _shares(teacher: Teacher, images: Tensor) -> dict[str, list[Tensor]]:
    """Return the soft shares beyond each threshold, by layer, (C,)."""
    statistics = norm_statistics(teacher.module, teacher.norms)
    with torch.no_grad(), watched_norms(teacher.module) as watched:
        teacher.logits(images)
    kappas = {"kappa_1": gaussian_kappas(statistics, (1.0,)), "kappa_2": gaussian_kappas(statistics, (2.0,)),
              "boundary": boundary_kappas(statistics)}  # fmt: skip
    return {
        name: [
            exceedance(watched.inputs[known.name], known, kappa)[0]
            for known, kappa in zip(statistics, levels, strict=True)
        ]
        for name, levels in kappas.items()
    }
