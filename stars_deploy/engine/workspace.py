"""The arrays in which a chunk of samples is run over a slice of time, and how large both may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stars_deploy.engine.lanes import UNIT
from stars_deploy.engine.plan import Layer, Numbers, Plan, is_graded
from stars_deploy.errors import ConfigError

#: Samples are run together up to this size [bytes]: enough to hide what calling the kernels costs, little enough that
#: what one layer wrote is still in a cache when the next one reads it.
CACHE = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How many samples and timesteps are run at a time."""

    samples: int
    steps: int


def choose_extent(plan: Plan, samples: int, memory: int) -> Extent:
    """Return the chunk and slice for one thread that has `memory` [bytes].

    Raises
    ------
    ConfigError
        If one sample and timestep need more than that.
    """
    steps = plan.graph.timesteps
    while steps > 1 and sum(_bytes_of(plan, steps)) > memory:
        steps = -(-steps // 2)
    shared, each = _bytes_of(plan, steps)
    if shared + each > memory:
        raise ConfigError(
            "memory", f"{memory} bytes for a thread", f"at least {shared + each}, for one sample and one timestep",
            "raise --memory or use fewer threads",
        )  # fmt: skip
    return Extent(samples=max(1, min(samples, (min(memory, CACHE + shared) - shared) // each)), steps=steps)


def _bytes_of(plan: Plan, steps: int) -> tuple[int, int]:
    """Return the bytes that a thread needs for all of its samples together, and those for each sample."""
    source = plan.graph.input
    pixels, widest = int(np.prod(source.shape)), _widest(plan)
    # Counters; room for the events of a frame, for those that a pixel sees, and for their values in each type of sums.
    shared = 4 * steps * pixels + widest * (4 + 4 + 8 + 2 * (2 + 4 + 4 + 8))
    # What the input sent, the image as it came and as it is laid out, and where it is not 0.
    each = 4 * pixels * (plan.history[source.name] + steps) + (8 + 4 + 1) * pixels * steps
    for layer in plan.layers:
        size, history, states = layer.size, plan.history[layer.name], layer.state.itemsize
        shared += 8 * steps * size + 64 * plan.graph.timesteps
        each += size * (2 * history + steps + 2 * states)
        each += size * (states + 8) * steps * (source.biases == layer.name)
    return shared, each + sum(_scratch_bytes(plan, slot, steps) for slot in range(max(map(len, plan.blocks))))


def _widest(plan: Plan) -> int:
    return max(int(np.prod(plan.graph.shape_of(name))) for name in plan.history)


def _scratch_bytes(plan: Plan, slot: int, steps: int) -> int:
    return max(_activation_bytes(block[slot], steps) for block in plan.blocks if slot < len(block))


def _activation_bytes(layer: Layer, steps: int) -> int:
    frames = steps + 1
    return frames * (layer.size + layer.slack) * (layer.sums.itemsize + 1)


def padded_zeros(shape: tuple[int, ...], kind: npt.DTypeLike) -> Numbers:
    """Return zeros with some more values behind them, for kernels that read a vector at the end of the last frame."""
    count = math.prod(shape)
    return np.zeros(count + UNIT, kind)[:count].reshape(shape)


class Workspace:
    """Arrays for a chunk of samples and a slice of timesteps; made once and used for one chunk after another.

    Parameters
    ----------
    plan : Plan
    extent : Extent

    Attributes
    ----------
    frames : dict of str to array, (samples, history + steps, neurons)
        What the input and each population sent; the first `history` frames are from before the slice.
    u, v : dict of str to array, (samples, neurons)
    """

    def __init__(self, plan: Plan, extent: Extent) -> None:
        self.plan, self.extent = plan, extent
        samples, steps = extent.samples, extent.steps
        source = plan.graph.input.name
        kinds = {source: np.int32 if is_graded(plan.graph, source) else np.uint8}
        sizes = {source: int(np.prod(plan.graph.input.shape))}
        sizes.update({layer.name: layer.size for layer in plan.layers})
        self.frames: dict[str, Numbers] = {
            name: padded_zeros((samples, plan.history[name] + steps, size), kinds.get(name, np.uint8))
            for name, size in sizes.items()
        }
        self.u, self.v = (
            {layer.name: np.zeros((samples, layer.size), layer.state) for layer in plan.layers} for _ in range(2)
        )
        widest = _widest(plan)
        # Events are moved in vectors, which reach behind the last one.
        self.rows, self.seen = np.empty(widest + UNIT, np.int32), np.empty(widest + UNIT, np.int32)
        self.by, self.seen_by = (
            {layer.sums: np.empty(widest + UNIT, layer.sums) for layer in plan.layers} for _ in range(2)
        )
        self.ends = np.empty(widest + 1, np.int64)
        slots = range(max(map(len, plan.blocks)))
        self._scratch = [np.empty(samples * _scratch_bytes(plan, slot, steps), np.uint8) for slot in slots]

    def activation(self, slot: int, layer: Layer, samples: int, frames: int) -> tuple[Numbers, Numbers]:
        """Return room for the activation and the touched marks of a layer, (samples, frames, neurons + slack)."""
        shape = (samples, frames, layer.size + layer.slack)
        count, width = math.prod(shape), layer.sums.itemsize
        used = self._scratch[slot][: count * (width + 1)]
        return used[: count * width].view(layer.sums).reshape(shape), used[count * width :].reshape(shape)

    def start(self) -> None:
        """Forget everything that was sent; states start from 0 where a chunk's first timestep resets them."""
        for name, history in self.plan.history.items():
            if history:
                self.frames[name][:, :history] = 0

    def carry(self, steps: int) -> None:
        """Move what was sent in the last of `steps` timesteps to before the next slice."""
        for name, history in self.plan.history.items():
            if history:
                self.frames[name][:, :history] = self.frames[name][:, steps : steps + history].copy()
