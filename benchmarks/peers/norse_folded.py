"""The float student as this project trains it: norse neurons, convolutions over the folded time and batch axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import norse
import torch
from timing import measure_runs

from peers.ann_weights import load_images
from stars_deploy.student import Student, load_student


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time the student's own forward pass, normalisation included."""
    student, images = open_student(request)
    with torch.inference_mode():
        figures = measure_runs(lambda: student(images), len(images), request["seconds"])
        output = student(images)
    return {
        **figures,
        "version": f"norse {norse.__version__}, torch {torch.__version__}",
        "logits": output.mean_logits()[:8].tolist(),
        "spikes": [float(spikes.sum()) for spikes in output.spikes],
    }


def open_student(request: dict[str, Any]) -> tuple[Student, torch.Tensor]:
    """Return the student and its images, torch limited to the threads asked for."""
    torch.set_num_threads(request["threads"])
    student, _ = load_student(Path(request["folder"]) / "student.safetensors")
    return student, torch.from_numpy(load_images(request))
