"""Random lowered float networks: two convolved and one dense population, sums, a loop, delays, and a readout.

Imported by tests as ``from float_networks import network``.
"""

from __future__ import annotations

import numpy as np

from stars_deploy.graph import IF, LI, LIF, Conv2d, CubaLIF, Delay, Input, Integrator, Linear, SpikingGraph

SHAPE = (2, 5, 4)
DT = 2e-3
#: Populations of :func:`network` that fire, in order of execution.
FIRING = ("first", "second", "third")
KINDS = (LIF, CubaLIF, IF)


def network(seed=0, kinds=(LIF, CubaLIF, IF), readout=Integrator, *, each=True, timesteps=6, spread=1.0):
    """Return a network with `kinds` of populations; with `each`, parameters of each neuron where its synapses allow it.

    ``image -> first -> second (and image, later) -> third (and itself, later) -> readout (and first, later)``
    """
    rng = np.random.default_rng(seed)
    conv = {
        "conv1": _conv(rng, "conv1", 3, 2, spread, kinds[0]),
        "conv2": _conv(rng, "conv2", 4, 3, spread, kinds[1]),
        "skip": _conv(rng, "skip", 4, 2, spread, kinds[1]),
    }
    dense = {
        "dense": _linear(rng, "dense", 6, 80, spread, kinds[2]),
        "loop": _linear(rng, "loop", 6, 6, spread, kinds[2]),
        "last": _linear(rng, "last", 3, 6, spread, readout),
        "early": _linear(rng, "early", 3, 60, spread, readout),
    }
    delays = {
        "skip_delay": np.array(DT * rng.integers(1, 3)),
        "loop_delay": DT * rng.integers(1, 4, 6) if each else np.array(DT),
        "early_delay": DT * rng.integers(0, 4, (3, 5, 4)) if each else np.array(2 * DT),
    }
    nodes = [Input(name="image", shape=SHAPE), *conv.values(), *dense.values(),
             *(Delay(name=name, delay=delay) for name, delay in delays.items()),
             _neuron(rng, "first", kinds[0], (3, 5, 4), each), _neuron(rng, "second", kinds[1], (4, 5, 4), each),
             _neuron(rng, "third", kinds[2], (6,), each), _neuron(rng, "readout", readout, (3,), each)]  # fmt: skip
    paths = ("image conv1 first", "first conv2 second", "image skip_delay skip second", "second dense third",
             "third loop_delay loop third", "third last readout", "first early_delay early readout")  # fmt: skip
    edges = [pair for path in paths for pair in zip(path.split(), path.split()[1:])]  # noqa: B905
    return SpikingGraph(nodes=tuple(nodes), edges=tuple(edges), dt=DT, timesteps=timesteps, labels=("a", "b", "c"))


def images(samples=12, seed=5, frames=0):
    """Return images (N, *SHAPE) in [0, 1], or spikes (T, N, *SHAPE) in `frames` timesteps; all samples distinct."""
    rng = np.random.default_rng(seed)
    if frames:
        return (rng.random((frames, samples, *SHAPE)) < 0.4).astype(float)
    return rng.random((samples, *SHAPE)) * rng.uniform(0.3, 1, (samples, 1, 1, 1))


def _conv(rng, name, out, channels, spread, kind):
    weight = spread * rng.normal(0.05, 0.5 / np.sqrt(channels), (out, channels, 3, 3))
    bias = np.zeros(out) if kind is CubaLIF else rng.normal(0.1, 0.1, (out, 5, 4))
    return Conv2d(name=name, weight=weight, bias=bias, padding=(1, 1))


def _linear(rng, name, out, features, spread, kind):
    weight = spread * rng.normal(0.02, 1.5 / np.sqrt(features), (out, features))
    return Linear(name=name, weight=weight, bias=np.zeros(out) if kind is CubaLIF else rng.normal(0.1, 0.1, out))


def _neuron(rng, name, kind, shape, each):
    """Gains are one for each channel of a convolution, or one for each neuron of a dense population."""
    by_channel = (shape[0], *[1] * (len(shape) - 1))

    def drawn(low, high, size):
        return np.broadcast_to(rng.uniform(low, high, size if each else 1), shape).copy()

    threshold = {"v_threshold": drawn(0.4, 0.8, shape)}
    tau = DT * drawn(1.5, 6.0, shape)
    gain = drawn(0.8, 1.2, by_channel)
    if kind is CubaLIF:
        tau_syn = DT * drawn(1.0, 4.0, shape)
        return CubaLIF(name=name, tau_mem=tau, tau_syn=tau_syn, r=gain * tau / DT, w_in=tau_syn / DT,
                       v_leak=drawn(-0.2, 0.4, shape), **threshold)  # fmt: skip
    if kind is LIF:
        return LIF(name=name, tau_mem=tau, r=gain * tau / DT, **threshold)
    if kind is IF:
        return IF(name=name, r=gain / DT, **threshold)
    return LI(name=name, tau_mem=tau, r=gain * tau / DT) if kind is LI else Integrator(name=name, r=gain / DT)
