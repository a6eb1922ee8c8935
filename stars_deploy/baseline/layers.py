"""The layers of an ANN as numbers: what it multiplies, keeps and passes on for one image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from stars_deploy.errors import ConfigError, FormatError
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation
from stars_deploy.synops import connections


@dataclass(frozen=True, kw_only=True)
class AnnLayer:
    """One convolution or linear layer, for one image; activations, norms and biases belong to the layer before.

    Parameters
    ----------
    name : str
    macs : int
        Multiply-accumulates.
    weights : int
        Stored weights, biases left out.
    inputs, outputs : int
        Values that enter and leave.
    zero_share : float or None
        Share of ``macs`` whose input is 0 (padding is), as a mean over images; None where it was not measured.
    reads_image : bool
        Whether the inputs are pixels, which keep their bits whatever those of the activations.

    Raises
    ------
    ConfigError
        If a number is below 1, or the share is not between 0 and 1.
    """

    name: str
    macs: int
    weights: int
    inputs: int
    outputs: int
    zero_share: float | None = None
    reads_image: bool = False

    def __post_init__(self) -> None:
        for what in ("macs", "weights", "inputs", "outputs"):
            if getattr(self, what) < 1:
                raise ConfigError(f"ANN layer {self.name}: {what}", getattr(self, what), "at least 1")
        if self.zero_share is not None and not 0 <= self.zero_share <= 1:
            raise ConfigError(f"ANN layer {self.name}: zero_share", self.zero_share, "0 to 1, or none")

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = "report.json: ann.layers") -> AnnLayer:
        """Return the layer that :func:`dataclasses.asdict` made `content` of.

        Raises
        ------
        FormatError
            If something is missing or of another type.
        ConfigError
            If a number cannot be.
        """
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the layer"
            raise FormatError(f"{where}: {place}", first["msg"], "a layer as stars-deploy writes it") from error


def describe_topology(graph: QuantizedGraph, evaluation: Evaluation | None = None) -> tuple[AnnLayer, ...]:
    """Return the layers of an ANN with the topology of `graph`: one for each population that synapses enter.

    Multiply-accumulates are the connections between neurons that exist, stored zero weights included, padding not.

    Parameters
    ----------
    graph : QuantizedGraph
    evaluation : Evaluation, optional
        Of `graph`: it tells how many multiply-accumulates of the layers that read the image meet a pixel that is not 0.
        What the zeros of an ANN's other layers would be, a spiking network does not tell.
    """
    activity = {} if evaluation is None else {layer.name: layer for layer in evaluation.layers}
    layers = []
    for population in graph.populations:
        incoming = graph.into(population.name)
        sources = {projection.source for projection in incoming}
        macs = sum(connections(projection, graph.shape_of(projection.source)) for projection in incoming)
        if not macs:  # the image sets its biases: nothing is multiplied
            continue
        reads_image = sources == {graph.input.name}
        # Delayed messages meet fewer timesteps' weights than there are timesteps.
        counted = reads_image and all(np.all(np.asarray(projection.delay) == 0) for projection in incoming)
        zero_share = None
        if counted and population.name in activity:
            met = activity[population.name].dense_synops_per_step
            zero_share = 1 - sum(met) / (len(met) * macs)
        layers.append(
            AnnLayer(
                name=population.name,
                macs=macs,
                weights=sum(projection.weight.size for projection in incoming),
                inputs=sum(math.prod(graph.shape_of(source)) for source in sources),
                outputs=population.size,
                zero_share=zero_share,
                reads_image=reads_image,
            )
        )
    return tuple(layers)
