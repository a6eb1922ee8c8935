"""The teacher: a frozen ANN with batch normalisation, its input normalisation, and where its weights came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stars_deploy.architectures import build_ann
from stars_deploy.artifacts import sha256
from stars_deploy.errors import ConfigError, StarsDeployError, TeacherError
from stars_deploy.norms import norm_layers, norm_statistics, watched_norms
from stars_deploy.teacher_source import ALLOWED, make_module
from stars_deploy.weights import check_finite, read_weights, without_wrapper, write_tensors

#: The weights that ship with the package: digits, trained by ``stars-deploy teacher`` (see CONTRIBUTING).
DIGITS_WEIGHTS = Path(__file__).parent / "assets" / "digits.safetensors"
#: What torchvision's classifiers were trained with (its documentation, "Models and pre-trained weights").
TORCHVISION_INPUT: Mapping[str, tuple[float, ...]] = {
    "input_shape": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@dataclass(frozen=True, kw_only=True)
class InputFormat:
    """What a teacher expects: (C, H, W), and per channel the mean and std that normalise pixels in [0, 1]."""

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_shape(self.shape)
        if not (
            len(self.mean) == len(self.std) == self.shape[0]
            and all(isinstance(value, (int, float)) and math.isfinite(value) for value in (*self.mean, *self.std))
            and min(self.std) > 0
        ):
            raise TeacherError(
                "--mean/--std",
                f"{self.mean} / {self.std}",
                f"{self.shape[0]} finite values each, std greater than 0",
                "give one value for each channel",
            )


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen classifier.

    Parameters
    ----------
    spec : str
        How it was asked for.
    module : torch.nn.Module
        In eval mode, without gradients; takes *normalised* images, returns logits.
    input : InputFormat
    labels : tuple of str
        Class names, in the order of the logits.
    weights : dict
        File name and sha256 of the weights, for the report.
    norms : tuple of str
        The batch normalisations that run, in order of execution; found out by :func:`load_teacher`.
    """

    spec: str
    module: nn.Module
    input: InputFormat
    labels: tuple[str, ...]
    weights: dict[str, str]
    norms: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.module.parameters()).device

    def normalized(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] as the module takes them."""
        mean = torch.tensor(self.input.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.input.std, device=images.device).view(1, -1, 1, 1)
        return (images - mean) / std

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, (B, K), of images in [0, 1]. Gradients reach the images, never the weights."""
        output: Tensor = self.module(self.normalized(images))
        return output

    def predict(self, images: Tensor, batch: int = 512) -> Tensor:
        """Return the predicted classes, (B,), without gradients."""
        with torch.no_grad():
            return torch.cat([self.logits(part).argmax(1) for part in torch.split(images, batch)])


def load_teacher(
    spec: str = "digits",
    weights: str | Path | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: int | None = None,
    trust_weights: bool = False,
) -> Teacher:
    """Load a teacher and check that it can be distilled.

    What the caller does not state is taken from the module's own attributes (``input_shape``, ``mean``, ``std``,
    ``labels``), then from the metadata that ``stars-deploy teacher`` writes beside the weights.

    Parameters
    ----------
    spec : str
        ``digits`` (ships with the package), ``vgg:16-32-64``, ``package.module:factory``, ``file.py:factory``,
        ``torchvision:NAME``, or the ``.safetensors`` that ``stars-deploy teacher`` wrote.
    weights : path, optional
        ``.safetensors``, or a torch state dict (loaded with ``weights_only=True``).
    input_shape, mean, std : sequence, optional
        (C, H, W), and the normalisation of pixels in [0, 1], per channel.
    classes : int, optional
        Number of classes; checked against the network.
    trust_weights : bool
        Load a torch file although torch is older than 2.6 (CVE-2025-32434).

    Raises
    ------
    TeacherError
        If anything about it is missing, damaged or cannot be distilled.
    """
    if spec == "digits":
        spec, weights = str(DIGITS_WEIGHTS), weights or DIGITS_WEIGHTS
    if spec.endswith(".safetensors"):
        weights = weights or spec
    if weights is None:
        raise TeacherError("--weights", "not given", ".safetensors (or a torch state dict)", "add --weights FILE")
    state, stated = read_weights(weights, trust=trust_weights)
    network = _described_network(spec, stated) if spec.endswith(".safetensors") else spec
    if network.startswith("vgg:"):
        module = _built_in(network, input_shape or stated.get("input_shape"), state, where=str(weights))
    else:
        module = make_module(network, classes)
    _load_state(module, state, str(weights))
    given = {"input_shape": input_shape, "mean": mean, "std": std}
    record = {"file": Path(weights).name, "sha256": sha256(weights)}
    return _checked(network, module, given, stated, classes, record)


