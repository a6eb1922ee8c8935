"""What only the evidence needs, and the product must not have: real images, an ANN student, placebos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evidence.planning import Run, settled
from stars_deploy.errors import ConfigError
from stars_deploy.pipeline.distilling import objectives_in_force
from stars_deploy.spiking import SpikingLayer, Student, StudentOutput
from stars_deploy.synthesis.backbone import Backbone, SynthesizedBatch
from stars_deploy.synthesis.objectives import RelationalConsistency, TailMatching
from stars_deploy.synthesis.registry import register_backbone, register_objective


class RealImages(Backbone):
    """Deals real training images: what distillation would reach with data. Set :attr:`images` before it is used."""

    name = "real"
    base_weights = {"bn": 1.0}  # noqa: RUF012  # asked for by the registry, never looked at
    minimizes = False
    images: Tensor

    def synthesize(self, student: Student, pool: Any, progress: float) -> SynthesizedBatch:
        """Draw a batch."""
        images = self.images[torch.randint(len(self.images), (self.batch,), generator=self.draws)]
        return SynthesizedBatch(images=images, wanted=self.pure(self.teacher.predict(images)), terms={})


class ShuffledTails(TailMatching):
    """Placebo of TAR: the same loss and the same effort, with the targets of other channels.

    Only of the boundary variant: the Gaussian one has the same targets for all channels, the student's has none of its
    own.
    """

    name = "tar_placebo"

    def __init__(self, teacher: Any, options: Any) -> None:
        super().__init__(teacher, options)
        if options.thresholds != "boundary":
            raise ConfigError("synthesis.objectives.tar_placebo.thresholds", options.thresholds, "boundary")
        self._orders = [torch.randperm(len(known.mean), generator=_fixed()) for known in self.statistics]

    def _distance(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        shuffled = [target[..., order] for target, order in zip(wanted, self._orders, strict=True)]
        return super()._distance(found, shuffled)


class PermutedRelations(RelationalConsistency):
    """Placebo of RCA: the relations that the teacher sees between other samples of the batch."""

    name = "rca_placebo"

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the distance from the relations of permuted samples."""
        return super().compare(teacher[torch.randperm(len(teacher), generator=_fixed())], student)


class AnnStudent(Student):
    """A student with ReLU in place of its neurons: one timestep, activations for firing rates."""

    def forward(self, images: Tensor, timesteps: int | None = None, potentials: bool = False) -> StudentOutput:
        """Run images (B, C, H, W) in [0, 1]."""
        values = (images - self.mean) / self.std
        active: list[Tensor] = []
        charged: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, SpikingLayer):
                charged.append(values.unsqueeze(0))
                values = values.relu()
                active.append(values.unsqueeze(0))
            else:
                values = layer(values)
        return StudentOutput(
            logits=values.unsqueeze(0), spikes=tuple(active), potentials=tuple(charged) if potentials else ()
        )


def register_all() -> None:
    """Offer them to the registry of this process."""
    register_backbone(RealImages)
    register_objective(ShuffledTails)
    register_objective(PermutedRelations)


def objectives_of(run: Run) -> dict[str, Any]:
    """Return the objectives that a run's images are to satisfy, as its method and settings say now."""
    register_all()
    return objectives_in_force(settled(run))


def as_ann(student: Student) -> AnnStudent:
    """Return the ANN of the same layers and initial weights."""
    return AnnStudent(list(student.layers), student.form, 1)


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(20260527)
