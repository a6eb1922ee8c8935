"""Write a chain of layers as a NetX HDF5 file (``.net``) that ``lava.lib.dl.netx.hdf5.Network`` loads.

The first layer is an ``input`` with only a shape: the image itself arrives as graded spikes at every timestep. What
Lava has no field for (names, timesteps, precision, labels) is JSON in the dataset ``stars_deploy`` at the root, which
Lava does not look at.
"""

from __future__ import annotations

import io
import json
import os

import h5py
import numpy as np
import numpy.typing as npt

from stars_deploy.artifacts import written_whole
from stars_deploy.errors import TargetError
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, IntArray, Population, Projection, QuantizedGraph
from stars_deploy.targets.netx_limits import find_alteration

SCHEMA = "stars-deploy netx"
SCHEMA_VERSION = 1
#: Root dataset with what Lava ignores.
METADATA = "stars_deploy"

Chain = tuple[tuple[Projection, Population], ...]


def write_netx(graph: QuantizedGraph, path: str | os.PathLike[str]) -> None:
    """Write `graph` to `path`, whole or not at all; the same graph makes the same bytes.

    Raises
    ------
    TargetError
        If NetX cannot carry the graph (residual sums, delays, loops), or Lava would execute it differently.
    ArtifactError
        If the file cannot be written.
    """
    chain = as_chain(graph)
    # Built in memory: HDF5 reports a full disk late and without an error number.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        _write_numbers(file, METADATA, np.frombuffer(json.dumps(_describe(graph, chain)).encode(), np.uint8))
        layers = file.create_group("layer")
        _write_layer(layers, "input", graph.input.shape)
        shape = graph.input.shape
        for projection, population in chain:
            if isinstance(projection, ConvProjection):
                _write_conv(layers, projection, population)
            else:
                if len(shape) > 1:
                    _write_layer(layers, "flatten", (1, 1, int(np.prod(shape))))
                _write_synapses(layers, "dense", projection, population)
            shape = population.shape
    with written_whole(path) as draft:
        draft.write_bytes(buffer.getvalue())


def as_chain(graph: QuantizedGraph) -> Chain:
    """Return the layers of `graph` one after another.

    Raises
    ------
    TargetError
        Naming the population or projection that NetX cannot carry, or that Lava would alter.
    """
    previous, highest = graph.input.name, graph.input.precision.high
    chain = []
    if len(graph.input.shape) not in (1, 3):
        raise TargetError(graph.input.name, f"shape {graph.input.shape}", "(C, H, W) or (N,) in a NetX file")
    for population in graph.populations:
        entering = graph.into(population.name)
        if len(entering) != 1:
            raise TargetError(
                population.name,
                f"{len(entering)} projections enter it ({', '.join(item.name for item in entering)})",
                "one projection into each population in a NetX file",
                "use a student without residual sums for this target",
            )
        (projection,) = entering
        if projection.delay:
            raise TargetError(projection.name, f"delay of {projection.delay} timesteps", "no delays in a NetX file")
        if projection.source != previous:
            raise TargetError(
                projection.name,
                f"comes from {projection.source}",
                f"{previous}, the layer before it: a NetX file is a chain",
                "use a student whose layers follow one another for this target",
            )
        if altered := find_alteration(projection, population, highest):
            raise TargetError(projection.name, altered, "what Lava executes exactly", "quantise it otherwise (--bits)")
        chain.append((projection, population))
        previous, highest = population.name, 1
    return tuple(chain)


def _describe(graph: QuantizedGraph, chain: Chain) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "timesteps": graph.timesteps,
        "input": {
            "name": graph.input.name,
            "scale": graph.input.scale,
            "precision": _describe_precision(graph.input.precision),
        },
        "layers": [
            {
                "projection": projection.name,
                "precision": _describe_precision(projection.precision),
                "population": population.name,
                "scale": population.scale,
            }
            for projection, population in chain
        ],
        "labels": list(graph.labels),
    }


def _describe_precision(precision: Precision) -> dict[str, object]:
    return {
        "bits": precision.bits,
        "signed": precision.signed,
        "exponent": precision.exponent,
        "rounding": precision.rounding,
    }


def _write_layer(layers: h5py.Group, kind: str, shape: tuple[int, ...]) -> h5py.Group:
    group = layers.create_group(str(len(layers)))
    group["type"] = np.array([kind], dtype="S10")
    group["shape"] = np.array(shape, dtype=np.int64)
    return group


def _write_conv(layers: h5py.Group, projection: ConvProjection, population: Population) -> None:
    group = _write_synapses(layers, "conv", projection, population)
    for name in ("stride", "padding", "dilation"):
        group[name] = np.array(getattr(projection, name), dtype=np.int64)
    group["groups"] = projection.groups
    group["kernelSize"] = np.array(projection.weight.shape[2:], dtype=np.int64)
    group["inChannels"] = projection.weight.shape[1] * projection.groups
    group["outChannels"] = projection.weight.shape[0]


def _write_synapses(layers: h5py.Group, kind: str, projection: Projection, population: Population) -> h5py.Group:
    group = _write_layer(layers, kind, population.shape)
    _write_numbers(group, "weight", projection.weight.astype(np.int32))
    # Lava's arrays are (W, H, C); a bias of the full shape is taken per neuron.
    _write_numbers(group, "bias", population.bias.transpose().astype(np.int32))
    neuron = group.create_group("neuron")
    neuron["type"] = np.bytes_(b"CUBA")
    values = {"iDecay": population.decay_u, "vDecay": population.decay_v, "vThMant": population.vth}
    for name, value in {**values, "refDelay": 1, "wgtExp": 0}.items():
        neuron[name] = value
    return group


def _write_numbers(group: h5py.Group, name: str, values: IntArray | npt.NDArray[np.generic]) -> None:
    # The checksum makes a damaged file an error instead of another network.
    group.create_dataset(name, data=values, chunks=True, compression="gzip", shuffle=True, fletcher32=True)
