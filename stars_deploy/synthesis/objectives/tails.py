"""``tar``: as much of each distribution shall lie beyond a threshold as in the teacher's own data.

Tail-aware regularisation, reconstructed from the abstract of STARS (arXiv 2605.27409); the formulas are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stars_deploy.config import Section
from stars_deploy.norms import NormStatistics, norm_statistics
from stars_deploy.spiking import THRESHOLD
from stars_deploy.synthesis.objective import Objective, Observation
from stars_deploy.teacher import Teacher

#: Softness of the exceedance, in standard deviations.
SOFTNESS = 0.25
#: Largest kappa of the boundary variant: beyond it a batch holds too few samples of the tail.
FARTHEST = 2.5


class TailOptions(Section):
    """Which ``thresholds``, the ``kappas`` of the Gaussian ones, and how the distance is measured.

    ``chi`` weighs ``(e - pi)^2`` by the variance of a share, ``pi (1 - pi)``; ``absolute`` is ``|e - pi|``.
    """

    thresholds: Literal["gaussian", "boundary", "student"] = "boundary"
    kappas: Annotated[tuple[Annotated[float, Field(ge=-3, le=3)], ...], Field(min_length=1)] = (1.0, 2.0)
    distance: Literal["chi", "absolute"] = "chi"


class TailMatching(Objective):
    """TAR (ours): ``mean (e - pi)^2 / (pi (1 - pi))`` over layers, thresholds and channels.

    ``e = mean sigmoid((z - theta) / (s sigma))`` is the soft exceedance over ``theta = mu + kappa sigma``, s = 0.25.

    - ``gaussian``: the same kappas for each channel; ``pi`` is the *softened* tail of a Gaussian (the hard one is 12 to
      34 % lower).
    - ``boundary``: ``kappa = -beta / gamma``, where the teacher's own affine crosses 0 and its ReLU starts; ``pi`` as
      above.
    - ``student``: ``e`` is the share, softened alike, of the student's membrane potentials beyond its threshold, and
      ``pi`` the teacher's exceedance over its ReLU boundary on the same images; channel by channel where the layers
      have as many channels, else over the whole layer. Student layers are paired with the teacher's by depth.
    """

    name = "tar"
    Options = TailOptions

    def __init__(self, teacher: Teacher, options: TailOptions) -> None:
        super().__init__(teacher, options)
        self.options = options
        self.statistics = norm_statistics(teacher.module, teacher.norms)
        boundary = options.thresholds != "gaussian"
        self.kappas = boundary_kappas(self.statistics) if boundary else gaussian_kappas(self.statistics, options.kappas)
        self.targets = [soft_tail(kappa) for kappa in self.kappas]
        # On the instance: only this variant runs the student, and only its potentials are kept.
        self.needs_student = self.needs_potentials = options.thresholds == "student"  # type: ignore[misc]

    def forward(self, seen: Observation) -> Tensor:
        """Return the distance between the shares beyond the thresholds and what they should be."""
        if self.options.thresholds == "student":
            return self._match_student(seen)
        found = [
            exceedance(values, known, kappa)
            for values, known, kappa in zip(seen.inputs, self.statistics, self.kappas, strict=True)
        ]
        return self._distance(found, self.targets)

    def _match_student(self, seen: Observation) -> Tensor:
        potentials = seen.answers().potentials
        found, wanted = [], []
        for index, values in enumerate(potentials):
            paired = paired_layer(index, len(potentials), len(seen.inputs))
            share = rectified_share(seen.inputs[paired][seen.part], self.statistics[paired], self.kappas[paired])
            fired = torch.sigmoid((values - THRESHOLD) / (SOFTNESS * THRESHOLD)).transpose(0, 2).flatten(1).mean(1)
            if len(share) != len(fired):
                share, fired = share.mean(0, keepdim=True), fired.mean(0, keepdim=True)
            # The teacher's exceedance is the measure here, not something to be moved.
            wanted.append(share.detach().clamp(0.01, 0.99))
            found.append(fired)
        return self._distance(found, wanted)

    def _distance(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        terms = []
        for share, target in zip(found, wanted, strict=True):
            distance = (share - target).abs()
            if self.options.distance == "chi":
                distance = distance.square() / (target * (1 - target))
            terms.append(distance.mean())
        return torch.stack(terms).mean()


def paired_layer(index: int, count: int, others: int) -> int:
    """Return which of `others` layers is as deep as layer `index` of `count`: the last is paired with the last."""
    return round((index + 1) * others / count) - 1 if (index + 1) * others >= count else 0


def exceedance(values: Tensor, known: NormStatistics, kappa: Tensor) -> Tensor:
    """Return the soft share of (B, C, ...) beyond ``mu + kappa sigma``, (thresholds, C), for kappa (thresholds, C)."""
    rows = values.transpose(0, 1).flatten(1)
    sigma = known.deviation()
    # One multiply-add for (z - theta) / (s sigma), and no broadcast over thresholds before it has to be.
    scaled = (rows - known.mean.unsqueeze(1)) / (SOFTNESS * sigma).unsqueeze(1)
    return torch.stack([torch.sigmoid(scaled - (level / SOFTNESS).unsqueeze(1)).mean(1) for level in kappa])


def rectified_share(values: Tensor, known: NormStatistics, kappa: Tensor) -> Tensor:
    """Return the soft share, (C,), of (B, C, ...) that the ReLU after this batch norm lets pass."""
    share = exceedance(values, known, kappa)[0]
    return torch.where(known.gamma < 0, 1 - share, share)


def soft_tail(kappa: Tensor, softness: float = SOFTNESS) -> Tensor:
    """Return ``E sigmoid((u - kappa) / softness)`` for a standard normal u, by quadrature; same shape as `kappa`."""
    grid = torch.linspace(-8, 8, 1601, device=kappa.device)
    density = torch.exp(-grid.square() / 2)
    values = torch.sigmoid((grid - kappa.unsqueeze(-1)) / softness)
    return (values * density).sum(-1) / density.sum()


def gaussian_kappas(statistics: Sequence[NormStatistics], kappas: Sequence[float]) -> list[Tensor]:
    """Return the thresholds of the Gaussian variant, each (thresholds, C): the same `kappas` for every channel."""
    return [known.mean.new_tensor(kappas).view(-1, 1).expand(-1, len(known.mean)) for known in statistics]


def boundary_kappas(statistics: Sequence[NormStatistics]) -> list[Tensor]:
    """Return the thresholds of the boundary variant, each (1, C): where the affine of each channel crosses 0.

    Clamped to 2.5 standard deviations: beyond, a batch holds too few samples of the tail.
    """
    kappas = [(-known.beta / _away_from_zero(known.gamma)).clamp(-FARTHEST, FARTHEST) for known in statistics]
    return [kappa.unsqueeze(0) for kappa in kappas]


def _away_from_zero(gamma: Tensor) -> Tensor:
    """Return gamma, at least 0.001 of its sign: the sign says on which side of the boundary the ReLU passes."""
    least = torch.where(gamma < 0, -1e-3, 1e-3).to(gamma)
    return torch.where(gamma.abs() < 1e-3, least, gamma)
