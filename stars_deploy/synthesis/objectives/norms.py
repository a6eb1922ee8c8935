"""``bn``: the statistics of a batch shall be those that the teacher's batch normalisations remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from stars_deploy.config import Section
from stars_deploy.norms import NormStatistics, norm_statistics
from stars_deploy.synthesis.objective import Objective, Observation
from stars_deploy.teacher import Teacher


class NormOptions(Section):
    """``relative`` divides each term by the layer's own size, so that layers count alike; ``absolute`` does not.

    ``momentum`` m matches ``m * earlier batches + (1 - m) * this batch`` instead of the batch alone (FastDFKD).
    """

    form: Literal["relative", "absolute"] = "relative"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0


class NormMatching(Objective):
    """BN: ``mean_l ||mean(z_l) - mu_l||_2 / ||sigma_l||_2 + ||var(z_l) - var_l||_2 / ||var_l||_2``.

    ``z_l`` (B, C_l, ...) is the input of the teacher's l-th batch norm, with running ``mu_l`` and ``var_l``; the
    variance is biased. DeepInversion (Yin et al., CVPR 2020) has the sum, and not relative (``form: absolute``).
    """

    name = "bn"
    Options = NormOptions

    def __init__(self, teacher: Teacher, options: NormOptions) -> None:
        super().__init__(teacher, options)
        self.options = options
        self.statistics = norm_statistics(teacher.module, teacher.norms)
        self._latest: list[tuple[Tensor, Tensor]] = []
        if options.momentum:
            for index, known in enumerate(self.statistics):
                # Until a batch was finished, the statistics that are to be met stand for the earlier ones.
                self.register_buffer(f"mean_{index}", known.mean.clone())
                self.register_buffer(f"var_{index}", known.var.clone())

    def forward(self, seen: Observation) -> Tensor:
        """Return how far the statistics of the batch are from the teacher's."""
        found = [batch_statistics(values) for values in seen.inputs]
        if self.options.momentum:
            found = [self._with_earlier(index, mean, var) for index, (mean, var) in enumerate(found)]
            self._latest = [(mean.detach(), var.detach()) for mean, var in found]
        return match_norms(found, self.statistics, relative=self.options.form == "relative")

    def batch_done(self) -> None:
        """Remember the statistics of the batch."""
        for index, (mean, var) in enumerate(self._latest):
            self.get_buffer(f"mean_{index}").copy_(mean)
            self.get_buffer(f"var_{index}").copy_(var)
        self._latest = []

    def _with_earlier(self, index: int, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        momentum = self.options.momentum
        earlier_mean, earlier_var = self.get_buffer(f"mean_{index}"), self.get_buffer(f"var_{index}")
        return momentum * earlier_mean + (1 - momentum) * mean, momentum * earlier_var + (1 - momentum) * var


def batch_statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means and biased variances, each (C,), of (B, C, ...)."""
    mean, var = _Moments.apply(values)  # type: ignore[no-untyped-call]
    return mean, var


class _Moments(torch.autograd.Function):
    """Two passes forward and one backward: torch.var, or the formula written out, take three times as long."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        axes = [axis for axis in range(values.ndim) if axis != 1]
        mean = values.mean(axes, keepdim=True)
        ctx.save_for_backward(values, mean)
        return mean.flatten(), (values - mean).square_().mean(axes)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_mean: Tensor, of_var: Tensor) -> Tensor:
        values, mean = ctx.saved_tensors
        count = values.numel() // mean.numel()
        slope = of_var.view(mean.shape) * (2 / count)  # d var / dz = 2 (z - mean) / count; d mean / dz = 1 / count
        return torch.addcmul(of_mean.view(mean.shape) / count - slope * mean, values, slope)


def match_norms(
    found: Sequence[tuple[Tensor, Tensor]], statistics: Sequence[NormStatistics], *, relative: bool
) -> Tensor:
    """Return the distance of `found` (mean, var) by layer from `statistics`; see :class:`NormMatching`."""
    terms = []
    for (mean, var), known in zip(found, statistics, strict=True):
        # The sum of all variances cannot be 0: see norms.norm_statistics.
        sizes = (known.var.sqrt().norm(), known.var.norm()) if relative else (1.0, 1.0)
        terms.append((mean - known.mean).norm() / sizes[0] + (var - known.var).norm() / sizes[1])
    total = torch.stack(terms)
    return total.mean() if relative else total.sum()
