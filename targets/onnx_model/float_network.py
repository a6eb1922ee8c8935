"""A float network, which is no artefact of ours, in ONNX Runtime: the ANN that a spiking network stands beside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import TargetError
from stars_deploy.targets.onnx_model.runtime import find_runtime

Floats = npt.NDArray[np.float32]


class FloatNetwork:
    """A model of one input and one output, made ready for running many batches on the CPU.

    Parameters
    ----------
    content : bytes
        An ONNX model, such as :func:`stars_deploy.export.teacher_trace.trace_teacher` makes.
    threads : int
        That ONNX Runtime may use.

    Attributes
    ----------
    runtime : str
        Name and version of what runs it.

    Raises
    ------
    TargetError
        If ONNX Runtime is not installed or refuses the model, or it has several inputs or outputs.
    """

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        available = find_runtime()
        if not available.ok:
            raise TargetError("onnx", "not available", "ONNX Runtime", available.reason)
        import onnxruntime

        self.runtime = f"ONNX Runtime {onnxruntime.__version__} (float32, CPU)"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors: what it says of operators is no concern of the user
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions have no public base but this one
            raise TargetError("onnx", f"ONNX Runtime refuses the float model ({_first_line(error)})") from error
        sizes = len(self._session.get_inputs()), len(self._session.get_outputs())
        if sizes != (1, 1):
            raise TargetError("onnx", f"a float model of {sizes[0]} inputs and {sizes[1]} outputs", "one of each")
        self._input = self._session.get_inputs()[0].name

    def run(self, images: Floats) -> Floats:
        """Return the output, (B, K), for `images`, (B, *shape), float32.

        Raises
        ------
        TargetError
            If ONNX Runtime fails, such as on images of another shape.
        """
        try:
            answer: Floats = self._session.run(None, {self._input: images})[0]
        except Exception as error:  # as above
            raise TargetError("onnx", f"ONNX Runtime fails ({_first_line(error)})") from error
        return answer


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
