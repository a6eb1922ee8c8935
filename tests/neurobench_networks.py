"""Networks that NeuroBench measures in snnTorch and we ourselves: conv, conv and dense, a third of the weights zero.

Where a timestep keeps a membrane potential whole or not at all, floats and our integers fire alike; ``beta`` and
``reset`` of a case say what snnTorch is to do, ``exact`` whether our engine does the same, and ``golden`` whether what
NeuroBench says is kept in ``tests/data/neurobench.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    DECAY_ONE,
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
)

TIMESTEPS = 5
SAMPLES = 7
#: Samples run at a time in NeuroBench: the last batch is not full.
BATCH = 3
SHAPE = (2, 12, 9)
CLASSES = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its quantised images, (B, T, *shape), and what snnTorch's neurons are to do."""

    graph: QuantizedGraph
    images: np.ndarray
    beta: float
    reset: str = "zero"
    exact: bool = True
    golden: bool = True

    def exchange(self) -> dict[str, np.ndarray]:
        """The arrays that tests/peers/run_neurobench.py reads."""
        layers, arrays = [], {}
        for index, (projection, population) in enumerate(
            zip(self.graph.projections, self.graph.populations, strict=True)
        ):
            layer = {"beta": self.beta, "threshold": float(population.vth), "reset": self.reset}
            if isinstance(projection, ConvProjection):
                options = {name: getattr(projection, name) for name in ("stride", "padding", "dilation", "groups")}
                layer.update(options)
            layers.append(layer)
            arrays[f"weight:{index}"] = projection.weight
            arrays[f"bias:{index}"] = population.bias.reshape(len(projection.weight), -1)[:, 0]
        return {"layers": np.array(json.dumps(layers)), "images": self.images, "batch": np.array(BATCH), **arrays}


def some_zeros(rng, shape):
    """Integer weights of both signs, a third of them zero."""
    weight = rng.integers(-7, 8, shape)
    weight[rng.random(shape) < 0.3] = 0
    return weight


def network(seed: int, bits: int, decay_v: int, thresholds: tuple[int, int, int]) -> QuantizedGraph:
    """Strides, paddings, groups and a dilation that differ in y and x; biases of both signs, one for each channel."""
    rng = np.random.default_rng(seed)
    first = ConvProjection(
        name="first.w", source="image", target="first", weight=some_zeros(rng, (6, 2, 3, 3)), stride=(2, 1),
        padding=(1, 1),
    )  # fmt: skip
    shape = first.output_shape(SHAPE)
    second = ConvProjection(
        name="second.w", source="first", target="second", weight=some_zeros(rng, (8, 3, 3, 2)), stride=(1, 2),
        padding=(2, 0), dilation=(2, 1), groups=2,
    )  # fmt: skip
    shapes = (shape, second.output_shape(shape), (CLASSES,))
    into = int(np.prod(shapes[1]))
    last = DenseProjection(name="last.w", source="second", target="last", weight=some_zeros(rng, (CLASSES, into)))
    populations = tuple(
        Population(
            name=name,
            shape=size,
            decay_u=DECAY_ONE,
            decay_v=decay_v,
            vth=threshold,
            bias=np.broadcast_to(rng.integers(-3, 4, size[0]).reshape(-1, *[1] * (len(size) - 1)), size).copy(),
        )
        for name, size, threshold in zip(("first", "second", "last"), shapes, thresholds, strict=True)
    )
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=SHAPE, precision=Precision(bits=bits, signed=False), scale=1.0),
        populations=populations,
        projections=(first, second, last),
        timesteps=TIMESTEPS,
    )


def spike_trains(seed: int) -> np.ndarray:
    """Binary frames, a new one at each timestep."""
    return (np.random.default_rng(seed).random((SAMPLES, TIMESTEPS, *SHAPE)) < 0.2).astype(np.int64)


def still_images(seed: int, most: int = 15) -> np.ndarray:
    """Four-bit images up to `most`, some pixels dark, each shown at every timestep."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, most + 1, (SAMPLES, 1, *SHAPE)) * (rng.random((SAMPLES, 1, *SHAPE)) < 0.6)
    return np.repeat(images, TIMESTEPS, axis=1)


def cases() -> dict[str, Case]:
    """Every case by its name."""
    return {
        "binary": Case(graph=network(1, 1, 0, (12, 10, 9)), images=spike_trains(2), beta=1.0),
        "graded": Case(graph=network(3, 4, DECAY_ONE, (60, 4, 6)), images=still_images(4), beta=0.0),
        # What our students have: a last population that never fires.
        "silent readout": Case(graph=network(5, 4, 0, (150, 16, VTH_NEVER)), images=still_images(6), beta=1.0),
        # Graded by its precision, but binary in what it shows.
        "black and white": Case(
            graph=network(9, 4, DECAY_ONE, (6, 4, 14)), images=still_images(10, most=1), beta=0.0, golden=False
        ),
        # Neurons that we do not have: counted on the spikes that snnTorch recorded.
        "leaky, soft reset": Case(
            graph=network(7, 1, 410, (10, 16, 8)),
            images=spike_trains(8),
            beta=0.9,
            reset="subtract",
            exact=False,
            golden=False,
        ),
    }
