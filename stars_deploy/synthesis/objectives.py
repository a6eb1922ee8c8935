"""What synthetic images must satisfy: one function an objective, each with its formula and origin.

RCA and TAR are reconstructed from the abstract of STARS (arXiv 2605.27409): the formulas are ours. The base losses
are those of published data-free distillation (DeepInversion, DAFL, CMI, FastDFKD).
Symbols: ``z_l`` (B, C_l, H, W) is the input of the teacher's l-th batch norm, with running ``mu_l``, ``var_l`` and
affine ``gamma_l``, ``beta_l``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stars_deploy.norms import NormStatistics

#: Softness of the exceedance in TAR, in standard deviations.
TAIL_SOFTNESS = 0.25
#: Within one class, images shall differ by this root mean square distance, in standard deviations of their pixels,
PIXEL_MARGIN = 0.7
#: and their teacher features shall have at most this cosine (both from a pilot of ours).
FEATURE_COSINE = 0.93


def _per_channel(values: Tensor) -> Tensor:
    """Return (C, everything else) of (B, C, ...)."""
    return values.transpose(0, 1).flatten(1)


def match_norms(inputs: Sequence[Tensor], statistics: Sequence[NormStatistics]) -> Tensor:
    """BN: ``mean_l ||mean(z_l) - mu_l||_2 / ||sigma_l||_2 + ||var(z_l) - var_l||_2 / ||var_l||_2``.

    Biased variance; each term relative to the layer's own size, so that layers of any width count alike. After
    DeepInversion (Yin et al., CVPR 2020), whose form is not normalised.
    """
    loss = inputs[0].new_zeros(())
    for values, known in zip(inputs, statistics, strict=True):
        rows = _per_channel(values)
        loss = loss + (rows.mean(1) - known.mean).norm() / known.var.sqrt().norm()
        loss = loss + (rows.var(1, unbiased=False) - known.var).norm() / known.var.norm()
    return loss / len(inputs)


def match_labels(logits: Tensor, labels: Tensor, slack: float = 0.1) -> Tensor:
    """One-hot: ``mean max(CE(teacher(x), y) - slack, 0)`` (DAFL, Chen et al., ICCV 2019).

    The slack is ours: without it the generator is paid for ever purer prototypes and collapses to one image a class.
    """
    return functional.relu(functional.cross_entropy(logits, labels, reduction="none") - slack).mean()


def disagree(teacher: Tensor, student: Tensor) -> Tensor:
    """Adversarial: ``-mean 1[argmax agree] KL(p_T || p_S)`` (FastDFKD and CMI), for logits (B, K)."""
    agree = (teacher.argmax(1) == student.argmax(1)).float()
    divergence = functional.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="none")
    return -(divergence.sum(1) * agree).mean()


def relations(features: Tensor) -> Tensor:
    """Return the cosines (B, B) between the samples' features, (B, ...), centred over the batch."""
    rows = features.flatten(1)
    rows = functional.normalize(rows - rows.mean(0), dim=1, eps=1e-6)
    return rows @ rows.T


def align_relations(teacher: Tensor, student: Tensor) -> Tensor:
    """RCA (ours): the mean over pairs of different samples of ``(G_T - G_S)**2``.

    ``G`` are the Gram matrices of centred, normalised features: the teacher's pooled activations and the student's
    firing rates. Centring matters because rates are never negative. Reconstructed from the abstract of STARS.
    """
    squared = (relations(teacher) - relations(student)).square()
    count = len(squared)
    return (squared.sum() - squared.diagonal().sum()) / max(count * (count - 1), 1)


def soft_tail(kappa: Tensor, softness: float = TAIL_SOFTNESS) -> Tensor:
    """Return ``E sigmoid((u - kappa) / softness)`` for a standard normal u, by quadrature; same shape as `kappa`."""
    grid = torch.linspace(-8, 8, 1601)
    density = torch.exp(-grid.square() / 2)
    values = torch.sigmoid((grid - kappa.unsqueeze(-1)) / softness)
    return (values * density).sum(-1) / density.sum()


def match_tails(
    inputs: Sequence[Tensor], statistics: Sequence[NormStatistics], kappas: Sequence[Tensor], targets: Sequence[Tensor]
) -> Tensor:
    """TAR (ours): ``mean (e - pi)**2 / (pi (1 - pi))`` over layers, thresholds and channels.

    ``e = mean sigmoid((z - theta) / (s sigma))`` with ``theta = mu + kappa sigma``, s = 0.25, and ``pi`` the same
    expectation for a Gaussian (the *softened* tail; the hard one is 12 - 34 % lower).
    Reconstructed from the abstract of STARS.

    Parameters
    ----------
    inputs : sequence of Tensor, (B, C, ...)
    statistics : sequence of NormStatistics
    kappas : sequence of Tensor, (thresholds, C)
        Constants (Gaussian variant) or ``-beta / gamma``, the teacher's own ReLU boundary.
    targets : sequence of Tensor, (thresholds, C)
        :func:`soft_tail` of `kappas`, which stays the same from step to step.
    """
    loss = inputs[0].new_zeros(())
    for values, known, kappa, target in zip(inputs, statistics, kappas, targets, strict=True):
        rows = _per_channel(values)
        sigma = known.deviation()
        theta = known.mean + kappa * sigma  # (thresholds, C)
        exceed = torch.sigmoid((rows - theta.unsqueeze(-1)) / (TAIL_SOFTNESS * sigma.unsqueeze(-1))).mean(-1)
        loss = loss + ((exceed - target).square() / (target * (1 - target))).mean()
    return loss / len(inputs)


def gaussian_kappas(statistics: Sequence[NormStatistics], kappas: Sequence[float]) -> list[Tensor]:
    """Return the thresholds of the Gaussian variant of TAR: the same `kappas` for every channel."""
    return [torch.tensor(kappas).view(-1, 1).expand(-1, len(known.mean)) for known in statistics]


def boundary_kappas(statistics: Sequence[NormStatistics]) -> list[Tensor]:
    """Return the thresholds of the boundary variant of TAR: where the affine of each channel crosses 0.

    Clamped to 2.5 standard deviations: beyond, a batch holds too few samples of the tail.
    """
    return [
        (-known.beta / torch.where(known.gamma.abs() < 1e-3, torch.full_like(known.gamma, 1e-3), known.gamma))
        .clamp(-2.5, 2.5)
        .unsqueeze(0)
        for known in statistics
    ]


def spread_within_classes(images: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Diversity (ours): hinge on pairs of one class, ``relu(0.7 - d)/0.7 + relu(cos - 0.93)/0.07``, averaged.

    ``d`` is the root mean square pixel distance over the batch's pixel deviation; ``cos`` the cosine of the teacher's
    features. Against the collapse to one prototype a class.
    """
    pairs = torch.triu(labels[:, None] == labels[None, :], diagonal=1)
    if not bool(pairs.any()):
        return images.new_zeros(())
    first, second = pairs.nonzero(as_tuple=True)
    pixels = images.flatten(1)
    deviation = pixels.std().detach().clamp_min(1e-3)
    distance = ((pixels[first] - pixels[second]).square().mean(1) + 1e-8).sqrt() / deviation
    cosine = functional.cosine_similarity(features.flatten(1)[first], features.flatten(1)[second], dim=1)
    near = functional.relu(PIXEL_MARGIN - distance) / PIXEL_MARGIN
    alike = functional.relu(cosine - FEATURE_COSINE) / (1 - FEATURE_COSINE)
    return (near + alike).mean()
