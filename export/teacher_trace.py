"""The teacher as an ONNX model of floats, for runtimes that are not torch.

torch's TorchScript-based exporter is used: it comes with torch itself from 2.3 to 2.14, where the other one needs
``onnxscript``. torch 2.9 and later warn that it will be removed; then there is a :class:`TeacherError` that says so.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from stars_deploy.errors import TeacherError
from stars_deploy.teacher import Teacher

#: Names of the model's input, (batch, C, H, W) in [0, 1], and of its output, (batch, classes).
IMAGES, LOGITS = "images", "logits"
#: torch 2.3 writes means wrongly from 18 on; before 19 its average pooling with ``ceil_mode`` answers something else in
#: ONNX Runtime 1.23, which whoever runs the model must find out by comparing.
OPSET = 17
#: Images in the trial run: not 1, which some operators treat in a way of their own.
_SAMPLES = 2


def trace_teacher(teacher: Teacher) -> bytes:
    """Return the teacher as an ONNX model for any batch of images in [0, 1], normalisation included.

    Batch normalisations are folded into the layers before them by torch where it can.

    Raises
    ------
    TeacherError
        If this torch cannot write it: operations that depend on values or have no ONNX operator.
    """
    model = _OnPixels(teacher).eval()
    batched = {0: "batch"}
    options: dict[str, Any] = {
        "opset_version": OPSET,
        "input_names": [IMAGES],
        "output_names": [LOGITS],
        "dynamic_axes": {IMAGES: batched, LOGITS: batched},
    }
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:  # from torch 2.5 on
        options["dynamo"] = False
    content = io.BytesIO()
    file: Any = content  # whose stubs in torch 2.14 speak of paths only
    try:
        # stdout belongs to results: whatever an exporter says there is for the log.
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (torch.zeros(_SAMPLES, *teacher.input.shape),), file, **options)
    except Exception as error:  # of any kind: torch's own, or of a stranger's forward
        first_line = (str(error).splitlines() or [""])[0]
        raise TeacherError(
            "teacher", f"cannot be written as ONNX by torch {torch.__version__} ({type(error).__name__}: {first_line})"
        ) from error
    return content.getvalue()


class _OnPixels(nn.Module):
    """A teacher with its normalisation as a part of the module, as exporters see no other constants."""

    mean: Tensor
    std: Tensor

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.module = teacher.module
        self.register_buffer("mean", torch.tensor(teacher.input.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(teacher.input.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images in [0, 1]."""
        logits: Tensor = self.module((images - self.mean) / self.std)
        return logits
