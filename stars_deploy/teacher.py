"""The teacher: a frozen ANN with batch normalisation, its input normalisation, and where its weights came from."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stars_deploy.architectures import build_ann
from stars_deploy.artifacts import sha256, written_whole
from stars_deploy.errors import StarsDeployError, TeacherError
from stars_deploy.weights import check_finite, read_metadata, read_weights

#: The weights that ship with the package: digits, trained by ``stars-deploy teacher`` (see CONTRIBUTING).
DIGITS_WEIGHTS = Path(__file__).parent / "assets" / "digits.safetensors"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ALLOWED = "digits, vgg:C1-C2-..., package.module:factory, path/to/file.py:factory, torchvision:NAME, or a .safetensors"


@dataclass(frozen=True, kw_only=True)
class InputFormat:
    """What a teacher expects: (C, H, W), and the per-channel mean and std that its pixels in [0, 1] are normalised by."""

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise TeacherError("--input-shape", self.shape, "channels,height,width", "for example --input-shape 1,28,28")
        if not len(self.mean) == len(self.std) == self.shape[0] or min(self.std) <= 0:
            raise TeacherError(
                "--mean/--std", f"{self.mean} / {self.std}", f"{self.shape[0]} values each, std greater than 0"
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
    """

    spec: str
    module: nn.Module
    input: InputFormat
    labels: tuple[str, ...]
    weights: dict[str, str]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def normalized(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] as the module takes them."""
        mean = torch.tensor(self.input.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.input.std).view(1, -1, 1, 1)
        return (images - mean) / std

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, (B, K), of images in [0, 1]. Gradients reach the images, never the weights."""
        output: Tensor = self.module(self.normalized(images))
        return output

    def predict(self, images: Tensor, batch: int = 512) -> Tensor:
        """Return the predicted classes, (B,), without gradients."""
        with torch.no_grad():
            return torch.cat([self.logits(part).argmax(1) for part in images.split(batch)])


@dataclass(frozen=True, kw_only=True)
class NormStatistics:
    """What one batch normalisation of the teacher remembers of its training data; all (C,)."""

    name: str
    mean: Tensor
    var: Tensor
    gamma: Tensor
    beta: Tensor


def norm_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the batch normalisations of a module with their names, in definition order."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BATCH_NORMS)]


def norm_statistics(teacher: Teacher) -> list[NormStatistics]:
    """Return the statistics of every batch normalisation of a teacher."""
    result = []
    for name, layer in norm_layers(teacher.module):
        mean, var = layer.running_mean, layer.running_var
        ones = torch.ones_like(mean)
        gamma = ones if layer.weight is None else layer.weight
        beta = torch.zeros_like(mean) if layer.bias is None else layer.bias
        result.append(NormStatistics(name=name, mean=mean, var=var, gamma=gamma, beta=beta))
    return result


@contextlib.contextmanager
def watched_norms(teacher: Teacher) -> Iterator[list[Tensor]]:
    """Collect the input of every batch normalisation during the forward passes inside the block."""
    inputs: list[Tensor] = []

    def remember(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0])

    hooks = [layer.register_forward_pre_hook(remember) for _, layer in norm_layers(teacher.module)]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


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
    input_shape : sequence of int, optional
        (C, H, W).
    mean, std : sequence of float, optional
        Normalisation of pixels in [0, 1], per channel.
    classes : int, optional
        Number of classes, where neither weights nor module tell.
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
    stated = read_metadata(weights) if weights else {}
    factory_spec = stated.get("spec", "") if spec.endswith(".safetensors") else spec
    if not factory_spec:
        raise TeacherError(
            spec, "holds no description of its network", ALLOWED, "name the network with --teacher and give --weights"
        )
    if factory_spec.startswith("vgg:"):
        shape = tuple(input_shape or stated.get("input_shape", ()))
        if len(shape) != 3:
            raise TeacherError("--input-shape", "not given", "channels,height,width", "add it, for example 1,28,28")
        count = classes or len(stated.get("labels", ())) or 10
        module: nn.Module = build_ann(factory_spec, shape, count, where="--teacher")
    else:
        module = _made_by_factory(factory_spec)
    if weights is None:
        raise TeacherError("--weights", "not given", ".safetensors (or a torch state dict)", "add --weights FILE")
    _load_state(module, Path(weights), trust_weights)
    form = _input_format(module, stated, input_shape, mean, std, torchvision=spec.startswith("torchvision:"))
    labels = tuple(getattr(module, "labels", ()) or stated.get("labels", ()))
    record = {"file": Path(weights).name, "sha256": sha256(weights)}
    return _checked(factory_spec, module, form, labels, classes, record)


