"""What a model says about itself: everything that a stranger needs to use it, and a reader to make its graph again."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import GraphProto, helper

from stars_deploy.errors import TargetError
from stars_deploy.graph import Normalize, SpikingGraph
from stars_deploy.populations import Population, QuantizedInput
from stars_deploy.precision import Precision
from stars_deploy.projections import ConvProjection, Projection
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.onnx_model.outputs import readout_of
from stars_deploy.targets.onnx_model.step import NEXT

SCHEMA = "stars-deploy onnx"
SCHEMA_VERSION = 1
PRODUCER = "stars-deploy"

SEMANTICS = (
    "Integer leaky integrate-and-fire neurons, those of Intel Loihi 2 in Lava's fixed point; all state starts at 0. At "
    "each timestep, for each population: where it is due, u = v = 0; a = sum of weight * value over what enters "
    "(spikes are 0 or 1, pixels are payloads); u = trunc(u * (4096 - decay_u) / 4096) + 64 * a, wrapped once at "
    "+-2**23; "
    "v = clip(trunc(v * (4096 - decay_v) / 4096) + u + 64 * bias, +-(2**23 - 1)); a spike where v > 64 * vth, and then "
    "v = 0. trunc rounds toward zero. A population sees what its sources emitted at the same timestep, or `delay` "
    "timesteps before. Wraps and clips that cannot happen are not drawn. Tensors inside keep neurons channels last: "
    "(C, H, W) as H, W, C, flat. An image's pixels become payloads by rint(pixel * scale + offset), in double "
    "precision, kept within low and high; they must be finite. Payloads given as such are not checked: keep "
    "them within low and high."
)
_OUTPUTS = {
    "potential": "int32 (batch, N): membrane potential v of the last population after the last timestep run [LSB]; the "
    "class is its argmax, the lowest index of equals",
    "spike_counts": "int32 (batch, T, layers): spikes of each population at each timestep, in the order of `layers`",
    "spikes": "uint8 (batch, *shape), one output for each population: 1 where a neuron fired at this timestep",
    "state": "for the next call; the first call takes zeros of the shapes in `state`. Of v, the value that was "
    "compared with the threshold: where it exceeded it, the next call goes on from 0",
}
_LOGITS = {
    "potential": "float32 (batch, N): potential / (64 * scale * T), in the student's units; scale is the last layer's",
    "spike count": "float32 (batch, N): spikes of each neuron of the last population until now",
}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from: nothing that its execution uses.

    Parameters
    ----------
    versions : mapping of str to str
        Of what wrote it.
    dt : float, optional
        Length of a timestep of the float network that the integers were rounded from [s].
    mean, std : tuple of float
        Normalisation of its input, one number a channel; empty where it has none. It is folded into the first layer.
    """

    versions: Mapping[str, str]
    dt: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return the entries of the metadata."""
        folded = {"mean": list(self.mean), "std": list(self.std), "folded": True} if self.mean else None
        return {"dt": self.dt, "normalization": folded, "versions": dict(self.versions)}

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Origin:
        """Return what :meth:`describe` described; raises TypeError, KeyError or ValueError for anything else."""
        folded = content["normalization"]
        mean, std = ((), ()) if folded is None else (tuple(map(float, folded[name])) for name in ("mean", "std"))
        dt = content["dt"]
        return cls(versions=content["versions"], dt=None if dt is None else float(dt), mean=mean, std=std)


def origin_here(floats: SpikingGraph | None) -> Origin:
    """Return the origin of a model that is written here, of the integers rounded from `floats` if that is known."""
    versions = {"stars-deploy": importlib.metadata.version("stars-deploy"), "onnx": onnx.__version__}
    if floats is None:
        return Origin(versions=versions)
    first = next((node for node in floats.nodes if isinstance(node, Normalize)), None)
    mean, std = ((), ()) if first is None else (first.mean.tolist(), first.std.tolist())
    return Origin(versions=versions, dt=float(floats.dt), mean=tuple(mean), std=tuple(std))


def describe_model(graph: QuantizedGraph, mode: str, source: str, drawn: GraphProto, origin: Origin) -> dict[str, str]:
    """Return the metadata of a model by key, JSON except ``semantics``, ``schema``, ``mode`` and the like.

    Raises
    ------
    TargetError
        If a scale is no finite number.
    """
    outputs = {"logits": _LOGITS[readout_of(graph)], "potential": _OUTPUTS["potential"]}
    outputs.update(
        {"spike_counts": _OUTPUTS["spike_counts"]}
        if mode == "sequence"
        else {"spikes:NAME": _OUTPUTS["spikes"], f"{NEXT}NAME": _OUTPUTS["state"]}
    )
    content: dict[str, Any] = {
        "timesteps": graph.timesteps,
        "labels": list(graph.labels),
        "input": _describe_input(graph.input, source),
        "layers": [_describe_population(population) for population in graph.populations],
        "projections": [_describe_projection(projection) for projection in graph.projections],
        "outputs": outputs,
        "state": _describe_state(drawn) if mode == "step" else [],
        **origin.describe(),
    }
    try:
        texts = {key: json.dumps(value, allow_nan=False) for key, value in content.items()}
    except ValueError as error:
        raise TargetError("scale", "NaN or infinite", "finite numbers", "give every layer a finite scale") from error
    plain = {
        "schema": SCHEMA,
        "schema_version": str(SCHEMA_VERSION),
        "mode": mode,
        "source": source,
        "readout": readout_of(graph),
        "semantics": SEMANTICS,
    }
    return {**plain, **texts}


def _describe_input(source: QuantizedInput, tensor: str) -> dict[str, Any]:
    return {
        "tensor": tensor,
        "name": source.name,
        "shape": list(source.shape),
        "scale": float(source.scale),
        "offset": float(source.offset),
        "low": source.precision.low,
        "high": source.precision.high,
        "precision": _describe_precision(source.precision),
        "biases": source.biases,
    }


def _describe_precision(precision: Precision) -> dict[str, Any]:
    return {
        "bits": precision.bits,
        "signed": precision.signed,
        "exponent": precision.exponent,
        "rounding": precision.rounding,
    }


def _describe_population(population: Population) -> dict[str, Any]:
    """One number where it is the same for all neurons; null where a tensor of the file holds one for each."""
    numbers = {name: getattr(population, name) for name in ("decay_u", "decay_v", "vth")}
    return {
        "name": population.name,
        "shape": list(population.shape),
        **{name: value if isinstance(value, int) else None for name, value in numbers.items()},
        "reset_interval": population.reset_interval,
        "reset_offset": population.reset_offset,
        "scale": float(population.scale),
    }


def _describe_projection(projection: Projection) -> dict[str, Any]:
    described: dict[str, Any] = {
        "kind": "conv" if isinstance(projection, ConvProjection) else "dense",
        "name": projection.name,
        "source": projection.source,
        "target": projection.target,
        "weight": list(projection.weight.shape),
        "precision": _describe_precision(projection.precision),
        "delay": projection.delay if isinstance(projection.delay, int) else None,
    }
    if isinstance(projection, ConvProjection):
        pairs = {"stride": projection.stride, "padding": projection.padding, "dilation": projection.dilation}
        described.update({name: list(pair) for name, pair in pairs.items()}, groups=projection.groups)
    return described


def _describe_state(drawn: GraphProto) -> list[dict[str, Any]]:
    described = []
    for value in list(drawn.input)[1:]:
        tensor = value.type.tensor_type
        shape: Sequence[Any] = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
        kind = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        described.append({"input": value.name, "output": NEXT + value.name, "type": kind, "shape": list(shape)})
    return described
