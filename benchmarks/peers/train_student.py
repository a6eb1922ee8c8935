"""The training step of our student."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peers.train_task import load_task, time_training
from stars_deploy import __version__
from stars_deploy.spiking import NeuronModel, SpikingLayer, Student
from stars_deploy.teacher import InputFormat


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time it."""
    torch.set_num_threads(request["threads"])
    task = load_task(request)
    layers: list[nn.Module] = []
    for conv, norm in task.convolutions:
        layers += [conv, norm, SpikingLayer(NeuronModel(decay=task.decay))]
    channels = task.images.shape[1]
    form = InputFormat(shape=tuple(task.images.shape[1:]), mean=(0.0,) * channels, std=(1.0,) * channels)
    student = Student([*layers, nn.Flatten(), task.dense], form, task.timesteps)
    version = f"stars-deploy {__version__}, torch {torch.__version__}"
    return time_training(task, student, lambda images: student(images).mean_logits(), request, version)