def untrained_teacher(
    spec: str,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: int | None = None,
) -> Teacher:
    """Return a network as it is made, without weights: enough to see where its neurons and synapses would go.

    Parameters as for :func:`load_teacher`; ``vgg:...`` has 10 classes unless `classes` says otherwise.

    Raises
    ------
    TeacherError
        If it cannot be made or could not be distilled.
    """
    if spec.startswith("vgg:"):
        if input_shape is None:
            raise TeacherError("--input-shape", "not given", "channels,height,width", "add it, for example 1,28,28")
        _check_shape(tuple(input_shape))
        module: nn.Module = build_ann(spec, tuple(input_shape), classes or 10, where="--teacher")
    else:
        module = make_module(spec, classes)
    # Where neurons go does not depend on the normalisation: what is not known is taken as none.
    shape: Sequence[Any] = input_shape or getattr(module, "input_shape", None) or (3,)
    known = {"mean": (0.0,) * int(shape[0]), "std": (1.0,) * int(shape[0])}
    given = {"input_shape": input_shape, "mean": mean, "std": std}
    return _checked(spec, module, given, {} if spec.startswith("torchvision:") else known, classes, {})


def _checked(
    network: str,
    module: nn.Module,
    given: Mapping[str, Sequence[Any] | None],
    stated: Mapping[str, Any],
    classes: int | None,
    record: dict[str, str],
) -> Teacher:
    """Return the teacher if it runs and has what distillation reads."""
    usual = TORCHVISION_INPUT if network.startswith("torchvision:") else {}
    shape, *normalization = (_known(name, value, module, stated, usual) for name, value in given.items())
    form = InputFormat(shape=shape, mean=normalization[0], std=normalization[1])
    module.eval().requires_grad_(False)
    count, norms = _tried(network, module, form)
    if (classes or count) != count:
        raise TeacherError("--classes", classes, f"{count}, the logits of {network}")
    labels = _labels(network, module, stated, count)
    return Teacher(spec=network, module=module, input=form, labels=labels, weights=record, norms=norms)


def save_teacher(module: nn.Module, path: str | Path, description: Mapping[str, Any]) -> None:
    """Write a teacher's weights with its description (spec, input_shape, mean, std, labels, ...) as safetensors."""
    write_tensors(module.state_dict(), description, path)


def _described_network(spec: str, stated: Mapping[str, Any]) -> str:
    """Return the network that a weights file describes; never one whose making would run code."""
    network = stated.get("spec", "")
    if not isinstance(network, str) or not network.startswith("vgg:"):
        raise TeacherError(
            spec,
            f"describes its network as {network!r}" if network else "holds no description of its network",
            "a built-in network (vgg:...), written by `stars-deploy teacher`",
            f"name the network with --teacher ({ALLOWED}) and give this file as --weights",
        )
    return network


def _built_in(network: str, shape: Any, state: Mapping[str, Tensor], where: str) -> nn.Module:
    if shape is None:
        raise TeacherError("--input-shape", "not given", "channels,height,width", "add it, for example 1,28,28")
    shape = _numbers("input_shape", shape)
    _check_shape(shape)
    dense = [value for value in state.values() if value.ndim == 2]
    if len(dense) != 1:
        raise TeacherError(where, f"{len(dense)} matrices among its weights", f"the one linear layer of {network}")
    try:
        with torch.device("meta"):  # no memory before the sizes are known to be those of the file
            outline = build_ann(network, shape, len(dense[0]), where="--teacher")
    except ConfigError as error:
        raise TeacherError(error.where, error.got, error.allowed, error.remedy) from error
    _check_fits(without_wrapper(state, outline.state_dict()), outline.state_dict(), where)
    return build_ann(network, shape, len(dense[0]))


def _load_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    expected = module.state_dict()
    state = without_wrapper(state, expected)
    _check_fits(state, expected, where)
    module.load_state_dict(state, strict=False)
    # After the conversion to the network's own precision, where large numbers may have become infinite.
    check_finite(module.state_dict(), where)


