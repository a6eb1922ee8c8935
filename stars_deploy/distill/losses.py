"""What the student is to follow: the teacher's logits, its activations, and the relations it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stars_deploy.config import DistillConfig
from stars_deploy.errors import ConfigError
from stars_deploy.norms import watched_norms
from stars_deploy.student import StudentOutput
from stars_deploy.synthesis.objective import pooled
from stars_deploy.synthesis.objectives.relations import align_relations
from stars_deploy.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class TeacherAnswer:
    """A teacher's ``logits`` (B, K), and the rectified outputs of its batch norms, in order of execution."""

    logits: Tensor
    activations: list[Tensor]


def observe(teacher: Teacher, images: Tensor) -> TeacherAnswer:
    """Return what a teacher makes of images (B, C, H, W) in [0, 1]."""
    with watched_norms(teacher.module, activations=True) as seen:
        logits = teacher.logits(images)
    return TeacherAnswer(logits=logits, activations=list(seen.activations.values()))


def follow(
    output: StudentOutput,
    answer: TeacherAnswer,
    scales: list[float],
    plan: DistillConfig,
    average: Callable[[Tensor], Tensor] = lambda value: value,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a student, and its terms as they count in it.

    - ``kl``: ``KL(teacher || mean over time)`` at a temperature, times its square (Hinton et al. 2015);
    - ``kl_per_timestep``: the mean over time of ``KL(teacher || timestep)``, so that early timesteps answer as well;
    - ``rates``, where `scales` are given: the mean over layers of ``||scale rate - activation||^2 / ||activation||^2``
      (ours);
    - ``relations``: the Gram distance of RCA, here in the student's step (ours; off by default, reported apart).

    Parameters
    ----------
    output : StudentOutput
    answer : TeacherAnswer
    scales : list of float
        Teacher activation for a firing rate of 1, by layer.
    plan : DistillConfig
    average : callable
        The mean of a number over all processes that distil together: the size of activations is that of all shares.

    At least one term must have a weight (see :func:`check_weights`).
    """
    steps = len(output.logits)
    terms: dict[str, Tensor] = {}
    if plan.kl:
        terms["kl"] = plan.kl * divergence(answer.logits, output.mean_logits(), plan.temperature)
    if plan.per_timestep:
        each = divergence(answer.logits.repeat(steps, 1), output.logits.flatten(0, 1), plan.temperature)
        terms["kl_per_timestep"] = plan.per_timestep * each
    if scales and plan.rate_matching:
        distances = [
            (scale * rate - wanted).square().mean() / average(wanted.square().mean()).clamp_min(1e-6)
            for scale, rate, wanted in zip(scales, output.rates(), answer.activations, strict=True)
        ]
        terms["rates"] = plan.rate_matching * torch.stack(distances).mean()
    if plan.relations:
        distance = align_relations(pooled(answer.activations[-1]), pooled(output.rates()[-1]))
        terms["relations"] = plan.relations * distance
    loss = torch.stack(list(terms.values())).sum()
    if not (plan.kl or plan.per_timestep):
        # A readout that nothing asks for has a gradient of 0, not none: optimisers, checkpoints and DDP expect one.
        loss = loss + 0 * output.logits.sum()
    return loss, {name: float(term.detach()) for name, term in terms.items()}


def check_weights(scales: list[float], plan: DistillConfig) -> None:
    """Refuse a loss without terms.

    Raises
    ------
    ConfigError
        If no term that this student has weighs anything.
    """
    if not (plan.kl or plan.per_timestep or plan.relations or (scales and plan.rate_matching)):
        raise ConfigError(
            "distill", "every term of the student's loss has weight 0",
            "kl, per_timestep or relations greater than 0, or rate_matching where the student inherits",
        )  # fmt: skip


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return ``t^2 mean_b KL(softmax(teacher / t) || softmax(student / t))`` for logits (B, K)."""
    return temperature**2 * functional.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
