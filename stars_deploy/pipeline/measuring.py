"""The teacher beside its student: what its layers do with images, and what it takes on this machine's processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stars_deploy.baseline.estimate import TEACHER
from stars_deploy.baseline.layers import AnnLayer
from stars_deploy.cpu_measurement import CpuMeasurement, measure_cpu, not_measured
from stars_deploy.errors import StarsDeployError

if TYPE_CHECKING:
    from stars_deploy.targets.onnx_model.float_network import FloatNetwork
    from stars_deploy.teacher import Teacher

#: Images that the zeros of a teacher are counted on, at most; fewer where they would take more multiply-accumulates
#: than that, but not fewer than it takes to see different images.
MOST_IMAGES, MOST_MACS, FEWEST_IMAGES = 256, 10**11, 16
#: Images that the model in ONNX Runtime must answer as torch does.
_COMPARED = 8
#: Largest difference of two logits, as a share of the largest logit: float32, summed in another order.
_TOLERANCE = 1e-3
NOT_ASKED = "not asked for (measure_cpu: false)"


@dataclass(frozen=True, kw_only=True)
class TeacherMeasurement:
    """What was measured of a teacher.

    Parameters
    ----------
    layers : tuple of AnnLayer
        With the share of zeros that their products meet; empty where none is a convolution or linear layer.
    cpu : CpuMeasurement
        Says why, where there is none.
    """

    layers: tuple[AnnLayer, ...]
    cpu: CpuMeasurement


def measure_teacher(teacher: Teacher, images: npt.NDArray[Any], *, on_cpu: bool = True) -> TeacherMeasurement:
    """Measure a teacher: its layers on `images`, and the time of an inference in ONNX Runtime.

    Parameters
    ----------
    teacher : Teacher
    images : array, (N, C, H, W) in [0, 1]
        The first 256 are used, or as many as 1e11 multiply-accumulates are enough for.
    on_cpu : bool
        Whether to measure on the processor; it takes about three seconds.
    """
    import torch

    from stars_deploy.macs import count_macs, describe_teacher

    most = min(MOST_IMAGES, max(FEWEST_IMAGES, MOST_MACS // max(1, count_macs(teacher))))
    pixels = torch.from_numpy(np.ascontiguousarray(images[:most], dtype=np.float32))
    layers = describe_teacher(teacher, pixels)
    return TeacherMeasurement(
        layers=layers, cpu=_measure_cpu(teacher, pixels[:_COMPARED].numpy()) if on_cpu else not_measured(NOT_ASKED)
    )


def read_measurement(report: Mapping[str, Any], where: str = "report.json") -> TeacherMeasurement | None:
    """Return what a build measured of its teacher, from its report; None where that says nothing of it.

    Nothing is measured again: the processor may be another one by now, or busy.

    Raises
    ------
    FormatError, ConfigError
        If what it says cannot be read, naming the place.
    """
    ann = report.get("ann", {})
    if not ann.get("measured") or ann.get("macs_of") != TEACHER:
        return None
    return TeacherMeasurement(
        layers=tuple(AnnLayer.from_json(layer, f"{where}: ann.layers") for layer in ann["layers"]),
        cpu=CpuMeasurement.from_json(ann["measured"], f"{where}: ann.measured"),
    )


def _measure_cpu(teacher: Teacher, images: npt.NDArray[np.float32]) -> CpuMeasurement:
    """Time the teacher; a build does not fail because its teacher cannot be written as ONNX."""
    try:
        network = open_teacher(teacher, images)
    except StarsDeployError as error:
        return not_measured(str(error))
    return measure_cpu(network.run, teacher.input.shape, runtime=network.runtime)


def open_teacher(teacher: Teacher, images: npt.NDArray[np.float32], threads: int = 1) -> FloatNetwork:
    """Return a teacher in ONNX Runtime, after it has answered `images` as torch does.

    Raises
    ------
    StarsDeployError
        If it cannot be written as ONNX or does not run, or answers something else.
    """
    import torch

    from stars_deploy.errors import TargetError
    from stars_deploy.export.teacher_trace import trace_teacher
    from stars_deploy.targets.onnx_model.float_network import FloatNetwork

    network = FloatNetwork(trace_teacher(teacher), threads=threads)
    with torch.no_grad():
        wanted = teacher.logits(torch.from_numpy(images)).numpy()
    # One by one and together: a model that was traced for one batch size answers the other wrongly, or not.
    for got in (network.run(images), np.concatenate([network.run(images[[index]]) for index in range(len(images))])):
        if got.shape != wanted.shape or not np.abs(got - wanted).max() <= _TOLERANCE * np.abs(wanted).max():
            raise TargetError("teacher", "answers something else in ONNX Runtime than in torch", "the same logits")
    return network
