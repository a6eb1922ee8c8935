"""One small network for each thing that the integer graph can say, with samples that are distinct.

Imported by tests as ``from conformance_graphs import GRAPHS``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
)

SAMPLES = 3
SHAPE = (2, 6, 5)


def _conv(rng, name, source, target, shape, largest=20, **options):
    return ConvProjection(
        name=name, source=source, target=target, weight=rng.integers(-largest, largest + 1, shape) & ~1, **options
    )


def _dense(rng, name, source, target, shape, largest=60, **options):
    return DenseProjection(
        name=name, source=source, target=target, weight=rng.integers(-largest, largest + 1, shape) & ~1, **options
    )


def _population(rng, name, shape, vth=300, **options):
    state = {"decay_u": 4096, "decay_v": 1024, "bias": rng.integers(-40, 90, shape), "scale": 32.0, **options}
    return Population(name=name, shape=shape, vth=vth, **state)


def _readout(rng, size=3, **options):
    state = {"bias": rng.integers(-30, 30, (size,)), "scale": 16.0, **options}
    return Population(name="readout", shape=(size,), **state)


def chain(seed=0, *, payload=(4, False), timesteps=5, **dynamics):
    """Image, convolution, population, dense readout."""
    rng = np.random.default_rng(seed)
    first = _conv(rng, "conv", "image", "hidden", (4, 2, 3, 2), padding=(1, 0), stride=(1, 2))
    shape = first.output_shape(SHAPE)
    return QuantizedGraph(
        input=QuantizedInput(
            name="image", shape=SHAPE, precision=Precision(bits=payload[0], signed=payload[1]), scale=15.0
        ),
        populations=(_population(rng, "hidden", shape, **dynamics), _readout(rng)),
        projections=(first, _dense(rng, "dense", "hidden", "readout", (3, int(np.prod(shape))))),
        timesteps=timesteps,
        labels=("a", "b", "c"),
    )


def deep():
    """Groups, dilation, and more than one hidden layer."""
    rng = np.random.default_rng(1)
    one = _conv(rng, "conv1", "image", "lif1", (4, 2, 3, 3), padding=(1, 1))
    two = _conv(rng, "conv2", "lif1", "lif2", (6, 2, 2, 2), largest=60, groups=2, dilation=(2, 1), padding=(1, 0))
    shape1 = one.output_shape(SHAPE)
    shape2 = two.output_shape(shape1)
    graph = chain()
    return replace(
        graph,
        populations=(_population(rng, "lif1", shape1), _population(rng, "lif2", shape2, vth=60), _readout(rng)),
        projections=(one, two, _dense(rng, "dense", "lif2", "readout", (3, int(np.prod(shape2))))),
    )


def per_neuron():
    """Another decay and threshold for each neuron."""
    rng = np.random.default_rng(2)
    graph = chain(2)
    shape = graph.populations[0].shape
    hidden = replace(
        graph.populations[0],
        decay_u=rng.integers(1000, 4097, shape),
        decay_v=rng.integers(200, 4000, shape),
        vth=rng.integers(100, 400, shape),
    )
    return replace(graph, populations=(hidden, graph.output))


def residual():
    """Two projections into one population, one of them from further back."""
    rng = np.random.default_rng(3)
    one = _conv(rng, "conv1", "image", "lif1", (3, 2, 3, 3), padding=(1, 1))
    two = _conv(rng, "conv2", "lif1", "lif2", (3, 3, 3, 3), largest=60, padding=(1, 1))
    skip = _conv(rng, "skip", "lif1", "lif3", (3, 3, 1, 1), largest=60)
    three = _conv(rng, "conv3", "lif2", "lif3", (3, 3, 3, 3), largest=60, padding=(1, 1))
    shape = one.output_shape(SHAPE)
    populations = [_population(rng, f"lif{index}", shape, vth=300 if index == 1 else 90) for index in (1, 2, 3)]
    return replace(
        chain(),
        populations=(*populations, _readout(rng)),
        projections=(one, two, three, skip, _dense(rng, "dense", "lif3", "readout", (3, int(np.prod(shape))))),
    )


def flat(inputs=12, neurons=8, **options):
    """A dense network on a flat input: (image, hidden, readout)."""
    rng = np.random.default_rng(4)
    payload = options.pop("payload", (4, False))
    return QuantizedGraph(
        input=QuantizedInput(
            name="image", shape=(inputs,), precision=Precision(bits=payload[0], signed=payload[1]), scale=1.0
        ),
        populations=(_population(rng, "hidden", (neurons,), **options), _readout(rng)),
        projections=(
            _dense(rng, "first", "image", "hidden", (neurons, inputs)),
            _dense(rng, "dense", "hidden", "readout", (3, neurons)),
        ),
        timesteps=6,
    )


def looped():
    """A population that feeds itself a timestep later."""
    rng = np.random.default_rng(5)
    graph = flat()
    loop = _dense(rng, "loop", "hidden", "hidden", (8, 8), delay=1)
    return replace(graph, projections=(graph.projections[0], loop, graph.projections[1]))


def delayed():
    """One delay for each synapse."""
    graph = flat()
    dense = graph.projections[1]
    late = replace(dense, delay=np.random.default_rng(6).integers(0, 4, dense.weight.shape))
    return replace(graph, projections=(graph.projections[0], late))


def delayed_convolution():
    """A convolution whose spikes arrive two timesteps later."""
    graph = deep()
    one, two, dense = graph.projections
    return replace(graph, projections=(one, replace(two, delay=2), dense))


def resetting():
    """State that starts from 0 again within a sample."""
    graph = chain(7)
    hidden = replace(graph.populations[0], reset_interval=3, reset_offset=1)
    return replace(graph, populations=(hidden, graph.output))


def biased():
    """An image that sets the biases of the first population."""
    rng = np.random.default_rng(8)
    graph = chain(8)
    first = _population(rng, "first", SHAPE, vth=3000, bias=np.zeros(SHAPE, np.int64))
    incoming = QuantizedInput(
        name="image", shape=SHAPE, precision=Precision(bits=16, signed=True), scale=64.0, biases="first"
    )
    conv = replace(graph.projections[0], source="first", weight=graph.projections[0].weight * 2)
    return replace(
        graph,
        input=incoming,
        populations=(first, replace(graph.populations[0], vth=60), graph.output),
        projections=(conv, graph.projections[1]),
    )


def firing_output():
    """An output that fires: read by its spikes."""
    graph = chain(9)
    return replace(graph, populations=(graph.populations[0], replace(graph.output, vth=90, decay_v=500)))


def wrapping():
    """Currents that leave 24 bits and wrap, membranes that clip."""
    graph = flat(payload=(16, False), decay_u=0, decay_v=0, vth=(1 << 17) - 1)
    strong = replace(graph.projections[0], weight=np.sign(graph.projections[0].weight) * 120 & ~1)
    return replace(graph, projections=(strong, graph.projections[1]))


def wide_weights():
    """Weights of 16 bits."""
    rng = np.random.default_rng(11)
    graph = flat(vth=30000)
    wide = Precision(bits=16, signed=True)
    first = replace(graph.projections[0], weight=rng.integers(-32768, 32768, (8, 12)), precision=wide)
    return replace(graph, projections=(first, graph.projections[1]))


def ungated():
    """Thresholds at both ends of their range."""
    graph = chain(12)
    vth = np.random.default_rng(12).choice([0, 1, 200, VTH_NEVER - 1, VTH_NEVER], graph.populations[0].shape)
    return replace(graph, populations=(replace(graph.populations[0], vth=vth), graph.output))


#: By what they show.
GRAPHS = {
    "chain": chain(),
    "deep": deep(),
    "current leaks": chain(13, decay_u=1500),
    "per neuron": per_neuron(),
    "residual sum": residual(),
    "loop": looped(),
    "synaptic delays": delayed(),
    "convolution with a delay": delayed_convolution(),
    "resets": resetting(),
    "image as bias": biased(),
    "spikes as input": flat(payload=(1, False), vth=60),
    "signed payloads": chain(14, payload=(6, True)),
    "wide payloads": chain(15, payload=(16, False), vth=60000),
    "wide weights": wide_weights(),
    "output that fires": firing_output(),
    "wraps and clips": wrapping(),
    "extreme thresholds": ungated(),
}


def samples_of(graph, frames=None):
    """Return distinct payloads: (B, *shape); (T, B, *shape) where the input is spikes, or with `frames`."""
    rng = np.random.default_rng(17)
    low, high = graph.input.precision.low, graph.input.precision.high
    over_time = graph.input.precision.bits == 1 if frames is None else frames
    shape = (graph.timesteps, SAMPLES, *graph.input.shape) if over_time else (SAMPLES, *graph.input.shape)
    return rng.integers(low, high + 1, shape)
