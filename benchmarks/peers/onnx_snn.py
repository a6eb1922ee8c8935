"""The project's own ONNX models of an integer network, whole sequence or one step, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from timing import measure_runs

from peers.integer_network import open_network
from stars_deploy.targets.onnx_model import OnnxNetwork, OnnxTarget
from stars_deploy.targets.reference import run_reference

#: Samples on which the model is compared with the reference.
AGREE = 4


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Write the model of ``request["mode"]``, compare it with the reference, and time it on quantised images."""
    graph, images = open_network(request)
    path = Path(request["folder"]) / f"{request['mode']}.onnx"
    OnnxTarget(mode=request["mode"]).write(graph, path)
    network = OnnxNetwork(path, threads=request["threads"])
    network.samples = len(images)
    record = run_reference(graph, images[:AGREE])
    potential, counts = network.run(images[:AGREE])
    wanted = [layer.reshape(*layer.shape[:2], -1).sum(axis=2).T for layer in record.spikes.values()]
    if not np.array_equal(potential, record.potential) or not np.array_equal(counts, np.stack(wanted, axis=-1)):
        return {"reason": "WRONG ANSWER: differs from the reference", "wrong": True}
    figures = measure_runs(lambda: network.run(images), len(images), request["seconds"], warm_up=2)
    return {**figures, "version": onnxruntime.__version__, "bytes": path.stat().st_size}
