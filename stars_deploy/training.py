"""Training a teacher on real data, for the embedded default, the examples and the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stars_deploy.architectures import build_ann
from stars_deploy.data import EvaluationSet
from stars_deploy.errors import ConfigError, DataError
from stars_deploy.views import randomly_shifted


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How to train: epochs, batch size, peak learning rate of a one-cycle schedule, weight decay, shift and flip."""

    epochs: int = 15
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 5e-3
    shift: int = 2
    flip: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2 or self.shift < 0 or not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                "training", self, "epochs >= 1, batch >= 2 (batch norm needs two), shift >= 0, learning rate > 0"
            )


def train_teacher(
    spec: str,
    data: EvaluationSet,
    plan: TrainingPlan,
    seed: int,
    progress: Callable[[int, int, str], None],
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Train the built-in topology `spec` on `data`.

    Parameters
    ----------
    spec : str
        Such as ``vgg:16-32-64``.
    data : EvaluationSet
        The training part.
    plan : TrainingPlan
    seed : int
    progress : callable
        Called with (steps done, steps in all, text).

    Returns
    -------
    torch.nn.Sequential
        In eval mode.
    dict
        Description to store beside the weights: spec, input_shape, mean, std, labels.

    Raises
    ------
    ConfigError
        If `spec` is not understood, or the loss is no longer finite.
    DataError
        If there are fewer than 2 images.
    """
    if len(data.images) < 2:
        raise DataError(data.name, f"{len(data.images)} training images", "at least 2")
    torch.manual_seed(seed)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3)).clamp_min(1e-3)
    shape = tuple(images.shape[1:])
    module = build_ann(spec, shape, len(data.classes))
    _fit(module, (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), labels, plan, progress)
    description = {
        "spec": spec,
        "input_shape": list(shape),
        "mean": [round(value, 6) for value in mean.tolist()],
        "std": [round(value, 6) for value in std.tolist()],
        "labels": list(data.classes),
    }
    return module.eval(), description


def _fit(
    module: nn.Module, images: Tensor, labels: Tensor, plan: TrainingPlan, progress: Callable[[int, int, str], None]
) -> None:
    batch = min(plan.batch, len(images))
    steps = plan.epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=max(steps, 2))
    module.train()
    done = 0
    for epoch in range(plan.epochs):
        for indices in torch.split(torch.randperm(len(images))[: steps // plan.epochs * batch], batch):
            views = randomly_shifted(images[indices], plan.shift, plan.flip)
            loss = functional.cross_entropy(module(views), labels[indices], label_smoothing=0.05)
            if not math.isfinite(loss.item()):
                raise ConfigError(
                    "training", f"loss {loss.item()} in epoch {epoch + 1}", "a finite loss", "lower the learning rate"
                )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            done += 1
            if done % 20 == 0 or done == steps:
                progress(done, steps, f"epoch {epoch + 1}/{plan.epochs}, loss {loss.item():.3f}")
