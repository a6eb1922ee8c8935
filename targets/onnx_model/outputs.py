"""What models take and answer beside spikes: the image or payloads, potential, logits and counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import ValueInfoProto

from stars_deploy.errors import TargetError
from stars_deploy.populations import STATE_EXP, QuantizedInput
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.onnx_model.drawing import Axes, Drawing, describe
from stars_deploy.targets.onnx_model.frames import Frames, draw_layout, draw_payloads, draw_restored, payload_kind

#: What the input is: float32 pixels of one image, or payloads for each timestep.
SOURCES = ("image", "payloads")
BATCH = "batch"


def describe_input(graph: QuantizedGraph, source: str, steps: int) -> ValueInfoProto:
    """Return the description of the model's input; `steps` is 0 where it is one frame."""
    lead: Axes = [steps, BATCH] if steps else [BATCH]
    kind = np.float32 if source == "image" else payload_kind(graph.input)
    return describe(source, kind, [*lead, *graph.input.shape])


def draw_input(draw: Drawing, graph: QuantizedGraph, source: str, steps: int) -> Frames:
    """Draw what the input population sends, from the model's input."""
    precision = graph.input.precision
    kind: np.dtype[Any] = np.dtype(np.float64) if source == "image" else payload_kind(graph.input)
    value = draw_payloads(draw, source, graph.input) if source == "image" else source
    value = draw_layout(draw, value, graph.input.shape, 2 if steps else 1)
    return Frames(shape=graph.input.shape, low=precision.low, high=precision.high, tensor=value, kind=kind, steps=steps)


def draw_batch(draw: Drawing, source: str, steps: int) -> str:
    """Draw the number of samples, one int64."""
    axis = 1 if steps else 0
    limits = (draw.constant([value], np.int64) for value in (axis, axis + 1))
    return draw.add("Slice", draw.add("Shape", source), *limits)


def check_image(source: QuantizedInput) -> None:
    """Refuse inputs of which some payload is the nearest to no float32 pixel.

    Raises
    ------
    TargetError
        Where the pixels are too coarse, or there is no scale.
    """
    if not (math.isfinite(source.scale) and math.isfinite(source.offset)) or source.scale == 0:
        raise TargetError(source.name, f"scale {source.scale}, offset {source.offset}", "finite numbers, scale not 0")
    largest = max(
        abs((limit - source.offset) / source.scale) for limit in (source.precision.low, source.precision.high)
    )
    step = float(np.spacing(np.float32(largest)))
    if not step * abs(source.scale) < 1:
        raise TargetError(
            source.name,
            f"payloads of {source.precision.bits} bits, which float32 pixels cannot tell apart",
            "payloads up to 23 bits, with a scale and offset that leave them apart",
            "export with payloads as the input",
        )


def readout_of(graph: QuantizedGraph) -> str:
    """Return what the logits are: ``potential``, or ``spike count`` where the output population fires."""
    return "spike count" if graph.output.fires else "potential"


def draw_readout(draw: Drawing, graph: QuantizedGraph, membrane: str, count: str) -> list[ValueInfoProto]:
    """Draw the outputs ``logits`` and ``potential``, (B, N) in C order, and return their descriptions.

    Parameters
    ----------
    draw : Drawing
    graph : QuantizedGraph
    membrane : str
        Of the output population, int32 (B, N).
    count : str
        Spikes so far of each of its neurons, (B, N); empty where it does not fire.

    Raises
    ------
    TargetError
        If the output population has no scale to divide by.
    """
    output = graph.output
    if len(output.shape) == 3:
        restored = draw_restored(draw, membrane, output.shape, "")
        draw.add("Reshape", restored, draw.constant([0, output.size], np.int64), to="potential")
    else:
        draw.add("Identity", membrane, to="potential")
    if readout_of(graph) == "potential":
        step = output.scale * (1 << STATE_EXP) * graph.timesteps
        if not math.isfinite(step) or step == 0:
            raise TargetError(output.name, f"scale {output.scale}", "a finite number other than 0")
        exact = draw.cast("potential", np.float64)
        wide = draw.add("Div", exact, draw.constant(step, np.float64))
        draw.cast(wide, np.float32, "logits")
    else:
        restored = draw_restored(draw, draw.cast(count, np.float32), output.shape, "")
        draw.add("Reshape", restored, draw.constant([0, output.size], np.int64), to="logits")
    return [describe("logits", np.float32, [BATCH, output.size]), describe("potential", np.int32, [BATCH, output.size])]


def draw_count(draw: Drawing, spikes: str, size: int) -> str:
    """Draw the sum over the last axis, of `size`, of uint8 spikes; int32, the axis kept.

    A product with ones: ReduceSum of int32 took four times as long (ONNX Runtime 1.32).
    """
    fixed = draw.root
    ones = fixed.add("Expand", draw.constant(1, np.int8), draw.constant([size, 1], np.int64))
    return draw.add("MatMulInteger", spikes, ones)
