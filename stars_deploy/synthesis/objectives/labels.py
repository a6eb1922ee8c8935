"""``onehot`` and ``balance``: what the teacher shall answer, image by image and on average."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from stars_deploy.config import Section
from stars_deploy.synthesis.objective import Objective, Observation
from stars_deploy.teacher import Teacher


class OneHotOptions(Section):
    """``slack`` [nats] of cross-entropy costs nothing."""

    slack: Annotated[float, Field(ge=0)] = 0.1


class OneHot(Objective):
    """One-hot: ``mean max(CE(teacher(x), y) - H(y) - slack, 0)`` (DAFL, Chen et al., ICCV 2019).

    y is the class of each image, or two classes between which it shall be (see ``synthesis.ambiguous``), whose entropy
    H(y) no image can undercut. Slack and ambiguous images are ours: without slack the generator is paid for ever purer
    prototypes and collapses to one image a class, and without images between classes the student is never shown where
    the teacher draws the line.
    """

    name = "onehot"
    Options = OneHotOptions

    def __init__(self, teacher: Teacher, options: OneHotOptions) -> None:
        super().__init__(teacher, options)
        self.slack = options.slack

    def forward(self, seen: Observation) -> Tensor:
        """Return the cross-entropy above the slack."""
        return match_labels(seen.logits, seen.targets, self.slack)


def match_labels(logits: Tensor, targets: Tensor, slack: float) -> Tensor:
    """Return the mean excess of the cross-entropy of logits with targets, both (B, K); see :class:`OneHot`."""
    divergence = functional.kl_div(logits.log_softmax(1), targets, reduction="none").sum(1)
    return functional.relu(divergence - slack).mean()


class Balance(Objective):
    """Class balance: ``log K - H(mean_b softmax(teacher(x_b)))``, 0 where all K classes are answered alike.

    The information entropy loss of DAFL (Chen et al., ICCV 2019) and the batch entropy of DFQ (Choi et al., CVPRW
    2020), for generators that are not told a class.
    """

    name = "balance"

    def forward(self, seen: Observation) -> Tensor:
        """Return what the mean answer lacks of the largest entropy."""
        mean = seen.logits.softmax(1).mean(0)
        return math.log(seen.logits.shape[1]) + (mean * mean.clamp_min(1e-8).log()).sum()
