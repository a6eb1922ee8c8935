"""Writing, verifying, simulating and comparing a network that is quantised already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.comparison import ComparisonRow, compare_graphs, mark_pareto
from stars_deploy.data import EvaluationSet
from stars_deploy.errors import ConfigError, DataError, VerificationError
from stars_deploy.hardware import load_profile
from stars_deploy.pipeline.directory import as_pixels
from stars_deploy.pipeline.models import Model, evaluation_set, open_model
from stars_deploy.progress import Observer
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.targets import TARGETS, find_target
from stars_deploy.verification import Verification, verify_target


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images, quantised [LSB] or as pixels, their labels if known, and where they are from."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    source: str


def write_targets(graph: QuantizedGraph, folder: Path, targets: Sequence[str]) -> list[Path]:
    """Write `graph` for each target into `folder`; return the files, each once."""
    written: list[Path] = []
    for name in targets:
        target = find_target(name)
        path = folder / target.filename
        if path not in written:
            target.write(graph, path)
            written.append(path)
    return written


def distinct_samples(model: Model, data: EvaluationSet | None, count: int) -> Samples:
    """Return up to `count` distinct quantised images: real ones, else synthetic ones, else noise.

    Raises
    ------
    DataError
        If there are not even two distinct images.
    """
    graph = model.graph
    labels: npt.NDArray[np.int64] | None = None
    pixels: npt.NDArray[Any]
    if data is not None:
        pixels, labels, source = data.images, data.labels, data.name
    elif model.directory is not None:
        pixels, source = as_pixels(model.directory.images().held_out), "held-out synthetic images"
    else:
        # Pixels of [0, 1] are what a scale and an offset of biases are for.
        largest_pixel = 1.0 if graph.input.biases else graph.input.precision.high / graph.input.scale
        pixels, source = noise_images(count, graph.input.shape) * largest_pixel, "noise"
    steps = graph.input.quantize(pixels[: 8 * count])
    _, first = np.unique(steps.reshape(len(steps), -1), axis=0, return_index=True)
    chosen = np.sort(first)[:count]
    if len(chosen) < 2:
        raise DataError(source, f"{len(chosen)} distinct images", "at least 2 distinct images to verify with")
    return Samples(images=steps[chosen], labels=None if labels is None else labels[chosen], source=source)


def noise_images(count: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return noise images (`count`, C, H, W) in [0, 1], each of another contrast; always the same ones."""
    random = np.random.default_rng(0)
    return random.random((count, *shape)) * random.random((count, 1, 1, 1))


def verify_targets(
    graph: QuantizedGraph, folder: Path, targets: Sequence[str], images: IntArray, observer: Observer
) -> list[Verification]:
    """Verify each target's file in `folder`; ``netx`` is always among them, because it needs no runtime.

    A target that cannot run here is in the result with the reason.
    """
    results: list[Verification] = []
    for name in dict.fromkeys(("netx", *targets)):
        observer.advanced(len(results), len(targets) + 1, name)
        result = verify_target(graph, name, folder / find_target(name).filename, images)
        if not result.ran:
            observer.noted(f"{name} was not run: {result.reason}")
        results.append(result)
    return results


def verify_model(
    path: str | Path,
    against: Sequence[str] | None = None,
    *,
    data: str | None = None,
    root: str | None = None,
    samples: int = 16,
    observer: Observer | None = None,
) -> list[Verification]:
    """Read back a model's artefacts, execute them and compare every spike with the reference.

    Parameters
    ----------
    path : path
        A built directory (its ``model.npz`` is the truth), or a ``.net`` file.
    against : sequence of str, optional
        Targets; by default all that can run here.
    data, root : str, optional
        Evaluation set to take the samples from.
    samples : int
        Distinct images, at least 2.
    observer : Observer, optional

    Returns
    -------
    list of Verification
        Give it to :func:`stars_deploy.verification.check_verified` to refuse differences.

    Raises
    ------
    VerificationError
        If a target asked for by name cannot run here: nothing was verified.
    """
    watch = observer or Observer()
    if samples < 2:
        raise ConfigError("--samples", samples, "at least 2")
    model = open_model(path)
    if against is None:
        names = [name for name in TARGETS if TARGETS[name].availability().ok]
    else:
        names = list(dict.fromkeys(against))
    images = distinct_samples(model, evaluation_set(model, data, root, None), samples).images
    results = []
    with watch.stage("verify"):
        for index, name in enumerate(names):
            watch.advanced(index, len(names), name)
            target = find_target(name)
            file = model.file.parent / target.filename if model.file.suffix == ".npz" else model.file
            result = verify_target(model.graph, name, file, images)
            if not result.ran:
                raise VerificationError(name, f"could not run ({result.reason})", "a target that runs here")
            results.append(result)
    return results


@dataclass(frozen=True, kw_only=True)
class _Material:
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    answers: npt.NDArray[np.int64] | None


def _compared_on(model: Model, data: str | None, root: str | None, limit: int | None) -> _Material:
    """Return the evaluation set, else held-out synthetic images with the teacher's answers."""
    evaluated = evaluation_set(model, data, root, limit)
    if evaluated is not None:
        return _Material(images=evaluated.images, labels=evaluated.labels, answers=None)
    if model.directory is None:
        raise DataError("--data", "not given", "an evaluation set", "add --data NAME [--root FOLDER]")
    synthetic = model.directory.images()
    return _Material(images=as_pixels(synthetic.held_out), labels=None, answers=synthetic.teacher_classes)


def compare_models(
    paths: Sequence[str | Path],
    *,
    timesteps: Sequence[int] = (1, 2, 4, 8),
    bits: Sequence[int] | None = None,
    data: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    hardware: str = "loihi2",
    observer: Observer | None = None,
) -> list[ComparisonRow]:
    """Compare models over timesteps and weight bits: one row a setting, accuracy beside latency and energy.

    Parameters
    ----------
    paths : sequence of path
        Built directories or ``.net`` files.
    timesteps : sequence of int
    bits : sequence of int, optional
        Weight bits, for built directories; by default those that each was built with.
    data, root, limit
        Evaluation set; by default that of each build. Without one, the fidelity to the teacher on held-out synthetic
        images stands in for the accuracy.
    hardware : str
    observer : Observer, optional

    Raises
    ------
    ConfigError
        If there is nothing to compare, or a setting is given twice or is impossible.
    DataError
        If a model comes with neither an evaluation set nor synthetic images.
    """
    if not paths:
        raise ConfigError("MODEL", "none given", "at least one built directory or .net file")
    _check_settings("--timesteps", timesteps, 1, None)
    if bits is not None:
        _check_settings("--bits", bits, 2, 8)
    watch = observer or Observer()
    profile = load_profile(hardware)
    rows: list[ComparisonRow] = []
    with watch.stage("compare"):
        for path in paths:
            model = open_model(path, timesteps[0] if timesteps else None)
            material = _compared_on(model, data, root, limit)
            rows += compare_graphs(
                [model.at_setting(steps, width) for width in bits or (None,) for steps in timesteps],
                material.images,
                material.labels,
                profile,
                built=model.graph,
                quantized_again=model.directory is not None,
                teacher_predictions=material.answers,
                teacher_macs=model.teacher_macs,
                model=model.name,
                progress=watch.advanced,
            )
    # Best among all of them, not only among the settings of one model.
    return mark_pareto(rows)


def _check_settings(option: str, values: Sequence[int], low: int, high: int | None) -> None:
    if not values or len(set(values)) != len(values) or min(values) < low or (high is not None and max(values) > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise ConfigError(option, list(values), f"whole numbers, {allowed}, each once")
