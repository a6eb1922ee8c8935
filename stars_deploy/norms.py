"""Batch normalisations of a network: what they remember of the training data, and what flows into them now.

Everything is keyed by the layer's name and listed in order of *execution*, which need not be that of definition.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor, nn

from stars_deploy.errors import TeacherError

BatchNorm = Union[nn.BatchNorm1d, nn.BatchNorm2d]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
#: Share of a layer's channels that may have no variance: dead channels are common, a dead layer passes nothing on.
MOST_DEAD = 0.9


@dataclass(frozen=True, kw_only=True)
class NormStatistics:
    """What one batch normalisation remembers of its training data; all arrays (C,)."""

    name: str
    mean: Tensor
    var: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float = 1e-5

    def deviation(self) -> Tensor:
        """Return ``sqrt(var + eps)``, (C,): what the layer divides by; positive for dead channels as well."""
        return (self.var + self.eps).sqrt()


@dataclass(frozen=True, kw_only=True)
class SeenNorms:
    """What passed through the batch normalisations in a forward pass: (B, C, ...) by name, in order of execution.

    ``inputs`` are what they normalise; ``activations``, where asked for, their rectified outputs.
    """

    inputs: dict[str, Tensor]
    activations: dict[str, Tensor]


def norm_layers(module: nn.Module) -> list[tuple[str, BatchNorm]]:
    """Return the batch normalisations of a module with their names, in order of definition."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BATCH_NORMS)]


def norm_statistics(module: nn.Module, order: tuple[str, ...]) -> list[NormStatistics]:
    """Return the statistics of the batch normalisations called `order`.

    Raises
    ------
    TeacherError
        If one has no running statistics, or they cannot be statistics.
    """
    layers = dict(norm_layers(module))
    return [_statistics(name, layers[name]) for name in order]


def _statistics(name: str, layer: BatchNorm) -> NormStatistics:
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None:
        raise TeacherError(
            name, "a BatchNorm without running statistics (track_running_stats=False)", "running_mean and running_var",
            "data-free distillation reads them; train the network with track_running_stats=True",
        )  # fmt: skip
    if not bool(torch.isfinite(mean).all() and torch.isfinite(var).all()) or bool((var < 0).any()):
        raise TeacherError(name, "running statistics that are negative or not finite", "running_var of at least 0")
    if not bool((var > 0).any()):
        raise TeacherError(
            name, "zero running variance in every channel", "positive running_var",
            "the layer never saw data that differ; train the network again",
        )  # fmt: skip
    gamma = torch.ones_like(mean) if layer.weight is None else layer.weight.detach()
    beta = torch.zeros_like(mean) if layer.bias is None else layer.bias.detach()
    return NormStatistics(name=name, mean=mean, var=var, gamma=gamma, beta=beta, eps=layer.eps)


def check_trained(statistics: list[NormStatistics]) -> None:
    """Refuse statistics that no training data ever changed: there is nothing in them to make images from.

    Raises
    ------
    TeacherError
        If all are those of a fresh layer, mean 0 and variance 1, or one has no variance in most of its channels.
    """
    fresh = [known.name for known in statistics if not bool(known.mean.any()) and bool((known.var == 1).all())]
    if fresh:
        raise TeacherError(
            fresh[0], "running mean 0 and variance 1 in every channel, as before any training",
            "what BatchNorm remembers of the training data",
            "the statistics were frozen from the start, or never saved: run some training data through the network in "
            "train mode, and save it anew",
        )  # fmt: skip
    for known in statistics:
        dead = float((known.var == 0).float().mean())
        if dead > MOST_DEAD:
            raise TeacherError(
                known.name, f"zero running variance in {dead:.0%} of the channels", f"at most {MOST_DEAD:.0%}",
                "most of the layer answers nothing, whatever it is shown; train the network again",
            )  # fmt: skip


@contextlib.contextmanager
def watched_norms(module: nn.Module, *, activations: bool = False) -> Iterator[SeenNorms]:
    """Collect what passes through every batch normalisation in one forward pass inside the block.

    Parameters
    ----------
    module : torch.nn.Module
    activations : bool
        Collect the rectified outputs as well.

    Raises
    ------
    TeacherError
        In the forward pass, if a layer runs twice: its statistics then belong to neither place.
    """
    seen = SeenNorms(inputs={}, activations={})

    def watch(name: str, layer: BatchNorm) -> torch.utils.hooks.RemovableHandle:
        def remember(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if name in seen.inputs:
                raise TeacherError(
                    name, "a BatchNorm that runs more than once", "one BatchNorm for each place in the network",
                    "give each place a BatchNorm of its own and train it so",
                )  # fmt: skip
            seen.inputs[name] = arguments[0]
            if activations:
                # Now, and as a new tensor: a ReLU(inplace=True) after the layer will overwrite its output.
                seen.activations[name] = torch.relu(output)

        return layer.register_forward_hook(remember)

    hooks = [watch(name, layer) for name, layer in norm_layers(module)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
