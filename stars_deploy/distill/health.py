"""Channels of the student that never fire or always do: found, told of, and brought back.

A spiking channel whose current never reaches the threshold has no gradient where its surrogate ends, and one that fires
at every timestep says nothing; both stay so unless something is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stars_deploy.norms import BATCH_NORMS, BatchNorm
from stars_deploy.spiking import THRESHOLD, SpikingLayer, Student, StudentOutput

#: Firing rate [spikes/timestep] beyond which a channel is saturated: it tells less than a third of a bit a timestep.
SATURATED = 0.95
#: Rounds in a row after which a channel is dead or saturated, and not just without a fitting image in the batch.
PATIENCE = 5
#: Standard deviations of a channel's current above its mean that shall fire again: 16 % of Gaussian currents. With two
#: deviations, 2 %, revived channels were silent again soon, and a student killed on purpose learnt little.
REACH = 1.0


@dataclass(frozen=True, kw_only=True)
class LayerHealth:
    """Share of a layer's channels that are dead and that are saturated."""

    dead: float
    saturated: float


class HealthWatch(nn.Module):
    """Counts, for every channel, the rounds in a row in which it never fired, or always.

    The counts are buffers: they belong to the state of a distillation.

    Parameters
    ----------
    student : Student
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self._norms = _norms_before_neurons(student)
        for index, channels in enumerate(_channels_of_neurons(student)):
            for kind in ("silent", "busy"):
                self.register_buffer(f"{kind}_{index}", torch.zeros(channels, dtype=torch.int64))

    def look(
        self, output: StudentOutput, average: Callable[[Tensor], Tensor] = lambda value: value
    ) -> list[LayerHealth]:
        """Take note of a round's last batch, and return how each layer is; `average` is over processes."""
        for index, spikes in enumerate(output.spikes[: len(self._norms)]):
            rates = average(spikes.detach().transpose(0, 2).flatten(1).mean(1))  # (T, B, C, ...) by channel
            for kind, now in (("silent", rates == 0), ("busy", rates > SATURATED)):
                count = self.get_buffer(f"{kind}_{index}")
                count.copy_(torch.where(now, count + 1, torch.zeros_like(count)))
        return self.now()

    def now(self) -> list[LayerHealth]:
        """Return how each layer was at the last look."""
        states = [self._ill(index) for index in range(len(self._norms))]
        return [
            LayerHealth(dead=float(dead.float().mean()), saturated=float(saturated.float().mean()))
            for dead, saturated in states
        ]

    def revive(self, student: Student, optimizer: torch.optim.Optimizer) -> int:
        """Shift the batch norms of dead and saturated channels, and return how many.

        With the current after a batch norm of mean beta and deviation gamma: a dead channel gets
        ``beta = max(beta, i - |gamma|)``, i the constant current that fires at the last of T timesteps,
        ``i (1 - decay^T) / (1 - decay) = threshold``; a saturated one ``beta = min(beta, threshold)``, so that half of
        its inputs fire at every timestep. What Adam remembers of these shifts is forgotten.
        """
        changed = 0
        for index, norm in enumerate(self._norms):
            if norm is None or norm.bias is None:
                continue
            dead, saturated = self._ill(index)
            if not bool((dead | saturated).any()):
                continue
            with torch.no_grad():
                reach = REACH * (norm.weight.abs() if norm.weight is not None else torch.ones_like(norm.bias))
                lifted = torch.maximum(norm.bias, _firing_current(student, index) - reach)
                norm.bias.copy_(torch.where(dead, lifted, norm.bias))
                norm.bias.copy_(torch.where(saturated, norm.bias.clamp(max=THRESHOLD), norm.bias))
            for moment in ("exp_avg", "exp_avg_sq"):
                if norm.bias in optimizer.state:
                    optimizer.state[norm.bias][moment][dead | saturated] = 0
            self.get_buffer(f"silent_{index}")[dead] = 0
            self.get_buffer(f"busy_{index}")[saturated] = 0
            changed += int((dead | saturated).sum())
        return changed

    def _ill(self, index: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"silent_{index}") >= PATIENCE, self.get_buffer(f"busy_{index}") >= PATIENCE


def lately(history: Sequence[Mapping[str, float]]) -> list[LayerHealth]:
    """Return the worst of each layer in the last rounds of a history, as many as a channel has to be ill.

    The last round alone would hide a channel that dies again and again: once brought back, its count begins anew.
    """
    recent = [entry for entry in history[-PATIENCE:] if "dead/1" in entry]
    layers = sum(name.startswith("dead/") for name in recent[-1]) if recent else 0
    return [
        LayerHealth(**{kind: max(entry[f"{kind}/{number}"] for entry in recent) for kind in ("dead", "saturated")})
        for number in range(1, layers + 1)
    ]


def advise(layers: Sequence[LayerHealth]) -> list[str]:
    """Return a sentence for each layer in which many channels are dead or saturated, with what can be done."""
    texts = []
    for number, layer in enumerate(layers, start=1):
        if layer.dead > 0.2:
            texts.append(
                f"{layer.dead:.0%} of the channels of spiking layer {number} never fire: a smaller student would do as "
                "well, or a slower leak (student.decay), more timesteps, or for inherit a smaller student.balance"
            )
        if layer.saturated > 0.2:
            texts.append(
                f"{layer.saturated:.0%} of the channels of spiking layer {number} fire at every timestep: a faster "
                "leak (student.decay), or for inherit a larger student.balance"
            )
    return texts


def _norms_before_neurons(student: Student) -> tuple[BatchNorm | None, ...]:
    layers = list(student.layers)
    before = [layers[place - 1] for place, layer in enumerate(layers) if isinstance(layer, SpikingLayer)]
    return tuple(layer if isinstance(layer, BATCH_NORMS) else None for layer in before)


def _channels_of_neurons(student: Student) -> list[int]:
    counts, latest = [], 0
    for layer in student.layers:
        if isinstance(layer, nn.Conv2d):
            latest = layer.out_channels
        elif isinstance(layer, nn.Linear):
            latest = layer.out_features
        elif isinstance(layer, SpikingLayer):
            counts.append(latest)
    return counts


def _firing_current(student: Student, index: int) -> float:
    decay = [layer for layer in student.layers if isinstance(layer, SpikingLayer)][index].model.decay
    return THRESHOLD * (1 - decay) / (1 - decay**student.timesteps)
