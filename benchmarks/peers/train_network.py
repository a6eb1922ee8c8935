"""Makes the network that all systems train: a student from scratch, with batch norms that have seen noise images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stars_deploy.student import NeuronModel, build_student
from stars_deploy.teacher import InputFormat, Teacher

CLASSES = 10


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Write ``train.npz`` and ``train.json`` into ``request["folder"]``."""
    torch.manual_seed(request["seed"])
    shape = tuple(request["shape"])
    form = InputFormat(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    labels = tuple(str(index) for index in range(CLASSES))
    teacher = Teacher(spec="none", module=nn.Identity(), input=form, labels=labels, weights={}, norms=())
    neuron = NeuronModel()
    student, _ = build_student(teacher, request["topology"], request["timesteps"], neuron)
    images = torch.randn(request["batch"], *shape)
    with torch.no_grad():
        for _ in range(20):
            student.train()(images)
    arrays: dict[str, np.ndarray[Any, Any]] = {"images": images.numpy(), "teacher": 4 * np.random.default_rng(
        request["seed"]).standard_normal((request["batch"], CLASSES)).astype(np.float32)}  # fmt: skip
    convs = [layer for layer in student.layers if isinstance(layer, nn.Conv2d)]
    for index, (conv, norm) in enumerate(zip(convs, student.norms(), strict=True)):
        arrays[f"conv{index}.weight"] = conv.weight.detach().numpy()
        arrays.update({f"norm{index}.{name}": value.numpy() for name, value in norm.state_dict().items()})
    dense = student.layers[-1]
    arrays.update({f"dense.{name}": value.numpy() for name, value in dense.state_dict().items()})
    folder = Path(request["folder"])
    np.savez(folder / "train.npz", **arrays)  # type: ignore[arg-type]
    about = {"strides": [conv.stride[0] for conv in convs], "decay": neuron.decay}
    (folder / "train.json").write_text(json.dumps(about), encoding="utf-8")
    return {"parameters": sum(value.numel() for value in student.parameters())}
