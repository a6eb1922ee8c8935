"""Makes a student of the VGG kind with random weights and a realistic firing rate, and writes it for every peer.

He-initialised weights; the batch norms take the statistics of noise images and a shift at which each layer fires at the
rate asked for; then the project's own trace, lowering and quantisation make the integer graph.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from peers.ann_weights import load_ann
from stars_deploy.export.quantization import quantize_graph
from stars_deploy.export.trace import trace_student
from stars_deploy.lowering.passes import lower
from stars_deploy.serde import save_graph
from stars_deploy.student import NeuronModel, SpikingLayer, Student, build_student, describe_student, save_student
from stars_deploy.targets.netx_writer import write_netx
from stars_deploy.teacher import InputFormat, Teacher

CLASSES = 10
FORM = InputFormat(shape=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
#: torch's own, which the student's layers have.
BATCH_NORM_EPS = 1e-5
#: Noise images that set the statistics of the batch norms.
CALIBRATION_IMAGES = 32
#: Bounds of a batch norm's shift [thresholds], and halvings of them: enough for any rate to three digits.
SHIFTS = (-4.0, 4.0)
HALVINGS = 16


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Write ``student.safetensors``, ``ann.npz``, ``model.npz`` and ``images.npy`` into ``request["folder"]``.

    Returns
    -------
    dict
        ``macs_first``, ``macs_rest``: multiply-accumulates of one image in the first layer, which sees the same image
        at every timestep, and in the others at one timestep. ``ann_logits``: of the float ANN, for the first images.
    """
    torch.manual_seed(request["seed"])
    folder = Path(request["folder"])
    neuron = NeuronModel()
    labels = tuple(str(index) for index in range(CLASSES))
    teacher = Teacher(spec="none", module=nn.Identity(), input=FORM, labels=labels, weights={}, norms=())
    with torch.no_grad():
        student, _ = build_student(teacher, request["topology"], request["timesteps"], neuron)
        images = torch.rand(request["images"], *FORM.shape)
        _calibrate(student.eval(), images[:CALIBRATION_IMAGES], request["rate"])
        save_student(
            student, describe_student(student, request["topology"], labels, neuron), folder / "student.safetensors"
        )
        macs = _write_ann(student, folder)
        ann_logits = _run_ann(folder, images[:8])
        graph = quantize_graph(lower(trace_student(student, labels)), bits=8, input_bits=8)
        save_graph(graph, folder / "model.npz")
        write_netx(graph, folder / "model.net")
    np.save(folder / "images.npy", images.numpy())
    return {"macs_first": macs[0], "macs_rest": sum(macs[1:]), "ann_logits": ann_logits.tolist()}


def _calibrate(student: Student, images: Tensor, rate: float) -> None:
    values = (images - student.mean) / student.std
    norm: nn.BatchNorm2d | None = None
    for layer in student.layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        if isinstance(layer, nn.BatchNorm2d):
            norm = layer
            norm.running_mean, norm.running_var = values.mean((0, 2, 3)), values.var((0, 2, 3))
        elif isinstance(layer, SpikingLayer) and norm is not None:
            values = _shift_to_rate(norm, layer, values, student.timesteps, rate)
            continue
        else:
            values = layer(values)


def _shift_to_rate(norm: nn.BatchNorm2d, layer: SpikingLayer, values: Tensor, timesteps: int, rate: float) -> Tensor:
    """Set the shift of `norm` so that `layer` fires at `rate`; return the spikes, the time axis in the batch."""
    first = len(values) == CALIBRATION_IMAGES  # every later layer has a time axis folded into its batch
    low, high = SHIFTS
    for _ in range(HALVINGS):
        nn.init.constant_(norm.bias, (low + high) / 2)
        normalised = norm(values)
        current = normalised.expand(timesteps, *values.shape) if first else normalised.unflatten(0, (timesteps, -1))
        spikes = layer(current)
        low, high = ((low + high) / 2, high) if spikes.mean() < rate else (low, (low + high) / 2)
    folded: Tensor = spikes.flatten(0, 1)
    return folded


def _write_ann(student: Student, folder: Path) -> list[int]:
    """Write the convolutions with their batch norms folded in, and the linear layer; return each layer's MACs."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    strides: list[int] = []
    macs: list[int] = []
    size = FORM.shape[1]
    layers = list(student.layers)
    for position, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            weight, bias = _folded(layer, layers[position + 1])
            arrays[f"conv{len(strides)}.weight"], arrays[f"conv{len(strides)}.bias"] = weight.numpy(), bias.numpy()
            strides.append(layer.stride[0])
            size = -(-size // layer.stride[0])
            macs.append(layer.weight.numel() * size * size)
        elif isinstance(layer, nn.Linear):
            arrays["dense.weight"], arrays["dense.bias"] = layer.weight.numpy(), layer.bias.numpy()
            macs.append(layer.weight.numel())
    np.savez(folder / "ann.npz", **arrays)  # type: ignore[arg-type]  # its stub has an option that takes a bool
    about = {"strides": strides, "mean": FORM.mean, "std": FORM.std, "shape": FORM.shape, "decay": NeuronModel().decay}
    (folder / "ann.json").write_text(json.dumps(about), encoding="utf-8")
    return macs


def _folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that does what `conv` and the batch norm after it do."""
    state = norm.state_dict()
    factor = state["weight"] / (state["running_var"] + BATCH_NORM_EPS).sqrt()
    return conv.weight * factor.view(-1, 1, 1, 1), state["bias"] - state["running_mean"] * factor


def _run_ann(folder: Path, images: Tensor) -> Tensor:
    """Return the logits of the topology with ReLU in place of neurons, (B, K), by torch."""
    ann = load_ann(str(folder))
    values = torch.from_numpy(ann.normalized(images.numpy()))
    for weight, bias, stride in ann.convolutions:
        values = functional.conv2d(values, torch.from_numpy(weight), torch.from_numpy(bias), stride, padding=1).relu()
    logits: Tensor = functional.linear(values.flatten(1), *(torch.from_numpy(part) for part in ann.dense))
    return logits
