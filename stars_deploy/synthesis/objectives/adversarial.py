"""``adversarial``: images on which the student does not follow the teacher yet."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from stars_deploy.synthesis.objective import Objective, Observation


class Adversarial(Objective):
    """Adversarial: ``-mean 1[argmax agree] KL(p_T || p_S)``, at temperature 1 (CMI, FastDFKD).

    Only where both give the same class: where they differ already, the images are to stay as they are.
    """

    name = "adversarial"
    needs_student = True

    def forward(self, seen: Observation) -> Tensor:
        """Return the negative divergence of the student from the teacher."""
        return disagree(seen.logits[seen.part], seen.answers().mean_logits())


def disagree(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the objective for logits (B, K); see :class:`Adversarial`."""
    agree = (teacher.argmax(1) == student.argmax(1)).float()
    divergence = functional.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="none")
    return -(divergence.sum(1) * agree).mean()
