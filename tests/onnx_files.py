"""Small networks, models and changed models that the tests of the ONNX target share."""

from __future__ import annotations

import onnx

from stars_deploy.targets.onnx_model import OnnxTarget
from stars_deploy.targets.onnx_model.runtime import count_spikes
from stars_deploy.targets.reference import run_reference


def written(graph, path, mode="sequence", source="image"):
    """Write `graph` and return the model."""
    OnnxTarget(mode, source).write(graph, path)
    return onnx.load(path)


def changed(path, change):
    """Load the model in `path`, change it, write it back."""
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())


def reference_counts(graph, images):
    """Return potential and spike counts (B, T, layers) of the reference."""
    record = run_reference(graph, images)
    return record.potential, count_spikes(record.spikes)
