"""Networks that are written as NIR files and run in other tools: students, and a graph for each thing of a file."""

from __future__ import annotations

import itertools

import numpy as np

from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    Conv2d,
    CubaLIF,
    Delay,
    Input,
    Integrator,
    Linear,
    Normalize,
    Pool2d,
    Scale,
    SpikingGraph,
)

TIMESTEPS = 10
DT = 1e-3
IMAGE = Input(name="image", shape=(2, 8, 8))
READOUT = Integrator(name="readout", r=1 / DT)
#: A student that fires in every layer, of each kind of population, and one with two currents into a population.
KINDS = ("lif", "cuba", "if", "residual")


def conv(rng, name, into, out, stride=1, kernel=(3, 3), groups=1, bias=None):
    """A convolution with seeded weights, padded to keep its size at stride 1."""
    weight = rng.normal(0.1, 1 / np.sqrt(np.prod(kernel) * into / groups), (out, into // groups, *kernel))
    padding = (kernel[0] // 2, kernel[1] // 2)
    bias = rng.normal(0, 0.1, out) if bias is None else bias
    return Conv2d(name=name, weight=weight, bias=bias, stride=(stride, stride), padding=padding, groups=groups)


def dense(rng, into=64):
    return Linear(name="dense", weight=rng.normal(0, 0.2, (5, into)), bias=rng.normal(0, 0.1, 5))


def lif(name, **parameters):
    return LIF(**{"name": name, "tau_mem": 10 * DT, "r": 4.0, "v_threshold": 0.5, **parameters})


def chain(*nodes, aside=(), edges=()):
    """Nodes one after the other, with others and their edges beside them."""
    names = [node.name for node in nodes]
    pairs = (*itertools.pairwise(names), *edges)
    return SpikingGraph(nodes=(*nodes, *aside), edges=pairs, dt=DT, timesteps=TIMESTEPS)


def student(kind: str, seed: int) -> SpikingGraph:
    """Convolutions, populations and a dense readout behind a normalisation."""
    rng = np.random.default_rng(seed)

    def population(name):
        threshold = float(rng.uniform(0.4, 0.6))
        if kind == "cuba":
            return CubaLIF(name=name, tau_syn=2 * DT, tau_mem=10 * DT, r=5.0, w_in=1.5, v_threshold=threshold)
        if kind == "if":
            return IF(name=name, r=0.5 / DT, v_threshold=threshold)
        return lif(name, v_threshold=threshold)

    normalize = Normalize(name="normalize", mean=np.array([0.4, 0.5]), std=np.array([0.25, 0.3]))
    layers = [conv(rng, "conv1", 2, 4, stride=2), population("first"), conv(rng, "conv2", 4, 4), population("second")]
    nodes = [IMAGE, normalize, *layers, dense(rng), READOUT]
    if kind != "residual":
        return chain(*nodes)
    aside = (conv(rng, "aside", 2, 4, stride=2),)
    return chain(*nodes, aside=aside, edges=(("normalize", "aside"), ("aside", "second")))


def delayed_aside(graph: SpikingGraph) -> SpikingGraph:
    """The residual student with its second current a timestep late."""
    edges = [edge for edge in graph.edges if edge != ("aside", "second")]
    late = Delay(name="late", delay=DT)
    return graph.with_nodes((*graph.nodes, late), (*edges, ("aside", "late"), ("late", "second")))


def features() -> dict[str, SpikingGraph]:
    """One small graph for each thing that NIR can say and not every tool understands."""
    rng = np.random.default_rng(5)

    def first(**options):
        return conv(rng, "conv1", 2, 4, stride=2, **options)

    pooled = (IMAGE, conv(rng, "conv1", 2, 4), lif("first"))
    window = {"name": "pool", "kernel": (2, 2), "stride": (2, 2)}
    scale = Scale(name="scale", scale=rng.uniform(0.5, 1.0, (4, 4, 4)))
    loop = {
        "aside": (Delay(name="late", delay=DT), conv(rng, "back", 4, 4)),
        "edges": (("first", "late"), ("late", "back"), ("back", "first")),
    }
    beside = {
        "aside": (Linear(name="direct", weight=rng.normal(0, 0.2, (5, 128)), bias=np.zeros(5)),),
        "edges": (("image", "direct"), ("direct", "readout")),
    }
    uneven = rng.uniform(0.4, 0.6, (4, 4, 4))
    second = lif("second", v_threshold=0.3)
    depthwise = conv(rng, "conv2", 4, 4, groups=4)
    border = rng.normal(0, 0.1, (4, 4, 4))
    return {
        "spikes as output": chain(IMAGE, first(), lif("first"), dense(rng), second),
        "kernel 3x5": chain(IMAGE, first(kernel=(3, 5)), lif("first"), dense(rng), READOUT),
        "sum pooling": chain(*pooled, Pool2d(**window), dense(rng), READOUT),
        "average pooling": chain(*pooled, Pool2d(**window, average=True), dense(rng), READOUT),
        "threshold per neuron": chain(IMAGE, first(), lif("first", v_threshold=uneven), dense(rng), READOUT),
        "bias per neuron": chain(IMAGE, first(bias=border), lif("first"), dense(rng), READOUT),
        "leak away from 0": chain(IMAGE, first(), lif("first", v_leak=0.1), dense(rng), READOUT),
        "reset away from 0": chain(IMAGE, first(), lif("first", v_leak=-0.2, v_reset=-0.2), dense(rng), READOUT),
        "groups": chain(IMAGE, first(), lif("first"), depthwise, second, dense(rng), READOUT),
        "scale": chain(IMAGE, first(), lif("first"), scale, dense(rng), READOUT),
        "delayed loop": chain(IMAGE, first(), lif("first"), dense(rng), READOUT, **loop),
        "two readout projections": chain(IMAGE, first(), lif("first"), dense(rng), READOUT, **beside),
        "LI readout": chain(IMAGE, first(), lif("first"), dense(rng), LI(name="readout", tau_mem=10 * DT)),
    }


def tie() -> SpikingGraph:
    """Potentials of 0.25, 0.5, 0.75 and 1.0, the threshold: strictly greater, or not."""
    steps = Linear(name="dense", weight=np.array([[0.25]]), bias=np.zeros(1))
    return chain(Input(name="image", shape=(1,)), steps, IF(name="first", r=1 / DT, v_threshold=1.0))
