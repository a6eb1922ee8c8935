"""The ``fast`` backbone: a shared generator, adapted for a few steps to each batch, then moved toward the result.

After FastDFKD (Fang et al., AAAI 2022), whose meta-learned initialisation is a Reptile step. Teacher and student are
shown randomly shifted views during synthesis, which keeps the images recognisable when they move (ours).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stars_deploy.config import ObjectiveWeights, SynthesisConfig
from stars_deploy.errors import ConfigError
from stars_deploy.norms import norm_layers, norm_statistics, watched_norms
from stars_deploy.student import Student
from stars_deploy.synthesis import objectives
from stars_deploy.synthesis.generator import Generator
from stars_deploy.teacher import Teacher
from stars_deploy.views import randomly_shifted

#: Share of the way from the shared generator to the adapted one that a round moves it (Reptile).
META_RATE = 0.9
#: How many of a batch's images the student looks at: running it costs several times the teacher.
STUDENT_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class SynthesizedBatch:
    """Images (B, C, H, W) in [0, 1], the classes they were made for, and the last value of each objective."""

    images: Tensor
    labels: Tensor
    terms: dict[str, float]


class FastBackbone:
    """Makes class-balanced batches that satisfy the objectives.

    Parameters
    ----------
    teacher : Teacher
    config : SynthesisConfig
    weights : ObjectiveWeights
    seed : int
        Of everything that is random here; :attr:`draws` is the generator behind it.

    Raises
    ------
    ConfigError
        If every objective is switched off.
    """

    def __init__(self, teacher: Teacher, config: SynthesisConfig, weights: ObjectiveWeights, seed: int) -> None:
        if not any(weights.model_dump().values()):
            raise ConfigError("synthesis.objectives", "every weight is 0", "at least one weight greater than 0")
        self.teacher = teacher
        self.config = config
        self.weights = weights
        self.statistics = norm_statistics(teacher.module, teacher.norms)
        self.last_norm = dict(norm_layers(teacher.module))[teacher.norms[-1]]
        self.shift = max(1, teacher.input.shape[1] // 14) if config.shift is None else config.shift
        self.draws = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # initial weights can only be drawn from the global generator
            torch.manual_seed(seed)
            self.generator = Generator(teacher.input.shape, teacher.classes, config.latent, config.width)
        if config.tar_thresholds == "boundary":
            self.kappas = objectives.boundary_kappas(self.statistics)
        else:
            self.kappas = objectives.gaussian_kappas(self.statistics, config.tar_kappas)
        self.tails = [objectives.soft_tail(kappa) for kappa in self.kappas]

    def synthesize(self, student: Student, steps: int | None = None) -> SynthesizedBatch:
        """Adapt generator and latents to a fresh batch and return its images.

        Parameters
        ----------
        student : Student
            Only looked at (adversarial and relational terms); its weights get no gradient.
        steps : int, optional
            Instead of the configured number of inner steps.

        Raises
        ------
        ConfigError
            If the objective is no longer finite.
        """
        count = self.config.batch
        labels = torch.randperm(count, generator=self.draws) % self.teacher.classes
        latent = torch.randn(count, self.config.latent, generator=self.draws).requires_grad_(True)
        adapted = copy.deepcopy(self.generator).train()
        optimizer = torch.optim.Adam(
            [
                {"params": adapted.parameters(), "lr": self.config.generator_rate},
                {"params": [latent], "lr": self.config.latent_rate},
            ],
            betas=(0.5, 0.999),
        )
        terms: dict[str, float] = {}
        for _ in range(steps or self.config.inner_steps):
            loss, terms = self._objective(adapted(latent, labels), labels, student)
            if not math.isfinite(loss.item()):
                raise ConfigError(
                    "synthesis", f"objective {loss.item()} ({terms})", "a finite objective",
                    "lower synthesis.generator_rate or the weights of the objectives",
                )  # fmt: skip
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        self._move_toward(adapted)
        with torch.no_grad():
            images = adapted(latent, labels)
        return SynthesizedBatch(images=images, labels=labels, terms=terms)

    def _objective(self, images: Tensor, labels: Tensor, student: Student) -> tuple[Tensor, dict[str, float]]:
        weights = self.weights
        views = randomly_shifted(images, self.shift, self.config.flip, self.draws)
        with watched_norms(self.teacher.module) as seen:
            logits = self.teacher.logits(views)
        inputs = [seen.inputs[known.name] for known in self.statistics]
        features = torch.relu(self.last_norm(inputs[-1]))
        terms: dict[str, Tensor] = {}
        if weights.bn:
            terms["bn"] = objectives.match_norms(inputs, self.statistics)
        if weights.onehot:
            terms["onehot"] = objectives.match_labels(logits, labels)
        if weights.diversity:
            terms["diversity"] = objectives.spread_within_classes(images, features, labels)
        if weights.tar:
            terms["tar"] = objectives.match_tails(inputs, self.statistics, self.kappas, self.tails)
        if weights.adversarial or weights.rca:
            part = slice(0, STUDENT_SAMPLES)
            output = student(views[part])
            if weights.adversarial:
                terms["adversarial"] = objectives.disagree(logits[part], output.mean_logits())
            if weights.rca:
                terms["rca"] = objectives.align_relations(_pooled(features[part]), _pooled(output.rates()[-1]))
        loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        return loss, {name: float(term.detach()) for name, term in terms.items()}

    def _move_toward(self, adapted: Generator) -> None:
        with torch.no_grad():
            new = adapted.state_dict()
            for name, value in self.generator.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(new[name], META_RATE)


def _pooled(features: Tensor) -> Tensor:
    """Average (B, C, H, W) over space; leave (B, N) as it is."""
    return features.mean((2, 3)) if features.ndim == 4 else features
