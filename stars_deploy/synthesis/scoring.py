"""The objectives in force, weighed and scheduled: what any backbone minimises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stars_deploy.config import ObjectiveSetting
from stars_deploy.errors import ConfigError
from stars_deploy.norms import norm_layers, watched_norms
from stars_deploy.student import Student
from stars_deploy.synthesis.objective import Objective, Observation
from stars_deploy.teacher import Teacher
from stars_deploy.views import randomly_shifted


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a batch is made for: ``labels`` (B,), and the probabilities ``targets`` (B, K) of each image."""

    labels: Tensor
    targets: Tensor


class Scorer(nn.Module):
    """Shows images to teacher and student and weighs what the objectives make of them.

    Both networks see the same randomly moved views during synthesis, which keeps the images recognisable when they move
    (ours).

    Parameters
    ----------
    teacher : Teacher
    objectives : mapping of str to Objective
    settings : mapping of str to ObjectiveSetting
        Weight and schedule of each.
    shift : int
        Largest move of the views [pixels].
    flip : bool
        Whether views may be mirrored.
    student_samples : int
        How many of a batch's images the student sees.
    """

    def __init__(
        self,
        teacher: Teacher,
        objectives: Mapping[str, Objective],
        settings: Mapping[str, ObjectiveSetting],
        *,
        shift: int,
        flip: bool,
        student_samples: int,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.objectives = nn.ModuleDict(objectives)
        self.settings = dict(settings)
        self.shift = shift
        self.flip = flip
        self.student_samples = student_samples
        self._last_norm = (dict(norm_layers(teacher.module))[teacher.norms[-1]],)  # in a tuple: no submodule of ours

    def forward(
        self,
        images: Tensor,
        wanted: Wanted,
        student: Student,
        progress: float,
        draws: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of the objectives of a batch, and each one's own value.

        Parameters
        ----------
        images : Tensor, (B, C, H, W)
            In [0, 1].
        wanted : Wanted
            The classes they are made for.
        student : Student
            Frozen, in eval mode.
        progress : float
            Share of the distillation that is done; decides the schedules.
        draws : torch.Generator
            Of the views.

        Raises
        ------
        ConfigError
            If the sum is not finite, naming each term.
        """
        terms = self.terms(images, wanted, student, progress, draws)
        # Before or after every schedule there is nothing to minimise, and still something to differentiate.
        weighed = [self.settings[name].at(progress) * term for name, term in terms.items()] or [0 * images.sum()]
        total = torch.stack(weighed).sum()
        values = {name: float(term.detach()) for name, term in terms.items()}
        if not math.isfinite(float(total.detach())):
            raise ConfigError(
                "synthesis", f"objective {float(total.detach())} after {progress:.0%} of the distillation ({values})",
                "a finite objective",
                "lower the backbone's learning rates (synthesis.options) or the weights of the objectives; the last "
                "checkpoint is kept: correct the settings and build anew",
            )  # fmt: skip
        return total, values

    def terms(
        self, images: Tensor, wanted: Wanted, student: Student, progress: float, draws: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the objectives that count now, unweighted. Parameters as for :meth:`forward`."""
        active = {name: one for name, one in self._named() if self.settings[name].at(progress)}
        seen = self._observe(images, wanted, student, list(active.values()), draws)
        return {name: one(seen) for name, one in active.items()}

    def batch_done(self) -> None:
        """Tell every objective that a batch is finished."""
        for _, one in self._named():
            one.batch_done()

    def gradient_norms(self, images: Tensor, wanted: Wanted, student: Student, progress: float) -> dict[str, float]:
        """Return the norm of each weighted objective's gradient with respect to the images of a batch.

        The views are drawn from a source of their own, so that looking changes nothing.
        """
        draws = torch.Generator().manual_seed(0)
        leaf = images.detach().requires_grad_(True)
        terms = self.terms(leaf, wanted, student, progress, draws)
        norms = {}
        for name, term in terms.items():
            (gradient,) = torch.autograd.grad(term, leaf, retain_graph=True, allow_unused=True)
            norms[name] = 0.0 if gradient is None else self.settings[name].at(progress) * float(gradient.norm())
        return norms

    def _named(self) -> list[tuple[str, Objective]]:
        return [(name, one) for name, one in self.objectives.items() if isinstance(one, Objective)]

    def _observe(
        self, images: Tensor, wanted: Wanted, student: Student, active: list[Objective], draws: torch.Generator
    ) -> Observation:
        views = randomly_shifted(images, self.shift, self.flip, draws)
        with watched_norms(self.teacher.module) as seen:
            logits = self.teacher.logits(views)
        inputs = [seen.inputs[name] for name in self.teacher.norms]
        part = slice(0, self.student_samples)
        answers = None
        if any(one.needs_student for one in active):
            answers = student(views[part], potentials=any(one.needs_potentials for one in active))
        return Observation(
            images=images, views=views, labels=wanted.labels, targets=wanted.targets, logits=logits, inputs=inputs,
            features=torch.relu(self._last_norm[0](inputs[-1])), part=part, student=answers,
        )  # fmt: skip
