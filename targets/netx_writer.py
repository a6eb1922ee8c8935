"""Write a chain of layers as a NetX HDF5 file (``.net``) that ``lava.lib.dl.netx.hdf5.Network`` loads.

The first layer is an ``input``: with only a shape where the image arrives as graded spikes, with neurons where its
pixels are their biases. What Lava has no field for (names, timesteps, precision, labels) is JSON in the dataset
``stars_deploy`` at the root, which Lava does not look at. The file holds the synchronous network; which timing it runs
in, and whether it is reset, is chosen on reading.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from stars_deploy.artifacts import written_whole
from stars_deploy.errors import TargetError
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    DECAY_ONE,
    ConvProjection,
    DenseProjection,
    IntArray,
    Population,
    Projection,
    QuantizedGraph,
)
from stars_deploy.targets.netx_limits import DELAY_LIMIT, find_alteration

SCHEMA = "stars-deploy netx"
SCHEMA_VERSION = 1
#: Root dataset with what Lava ignores.
METADATA = "stars_deploy"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer with neurons: a population, the projection into it, and its projection onto itself, if there is one.

    The neurons of an input layer have no projection.
    """

    population: Population
    projection: Projection | None = None
    recurrent: DenseProjection | None = None


def write_netx(graph: QuantizedGraph, path: str | os.PathLike[str]) -> None:
    """Write `graph` to `path`, whole or not at all; the same graph makes the same bytes.

    Raises
    ------
    TargetError
        If NetX cannot carry the graph (residual sums, delayed convolutions, loops over several layers, resets,
        pipelined timing), or Lava would execute it differently.
    ArtifactError
        If the file cannot be written.
    """
    chain = as_chain(graph)
    # Built in memory: HDF5 reports a full disk late and without an error number.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        _write_numbers(file, METADATA, np.frombuffer(json.dumps(_describe(graph, chain)).encode(), np.uint8))
        layers = file.create_group("layer")
        group = _write_layer(layers, "input", graph.input.shape)
        if graph.input.biases:
            group["weight"] = np.array([round(graph.input.scale)], dtype=np.int64)
            group["bias"] = np.array([round(graph.input.offset)], dtype=np.int64)
            _write_neuron(group, chain[0].population)
        shape = graph.input.shape
        for layer in chain:
            if isinstance(layer.projection, ConvProjection):
                _write_conv(layers, layer.projection, layer.population)
            elif layer.projection is not None:
                if len(shape) > 1:
                    _write_layer(layers, "flatten", (1, 1, int(np.prod(shape))))
                _write_dense(layers, layer.projection, layer.recurrent, layer.population)
            shape = layer.population.shape
    with written_whole(path) as draft:
        draft.write_bytes(buffer.getvalue())


# ---------------------------------------------------------------- what a file can carry


def as_chain(graph: QuantizedGraph) -> tuple[Layer, ...]:
    """Return the layers of `graph` one after another.

    Raises
    ------
    TargetError
        Naming the population or projection that NetX cannot carry, or that Lava would alter.
    """
    _check_input(graph)
    _check_timing(graph)
    previous, payload = graph.input.name, (graph.input.precision.high, graph.input.precision.low)
    chain = []
    for population in graph.populations:
        layer = _as_layer(graph, population, previous)
        _check_exact(layer, *payload)
        chain.append(layer)
        previous, payload = population.name, (1, 0)
    return tuple(chain)


def _check_input(graph: QuantizedGraph) -> None:
    image = graph.input
    if len(image.shape) not in (1, 3):
        raise TargetError(image.name, f"shape {image.shape}", "(C, H, W) or (N,) in a NetX file")
    if image.biases and image.biases != graph.populations[0].name:
        raise TargetError(image.biases, f"biased by {image.name}", "only the first population, as NetX's input layer")
    if not image.biases:
        return
    for name, value in (("scale", image.scale), ("offset", image.offset)):
        if not float(value).is_integer():
            raise TargetError(
                f"{image.name}.{name}", value, "a whole number: Lava truncates it", "quantise the image otherwise"
            )
    if graph.populations[0].leaks_current:
        raise TargetError(
            f"{image.biases}.decay_u", graph.populations[0].decay_u,
            f"{DECAY_ONE}: nothing enters the currents of NetX's input layer, and its reader knows no other decay",
            f"set it to {DECAY_ONE}; nothing depends on it",
        )  # fmt: skip


def _check_timing(graph: QuantizedGraph) -> None:
    forward = [item for item in graph.projections if item.source != item.target]
    if forward and all(np.min(projection.delay) for projection in forward):
        raise TargetError(
            forward[0].name, "every projection has a delay: pipelined timing", "the synchronous network in a NetX file",
            "write the synchronous graph, and choose pipelined timing when the file is read or run",
        )  # fmt: skip
    for population in graph.populations:
        if population.reset_interval:
            raise TargetError(
                f"{population.name}.reset_interval", population.reset_interval, "0 in a NetX file",
                "write it without resets, and choose them when the file is read or run",
            )  # fmt: skip


