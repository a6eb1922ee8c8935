"""Graphs to models: checked, deterministic, in standard operators only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, helper

from stars_deploy.artifacts import written_whole
from stars_deploy.errors import TargetError
from stars_deploy.graph import SpikingGraph
from stars_deploy.projections import ConvProjection
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.onnx_model.drawing import IR_VERSION, OPSET
from stars_deploy.targets.onnx_model.metadata import PRODUCER, Origin, describe_model, origin_here
from stars_deploy.targets.onnx_model.outputs import check_image
from stars_deploy.targets.onnx_model.sequence import build_sequence
from stars_deploy.targets.onnx_model.step import build_step

_BUILDERS: Mapping[str, Callable[[QuantizedGraph, str], GraphProto]] = {
    "sequence": build_sequence,
    "step": build_step,
}
#: What a model is made for.
MODES = tuple(_BUILDERS)
#: Most neurons and padded pixels of all layers together, layers, and timesteps of a delay or of an inference: far above
#: any network that fits a chip, and low enough that a hostile description costs little.
MAX_NEURONS = 1 << 25
MAX_LAYERS = 4096
MAX_DELAY = 4096
MAX_TIMESTEPS = 1 << 16


def write_onnx(graph: QuantizedGraph, path: Path, mode: str, source: str, floats: SpikingGraph | None = None) -> None:
    """Write `graph` as a model, whole or not at all; the same graph makes the same bytes.

    Parameters
    ----------
    graph : QuantizedGraph
    path : Path
    mode : str
        ``sequence`` or ``step``.
    source : str
        ``image`` or ``payloads``.
    floats : SpikingGraph, optional
        What the integers were rounded from: its dt and normalisation are noted in the metadata.

    Raises
    ------
    TargetError
        Naming what cannot be computed exactly, or is too large.
    """
    model = build_model(graph, mode, source, origin_here(floats))
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    with written_whole(path) as draft:
        draft.write_bytes(content)


def build_model(graph: QuantizedGraph, mode: str, source: str, origin: Origin) -> ModelProto:
    """Return the model of `graph`, with a note of its `origin`.

    Raises
    ------
    TargetError
        As :func:`write_onnx`.
    """
    check_limits(graph)
    if source == "image":
        check_image(graph.input)
    drawn = _BUILDERS[mode](graph, source)
    model = helper.make_model(
        drawn,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
        producer_version=origin.versions.get("stars-deploy", ""),
    )
    helper.set_model_props(model, describe_model(graph, mode, source, drawn, origin))
    return model


def check_limits(graph: QuantizedGraph) -> None:
    """Refuse networks that are larger than any model is made for.

    Raises
    ------
    TargetError
        With the number that is too large.
    """
    layers = max(len(graph.populations), len(graph.projections))
    if layers > MAX_LAYERS:
        raise TargetError("layers", layers, f"at most {MAX_LAYERS}")
    if graph.timesteps > MAX_TIMESTEPS:
        raise TargetError("timesteps", graph.timesteps, f"at most {MAX_TIMESTEPS}")
    neurons = sum(population.size for population in graph.populations) + int(np.prod(graph.input.shape))
    if neurons > MAX_NEURONS:
        raise TargetError("neurons", neurons, f"at most {MAX_NEURONS}")
    for projection in graph.projections:
        longest = int(np.max(projection.delay))
        if longest > MAX_DELAY:
            raise TargetError(f"{projection.name}.delay", longest, f"at most {MAX_DELAY} timesteps")
        if isinstance(projection, ConvProjection):
            channels, *sizes = graph.shape_of(projection.source)
            padded = [size + 2 * pad for size, pad in zip(sizes, projection.padding, strict=True)]
            if channels * padded[0] * padded[1] > MAX_NEURONS:
                raise TargetError(f"{projection.name}.padding", projection.padding, f"at most {MAX_NEURONS} pixels")
