"""``rca``: teacher and student shall see the same relations between the samples of a batch.

Relational consistency alignment, reconstructed from the abstract of STARS (arXiv 2605.27409); the formulas are ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from stars_deploy.config import Section
from stars_deploy.synthesis.objective import Objective, Observation, pooled
from stars_deploy.teacher import Teacher

#: Temperature of the row-wise softmax over cosines: neighbours count, the far ones little.
ROW_TEMPERATURE = 0.2


class RelationOptions(Section):
    """How relations are compared, and between which features: the last layer's, or the logits."""

    similarity: Literal["gram", "cka", "softmax"] = "gram"
    features: Literal["last", "logits"] = "last"


class RelationalConsistency(Objective):
    """RCA (ours), between the teacher's features and the student's firing rates, (B, C), *centred over the batch*.

    - ``gram``: ``mean_{i != j} (G_T - G_S)_ij^2``, G the cosines between samples.
    - ``cka``: ``1 - <K_T, K_S> / (||K_T|| ||K_S||)``, K the Gram matrices of the centred features: one minus linear CKA
      (Kornblith et al., ICML 2019).
    - ``softmax``: ``mean_i KL(softmax_j G_T,ij / t || softmax_j G_S,ij / t)`` over j != i, t = 0.2, as similarity-based
      distillation has it (after Tung & Mori, ICCV 2019, whose rows are L2-normalised).

    Centring matters because firing rates are never negative: all cosines would be near 1.
    """

    name = "rca"
    needs_student = True
    Options = RelationOptions

    def __init__(self, teacher: Teacher, options: RelationOptions) -> None:
        super().__init__(teacher, options)
        self.options = options

    def forward(self, seen: Observation) -> Tensor:
        """Return the distance between the relations that the two networks see."""
        answers = seen.answers()
        if self.options.features == "logits":
            return self.compare(seen.logits[seen.part], answers.mean_logits())
        return self.compare(pooled(seen.features[seen.part]), pooled(answers.rates()[-1]))

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the distance between the relations of features (B, F) and (B, G)."""
        return align_relations(teacher, student, self.options.similarity)


def centred(features: Tensor) -> Tensor:
    """Return (B, ...) as rows (B, F) less their mean over the batch."""
    rows = features.flatten(1)
    return rows - rows.mean(0)


def relations(features: Tensor) -> Tensor:
    """Return the cosines (B, B) between the samples' features, (B, ...), centred over the batch."""
    rows: Tensor = functional.normalize(centred(features), dim=1, eps=1e-6)
    return rows @ rows.T


def align_relations(teacher: Tensor, student: Tensor, similarity: str = "gram") -> Tensor:
    """Return the distance between relations; formulas: :class:`RelationalConsistency`."""
    if similarity == "cka":
        return torch.rsub(linear_cka(teacher, student), 1)
    first, second = relations(teacher), relations(student)
    count = len(first)
    if similarity == "softmax":
        others = ~torch.eye(count, dtype=torch.bool, device=first.device)
        rows = [(gram[others].view(count, count - 1) / ROW_TEMPERATURE).log_softmax(1) for gram in (first, second)]
        return functional.kl_div(rows[1], rows[0], log_target=True, reduction="batchmean")
    squared = (first - second).square()
    return (squared.sum() - squared.diagonal().sum()) / max(count * (count - 1), 1)


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Return the linear centred kernel alignment of features (B, F) and (B, G), in [0, 1]."""
    grams = [rows @ rows.T for rows in (centred(first), centred(second))]
    sizes = torch.linalg.norm(grams[0]) * torch.linalg.norm(grams[1])
    return torch.div((grams[0] * grams[1]).sum(), sizes.clamp_min(1e-12))
