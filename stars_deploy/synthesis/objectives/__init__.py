"""What synthetic images must satisfy: one class an objective, each with its formula and where it comes from.

RCA and TAR are reconstructed from the abstract of STARS (arXiv 2605.27409): the formulas are ours. The base losses are
those of published data-free distillation.
"""

from stars_deploy.synthesis.objectives.adversarial import Adversarial
from stars_deploy.synthesis.objectives.diversity import Diversity
from stars_deploy.synthesis.objectives.labels import Balance, OneHot
from stars_deploy.synthesis.objectives.norms import NormMatching
from stars_deploy.synthesis.objectives.relations import RelationalConsistency
from stars_deploy.synthesis.objectives.tails import TailMatching
from stars_deploy.synthesis.objectives.variation import TotalVariation

#: The objectives that ship.
OBJECTIVES = (
    NormMatching, OneHot, Adversarial, RelationalConsistency, TailMatching, Diversity, Balance, TotalVariation,
)  # fmt: skip

__all__ = [
    "OBJECTIVES",
    "Adversarial",
    "Balance",
    "Diversity",
    "NormMatching",
    "OneHot",
    "RelationalConsistency",
    "TailMatching",
    "TotalVariation",
]
