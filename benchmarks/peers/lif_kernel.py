"""The compiled neuron update without current leak, against the reference's NumPy, on the same activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from timing import measure_runs

from stars_deploy.engine.neurons import update_narrow
from stars_deploy.populations import DECAY_ONE, STATE_EXP, Population
from stars_deploy.targets.reference import update

BATCH, TIMESTEPS, NEURONS = 8, 16, 32768
DECAY_V, VTH = 410, 200
#: Type of the sums, as the engine has them where spikes are binary and no sum reaches 2**15.
SUMS = np.int16


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return both times and the neuron updates a second of each, after checking that they compute the same."""
    generator = np.random.default_rng(request["seed"])
    activation = generator.integers(-150, 200, (BATCH, TIMESTEPS, NEURONS))
    population = Population(
        name="lif", shape=(NEURONS,), decay_v=DECAY_V, vth=VTH, bias=generator.integers(-20, 20, NEURONS)
    )
    kernel = CompiledPopulation(population, activation)
    kernel.run()
    spikes, membrane = run_numpy(population, activation)
    if not (np.array_equal(kernel.spikes, spikes) and np.array_equal(kernel.v, membrane)):
        return {"reason": "the kernel and NumPy disagree, so that their speeds mean nothing"}
    updates = BATCH * TIMESTEPS * NEURONS
    compiled = measure_runs(kernel.run, updates, request["seconds"])
    plain = measure_runs(lambda: run_numpy(population, activation), updates, request["seconds"])
    return {"kernel": compiled, "numpy": plain, "rate": float(spikes.mean()), "updates": updates}


class CompiledPopulation:
    """Arrays as the kernel takes them, made once, as the engine does."""

    def __init__(self, population: Population, activation: np.ndarray[Any, Any]) -> None:
        self.activation = activation.astype(SUMS)
        batch, timesteps, neurons = activation.shape
        self.bias = (population.bias << STATE_EXP).astype(np.int32).reshape(1, 1, -1)
        self.keep_u = np.zeros(neurons, np.int32)
        self.keep_v = np.full(neurons, DECAY_ONE - population.decay_v, np.int32)
        self.threshold = np.full(neurons, population.vth << STATE_EXP, np.int32)
        self.frames, self.resets = np.arange(timesteps), np.zeros(timesteps, bool)
        self.u, self.v = np.zeros((batch, neurons), np.int32), np.zeros((batch, neurons), np.int32)
        self.spikes = np.zeros(activation.shape, np.uint8)

    def run(self) -> None:
        """Advance all neurons over all timesteps, from rest."""
        self.u[:] = 0
        self.v[:] = 0
        update_narrow(
            self.activation, self.frames, self.bias, self.keep_u, self.keep_v, False, self.threshold, self.resets,
            0, len(self.frames), self.u, self.v, self.spikes, 0,
        )  # fmt: skip


def run_numpy(
    population: Population, activation: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the spikes, (B, T, N), and the final membrane, (B, N), of the reference's own update."""
    batch, timesteps, neurons = activation.shape
    u, v = np.zeros((batch, neurons), np.int64), np.zeros((batch, neurons), np.int64)
    fired = []
    for step in range(timesteps):
        u, v, spikes = update(population, u, v, activation[:, step], population.bias)
        fired.append(spikes)
    return np.stack(fired, axis=1), v