def _as_layer(graph: QuantizedGraph, population: Population, previous: str) -> Layer:
    entering = graph.into(population.name)
    if population.name == graph.input.biases and not entering:
        return Layer(population=population)
    onto_itself = [item for item in entering if item.source == population.name]
    forward = [item for item in entering if item.source != population.name]
    if len(forward) != 1 or len(onto_itself) > 1 or population.name == graph.input.biases:
        raise TargetError(
            population.name,
            f"{len(entering)} projections enter it ({', '.join(item.name for item in entering)})",
            "one projection into each population in a NetX file, and one of a dense layer onto itself",
            "use a student without residual sums for this target",
        )
    projection, recurrent = forward[0], onto_itself[0] if onto_itself else None
    if projection.source != previous:
        raise TargetError(
            projection.name,
            f"comes from {projection.source}",
            f"{previous}, the layer before it: a NetX file is a chain",
            "use a student whose layers follow one another for this target",
        )
    if isinstance(recurrent, ConvProjection):
        raise TargetError(recurrent.name, "a loop of a convolution", "loops of dense layers in a NetX file")
    _check_delays(projection, recurrent)
    return Layer(population=population, projection=projection, recurrent=recurrent)


def _check_delays(projection: Projection, recurrent: DenseProjection | None) -> None:
    if isinstance(projection, ConvProjection) and projection.delay:
        raise TargetError(
            projection.name, f"delay of {projection.delay} timesteps",
            "no delay of a convolution in a NetX file: Lava reads none",
        )  # fmt: skip
    if np.max(projection.delay) > DELAY_LIMIT:
        raise TargetError(
            projection.name, f"delay of {np.max(projection.delay)} timesteps", f"0 to {DELAY_LIMIT}: NetX clamps it"
        )
    if recurrent is None or not (np.max(projection.delay) or np.max(recurrent.delay) > 1):
        return
    own = np.broadcast_to(recurrent.delay, recurrent.weight.shape) - 1
    if not np.array_equal(own, np.broadcast_to(projection.delay, projection.weight.shape)):
        raise TargetError(
            recurrent.name,
            "other delays than the projection into the layer",
            f"a delay of 1 where {projection.name} has none, else one more than its, synapse for synapse: NetX has one "
            "matrix of delays for both, which both must fit",
        )


def _check_exact(layer: Layer, high: int, low: int) -> None:
    if layer.projection is None:
        return
    delayed = bool(np.max(layer.projection.delay))
    altered = find_alteration(layer.projection, layer.population, high, low, layer.recurrent, delayed)
    if altered:
        raise TargetError(
            layer.projection.name, altered, "what Lava executes exactly", "quantise it otherwise (--bits)"
        )


# ---------------------------------------------------------------- metadata


def _describe(graph: QuantizedGraph, chain: tuple[Layer, ...]) -> dict[str, object]:
    image: dict[str, object] = {
        "name": graph.input.name,
        "scale": graph.input.scale,
        "precision": _describe_precision(graph.input.precision),
    }
    if graph.input.offset:
        image["offset"] = graph.input.offset
    if graph.input.biases:
        image["biases"] = True
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "timesteps": graph.timesteps,
        "input": image,
        "layers": [_describe_layer(layer) for layer in chain],
        "labels": list(graph.labels),
    }


def _describe_layer(layer: Layer) -> dict[str, object]:
    projection, recurrent = layer.projection, layer.recurrent
    described: dict[str, object] = {
        "projection": projection.name if projection else None,
        "precision": _describe_precision(projection.precision) if projection else None,
        "population": layer.population.name,
        "scale": layer.population.scale,
    }
    if recurrent:
        described["recurrent"] = {
            "projection": recurrent.name,
            "precision": _describe_precision(recurrent.precision),
        }
    return described


def _describe_precision(precision: Precision) -> dict[str, object]:
    return {
        "bits": precision.bits,
        "signed": precision.signed,
        "exponent": precision.exponent,
        "rounding": precision.rounding,
    }


# ---------------------------------------------------------------- layers


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


def _write_dense(
    layers: h5py.Group, projection: DenseProjection, recurrent: DenseProjection | None, population: Population
) -> None:
    group = _write_synapses(layers, "dense_rec" if recurrent else "dense", projection, population)
    if recurrent:
        _write_numbers(group, "weight_rec", recurrent.weight.astype(np.int32))
    if np.max(projection.delay):
        # In full: Lava gives a single delay of a loop the shape of the other weights.
        delay = np.broadcast_to(projection.delay, projection.weight.shape)
        _write_numbers(group, "delay", delay.astype(np.int32))


def _write_synapses(layers: h5py.Group, kind: str, projection: Projection, population: Population) -> h5py.Group:
    group = _write_layer(layers, kind, population.shape)
    _write_numbers(group, "weight", projection.weight.astype(np.int32))
    # Lava's arrays are (W, H, C); a bias of the full shape is taken per neuron.
    _write_numbers(group, "bias", population.bias.transpose().astype(np.int32))
    _write_neuron(group, population)
    return group


def _write_neuron(group: h5py.Group, population: Population) -> None:
    neuron = group.create_group("neuron")
    neuron["type"] = np.bytes_(b"CUBA")
    fields = {"iDecay": population.decay_u, "vDecay": population.decay_v, "vThMant": population.vth}
    for name, value in {**fields, "refDelay": 1, "wgtExp": 0}.items():
        if isinstance(value, int):
            neuron[name] = value
        else:
            _write_numbers(neuron, name, value.transpose())


def _write_numbers(group: h5py.Group, name: str, values: IntArray | npt.NDArray[np.generic]) -> None:
    # The checksum makes a damaged file an error instead of another network.
    group.create_dataset(name, data=values, chunks=True, compression="gzip", shuffle=True, fletcher32=True)