def save_teacher(module: nn.Module, path: str | Path, description: dict[str, Any]) -> None:
    """Write a teacher's weights with its description (spec, input_shape, mean, std, labels, ...) as safetensors."""
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    with written_whole(path) as draft:
        save_file(state, str(draft), metadata={"stars_deploy": json.dumps(description)})


def _made_by_factory(spec: str) -> nn.Module:
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise TeacherError("--teacher", spec, ALLOWED)
    if place == "torchvision":
        from torchvision import models

        if name not in models.list_models():
            raise TeacherError("--teacher", f"torchvision has no model {name}", "a name of torchvision.models")
        built = models.get_model(name, weights=None, weights_backbone=None) if "_" in name else models.get_model(name)
        return _as_module(built, spec)
    factory = getattr(_module_at(place), name, None)
    if not callable(factory):
        raise TeacherError("--teacher", f"{place} has no callable {name}", ALLOWED, "check the name after the colon")
    try:
        return _as_module(factory(), spec)
    except StarsDeployError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        raise TeacherError("--teacher", f"{spec}() raised {type(error).__name__}: {error}", ALLOWED) from error


def _as_module(built: object, spec: str) -> nn.Module:
    if not isinstance(built, nn.Module):
        raise TeacherError("--teacher", f"{spec} made a {type(built).__name__}", "a torch.nn.Module")
    return built


def _module_at(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise TeacherError("--teacher", f"{place} does not exist", ALLOWED, "check the path")
        description = importlib.util.spec_from_file_location(f"stars_deploy_teacher_{path.stem}", path)
        if description is None or description.loader is None:
            raise TeacherError("--teacher", f"{place} cannot be imported", ALLOWED)
        module = importlib.util.module_from_spec(description)
        sys.modules[description.name] = module
        description.loader.exec_module(module)
        return module
    except StarsDeployError:
        raise
    except Exception as error:  # importing a stranger's file may raise anything
        raise TeacherError("--teacher", f"importing {place} raised {type(error).__name__}: {error}", ALLOWED) from error


def _load_state(module: nn.Module, path: Path, trust: bool) -> None:
    state = read_weights(path, trust=trust)
    check_finite(state, str(path))
    expected = module.state_dict()
    missing = sorted(name for name in expected.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise TeacherError(
            str(path),
            f"missing {missing[:4]}, unknown {unknown[:4]} ({len(missing)} and {len(unknown)} in all)",
            "exactly the network's own parameters",
            "give the weights of this network, or the network of these weights with --teacher",
        )
    wrong = [name for name, value in state.items() if value.shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        raise TeacherError(
            f"{path}:{name}",
            f"shape {tuple(state[name].shape)}",
            f"{tuple(expected[name].shape)}",
            "check the class count and the input shape",
        )
    module.load_state_dict(state, strict=False)


def _input_format(
    module: nn.Module,
    stated: dict[str, Any],
    shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    torchvision: bool,
) -> InputFormat:
    usual = {"input_shape": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def known(name: str, given: Sequence[Any] | None) -> tuple[Any, ...]:
        value = given or getattr(module, name, None) or stated.get(name) or (usual[name] if torchvision else None)
        if value is None:
            option = "--" + name.replace("_", "-")
            raise TeacherError(
                option,
                "not known for this teacher",
                "values per channel" if name != "input_shape" else "channels,height,width",
                f"add {option}, or give the module an attribute `{name}`",
            )
        return tuple(value)

    return InputFormat(shape=known("input_shape", shape), mean=known("mean", mean), std=known("std", std))


def _checked(
    spec: str,
    module: nn.Module,
    form: InputFormat,
    labels: tuple[str, ...],
    classes: int | None,
    record: dict[str, str],
) -> Teacher:
    norms = norm_layers(module)
    if not norms:
        raise TeacherError(
            spec,
            "has no batch normalisation",
            "a network with BatchNorm layers and running statistics",
            "data-free distillation reads what BatchNorm remembers of the training data; take or train such a network",
        )
    for name, layer in norms:
        if layer.running_var is None or not bool((layer.running_var > 0).all()):
            raise TeacherError(f"{spec}:{name}", "no running statistics, or zero variance", "positive running_var")
    module.eval().requires_grad_(False)
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, *form.shape))
    except Exception as error:  # a stranger's forward may raise anything
        raise TeacherError(
            spec, f"does not run on images {form.shape} ({error})", remedy="check --input-shape"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise TeacherError(spec, f"returns {getattr(output, 'shape', type(output).__name__)}", "logits (batch, classes)")
    count = output.shape[1]
    if (classes or count) != count or (labels and len(labels) != count):
        raise TeacherError(spec, f"{count} logits", f"{classes or len(labels)} classes")
    labels = labels or tuple(str(index) for index in range(count))
    return Teacher(spec=spec, module=module, input=form, labels=labels, weights=record)
