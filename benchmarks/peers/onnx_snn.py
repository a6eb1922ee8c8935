"""The project's own ONNX models of an integer network, whole sequence or one step, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from timing import measure_runs

from peers.ann_weights import load_images
from peers.integer_network import open_network
from stars_deploy.targets.onnx_model import OnnxNetwork, OnnxTarget
from stars_deploy.targets.reference import run_reference

#: What NumPy calls the types of ONNX Runtime's inputs.
KINDS = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
#: Samples on which the model is compared with the reference.
AGREE = 4


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Write the model of ``request["mode"]``, compare it with the reference, and time it on quantised images."""
    graph, images = open_network(request)
    path = Path(request["folder"]) / f"{request['mode']}.onnx"
    OnnxTarget(mode=request["mode"]).write(graph, path)
    network = OnnxNetwork(path, threads=request["threads"])
    record = run_reference(graph, images[:AGREE])
    potential, counts = network.run(images[:AGREE])
    wanted = [layer.reshape(*layer.shape[:2], -1).sum(axis=2).T for layer in record.spikes.values()]
    if not np.array_equal(potential, record.potential) or not np.array_equal(counts, np.stack(wanted, axis=-1)):
        return {"reason": "WRONG ANSWER: differs from the reference", "wrong": True}
    pixels = load_images(request)
    figures = measure_runs(_open(path, request, pixels, graph.timesteps), len(pixels), request["seconds"], warm_up=2)
    return {**figures, "version": onnxruntime.__version__, "bytes": path.stat().st_size}


def _open(path: Path, request: dict[str, Any], pixels: np.ndarray[Any, Any], timesteps: int) -> Callable[[], None]:
    """Return a run of the model on float pixels with ONNX Runtime alone, as a user would."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = request["threads"]
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if request["mode"] == "sequence":
        return lambda: session.run(None, {"image": pixels})
    outputs = [output.name for output in session.get_outputs()]
    first = {
        item.name: np.zeros([axis if isinstance(axis, int) else len(pixels) for axis in item.shape], KINDS[item.type])
        for item in session.get_inputs()[1:]
    }

    def step_through() -> None:
        state = first
        for _ in range(timesteps):
            answer = dict(zip(outputs, session.run(outputs, {"image": pixels, **state}), strict=True))
            state = {name: answer[f"next/{name}"] for name in state}

    return step_through
