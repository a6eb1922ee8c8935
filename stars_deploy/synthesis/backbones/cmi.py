"""``cmi``: a generator made anew for each batch, and a term that tells its images from all earlier ones."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from stars_deploy.config import Section
from stars_deploy.norms import norm_layers, watched_norms
from stars_deploy.student import Student
from stars_deploy.synthesis.backbone import Backbone, SynthesizedBatch
from stars_deploy.synthesis.generator import seeded_generator
from stars_deploy.synthesis.objective import pooled
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.synthesis.scoring import Scorer
from stars_deploy.teacher import Teacher
from stars_deploy.views import randomly_shifted


class CmiOptions(Section):
    """Options of :class:`CmiBackbone`.

    ``iterations`` steps make a batch. ``contrastive`` weighs the term against ``negatives`` images of the pool, at
    ``temperature``; ``head`` is the width of the projection in which they are compared.
    """

    iterations: Annotated[int, Field(ge=1)] = 100
    contrastive: Annotated[float, Field(ge=0)] = 0.8
    negatives: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.2
    head: Annotated[int, Field(ge=1)] = 64
    latent: Annotated[int, Field(ge=1)] = 64
    width: Annotated[int, Field(ge=1)] = 16
    generator_rate: Annotated[float, Field(gt=0)] = 3e-3
    latent_rate: Annotated[float, Field(gt=0)] = 1e-2
    head_rate: Annotated[float, Field(gt=0)] = 1e-3


class CmiBackbone(Backbone):
    """After CMI (Fang et al., IJCAI 2021), contrastive model inversion.

    ``InfoNCE``: an image shall be told from the others of its batch and of the pool by the teacher's features of a
    second view of it: ``-mean log(exp(u.u'/t) / (exp(u.u'/t) + sum_negatives exp(u.v/t)))``, u the normalised
    projections; the projection learns with the images. Published weights of bn, onehot and adversarial: 1, 1 and 0.5.
    """

    name = "cmi"
    Options = CmiOptions
    base_weights = MappingProxyType({"bn": 5.0, "onehot": 1.0, "adversarial": 0.5})

    def __init__(self, teacher: Teacher, scorer: Scorer, options: CmiOptions, **settings: Any) -> None:
        super().__init__(teacher, scorer, options, **settings)
        self.options = options
        channels = dict(norm_layers(teacher.module))[teacher.norms[-1]].num_features
        first, second = self.normal(options.head, channels), self.normal(options.head, options.head)
        self.inner = nn.Parameter(first / channels**0.5)
        self.outer = nn.Parameter(second / options.head**0.5)
        self.optimizer = torch.optim.Adam([self.inner, self.outer], lr=options.head_rate)

    def synthesize(self, student: Student, pool: ImagePool, progress: float) -> SynthesizedBatch:
        """Make a generator, train it with its latents for this batch alone, and return the images."""
        options = self.options
        shape, classes = self.teacher.input.shape, self.teacher.classes
        generator = seeded_generator(shape, classes, options.latent, options.width, self.draws, self.device).train()
        wanted = self.balanced(self.batch)
        latent = self.normal(self.batch, options.latent).requires_grad_(True)
        optimizer = torch.optim.Adam(
            [
                {"params": generator.parameters(), "lr": options.generator_rate},
                {"params": [latent], "lr": options.latent_rate},
            ],
            betas=(0.5, 0.999),
        )
        earlier = self._earlier(pool)
        terms: dict[str, float] = {}
        for _ in range(options.iterations):
            images = generator(latent, wanted.labels)
            loss, terms = self.score(images, wanted, student, progress)
            if options.contrastive:
                contrast = self._contrast(images, earlier)
                loss = loss + options.contrastive * contrast
                terms = {**terms, "contrastive": float(contrast.detach())}
            for each in (optimizer, self.optimizer):
                each.zero_grad()
            torch.autograd.backward(loss)
            for each in (optimizer, self.optimizer):
                each.step()
        with torch.no_grad():
            return SynthesizedBatch(images=generator(latent, wanted.labels), wanted=wanted, terms=terms)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return that of the projection, which lasts; a batch's own generator does not."""
        return {"head": self.optimizer}

    def _earlier(self, pool: ImagePool) -> Tensor | None:
        """Return the teacher's features of some images of the pool."""
        if not len(pool):
            return None
        with torch.no_grad():
            return self._features(pool.sample(self.options.negatives, self.draws).to(self.device))

    def _features(self, images: Tensor) -> Tensor:
        last = self.teacher.norms[-1]
        with watched_norms(self.teacher.module, activations=True) as seen:
            self.teacher.logits(images)
        return pooled(seen.activations[last])

    def _contrast(self, images: Tensor, earlier: Tensor | None) -> Tensor:
        views = [randomly_shifted(images, self.scorer.shift, self.scorer.flip, self.draws) for _ in range(2)]
        first, second = (self._projected(self._features(view)) for view in views)
        others = [first] if earlier is None else [first, self._projected(earlier)]
        cosines = torch.cat([first @ each.T for each in others], 1) / self.options.temperature
        own = (first * second).sum(1) / self.options.temperature
        # In place of an image's likeness to itself stands that to its second view.
        cosines = cosines.scatter(1, torch.arange(len(first), device=first.device)[:, None], own[:, None])
        return functional.cross_entropy(cosines, torch.arange(len(first), device=first.device))

    def _projected(self, features: Tensor) -> Tensor:
        hidden = functional.linear(features, self.inner).relu()
        return functional.normalize(functional.linear(hidden, self.outer), dim=1, eps=1e-6)