def _check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    missing = sorted(name for name in expected.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise TeacherError(
            where,
            f"missing {missing[:4]}, unknown {unknown[:4]} ({len(missing)} and {len(unknown)} in all)",
            "exactly the network's own parameters",
            "give the weights of this network, or the network of these weights with --teacher",
        )
    for name, value in state.items():
        wanted = expected[name]
        if value.shape != wanted.shape or value.is_floating_point() != wanted.is_floating_point():
            raise TeacherError(
                f"{where}:{name}",
                f"{value.dtype} of shape {tuple(value.shape)}",
                f"{wanted.dtype} of shape {tuple(wanted.shape)}",
                "check the class count and the input shape",
            )


def _check_shape(shape: tuple[Any, ...]) -> None:
    if len(shape) != 3 or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise TeacherError("--input-shape", shape, "channels,height,width", "for example --input-shape 1,28,28")


def _known(
    name: str, given: Sequence[Any] | None, module: nn.Module, stated: Mapping[str, Any], usual: Mapping[str, Any]
) -> tuple[Any, ...]:
    candidates = (given, getattr(module, name, None), stated.get(name), usual.get(name))
    value = next((candidate for candidate in candidates if candidate is not None), None)
    if value is None:
        option = "--" + name.replace("_", "-")
        raise TeacherError(
            option,
            "not known for this teacher",
            "channels,height,width" if name == "input_shape" else "one value for each channel",
            f"add {option}, or give the module an attribute `{name}`",
        )
    return _numbers(name, value)


def _numbers(name: str, value: Any) -> tuple[Any, ...]:
    # A tensor or a method of that name is likely to be part of the module's own computation: not ours to guess.
    if not isinstance(value, (tuple, list)) or not value or not all(isinstance(item, (int, float)) for item in value):
        option = "--" + name.replace("_", "-")
        raise TeacherError(
            option, f"{value!r:.60} in the teacher or its weights", "a list of numbers", f"state it with {option}"
        )
    return tuple(value)


def _tried(spec: str, module: nn.Module, form: InputFormat) -> tuple[int, tuple[str, ...]]:
    """Run the module once; return the number of its logits and the batch norms that ran, in order."""
    remedy = "data-free distillation reads what BatchNorm remembers of the training data; take or train such a network"
    if not norm_layers(module):
        others = sorted({type(layer).__name__ for layer in module.modules() if "Norm" in type(layer).__name__})
        found = f" but {', '.join(others)}" if others else ""
        if any("Batch" in name for name in others):  # FrozenBatchNorm2d, SyncBatchNorm: the same by another name
            remedy = "put BatchNorm2d with the same weights and statistics in their place, and save the network so"
        raise TeacherError(
            spec, f"has no batch normalisation{found}", "a network with BatchNorm1d or BatchNorm2d", remedy
        )
    # Before running it: without running statistics a batch norm would answer for the batch.
    norm_statistics(module, tuple(name for name, _ in norm_layers(module)))
    try:
        with torch.no_grad(), watched_norms(module) as seen:
            output = module(torch.zeros(2, *form.shape))
    except StarsDeployError:
        raise
    except Exception as error:  # a stranger's forward may raise anything
        raise TeacherError(
            spec, f"does not run on images {form.shape} ({error})", "(batch, channels, height, width)",
            "check --input-shape",
        ) from error  # fmt: skip
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2 or output.shape[1] < 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TeacherError(spec, f"returns {got} for 2 images", "logits (2, classes), at least 2 classes")
    if not bool(torch.isfinite(output).all()):
        raise TeacherError(spec, "returns NaN or infinite logits", "finite logits", "check the weights")
    if not seen.inputs:
        raise TeacherError(spec, "runs none of its batch normalisations", "a network that uses BatchNorm", remedy)
    return output.shape[1], tuple(seen.inputs)


def _labels(spec: str, module: nn.Module, stated: Mapping[str, Any], count: int) -> tuple[str, ...]:
    labels = getattr(module, "labels", None) or stated.get("labels") or [str(index) for index in range(count)]
    if not isinstance(labels, (tuple, list)) or len(labels) != count:
        got = f"{len(labels)} labels" if isinstance(labels, (tuple, list)) else type(labels).__name__
        raise TeacherError(f"{spec}: labels", got, f"a list of {count} names, one for each logit")
    return tuple(str(label) for label in labels)
