"""Running a network over an evaluation set, with the engine of choice."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stars_deploy.activity import measure_activity
from stars_deploy.artifacts import write_arrays
from stars_deploy.bounds import find_overflow
from stars_deploy.cost import estimate_cost, summarize_cost
from stars_deploy.data import load_payloads
from stars_deploy.engine import DEFAULT_MEMORY, FastEngine
from stars_deploy.engines import Engine, fast_engine, recording_engine
from stars_deploy.errors import ConfigError, TargetError
from stars_deploy.hardware import load_profile
from stars_deploy.pipeline.beside import single_step_beside
from stars_deploy.pipeline.models import Model, Reading, evaluation_set, open_model
from stars_deploy.pipeline.samples import Samples, distinct_samples
from stars_deploy.pipeline.verifying import write_targets
from stars_deploy.progress import Observer
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation
from stars_deploy.targets import find_target
from stars_deploy.targets.reference import run_reference

#: Engines of ``simulate``.
ENGINES = ("fast", "reference", "onnx", "lava")
#: Samples drawn when a bare file comes without any images.
NOISE_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What :func:`simulate_model` measured, and the same as the JSON that ``--json`` prints."""

    evaluation: Evaluation
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """What runs a network.

    Parameters
    ----------
    name : str
        One of :data:`ENGINES`.
    threads : int, optional
        Of the fast engine; by default one for each processor.
    memory : int
        Budget of the fast engine [bytes].
    """

    name: str = "fast"
    threads: int | None = None
    memory: int = DEFAULT_MEMORY


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Which spikes to keep, and where: an ``.npz`` of one array (T, samples, *shape) for each layer, and ``potential``.

    Parameters
    ----------
    layers : collection of str
        Names of populations; ``all`` alone for every one.
    out : path
    """

    layers: Collection[str]
    out: str | Path


def simulate_model(
    path: str | Path,
    *,
    data: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    timesteps: int | None = None,
    reading: Reading | None = None,
    hardware: str = "loihi2",
    engine: EngineChoice | None = None,
    recording: Recording | None = None,
    observer: Observer | None = None,
) -> Simulation:
    """Run a network over an evaluation set: accuracy, spikes, synops, latency, energy.

    Parameters
    ----------
    path : path
        What :func:`~stars_deploy.pipeline.models.open_model` opens.
    data, root, limit
        Evaluation set, or an ``.npz`` of payloads (:func:`stars_deploy.data.load_payloads`); by default the set of the
        build, else held-out synthetic images, else noise (counts only).
    timesteps : int, optional
        In place of the network's own.
    reading : Reading, optional
        How a ``.net`` is read.
    hardware : str
        ``loihi1``, ``loihi2`` or a YAML profile.
    engine, recording, observer
        The fast engine, no spikes kept and nobody told, unless given.

    Raises
    ------
    ConfigError
        If there is no such engine or layer, or the spikes or one sample do not fit the memory.
    TargetError
        If the engine is not available here.
    """
    watch, choice = observer or Observer(), engine or EngineChoice()
    profile = load_profile(hardware)
    model = open_model(path, timesteps, reading)
    graph = model.at_setting(timesteps)
    image_memory = min(64 << 20, choice.memory // 4)
    choice = replace(choice, memory=choice.memory - image_memory)
    prepared = _engine(choice, model, graph, reading or Reading(), watch)
    samples = _simulated_on(replace(model, graph=graph), data, root, limit)
    with watch.stage("simulate"):
        activity = measure_activity(
            graph, samples.images, samples.labels, image_memory=image_memory, engine=prepared, memory=choice.memory,
            progress=lambda done, of: watch.advanced(done, of),
        )  # fmt: skip
    evaluation = activity.evaluation
    beside = single_step_beside(model, samples.images, samples.labels, profile, fast_engine(choice.threads))
    cost = estimate_cost(graph, activity, profile, teacher=model.teacher(), same_chip=beside)
    summary = {
        "model": str(path),
        "engine": choice.name,
        "data": samples.source,
        "overflow": find_overflow(graph),
        "samples": evaluation.samples,
        "timesteps": evaluation.timesteps,
        "accuracy": evaluation.accuracy,
        **summarize_cost(graph, evaluation, cost),
    }
    if recording is not None:
        summary["recorded"] = _record(graph, samples, recording, choice, watch)
    return Simulation(evaluation=evaluation, summary=summary)


def _record(
    graph: QuantizedGraph, samples: Samples, recording: Recording, choice: EngineChoice, watch: Observer
) -> dict[str, Any]:
    if choice.name != "fast":
        raise ConfigError("--record", f"given with --engine {choice.name}", "--engine fast")
    everything = [population.name for population in graph.populations]
    names = everything if tuple(recording.layers) == ("all",) else list(recording.layers)
    images = samples.images if np.issubdtype(samples.images.dtype, np.integer) else graph.input.quantize(samples.images)
    if graph.input.fits(images.shape) and graph.input.over_time(images):
        images = images.swapaxes(0, 1)
    with watch.stage("record"):
        run = FastEngine(graph, threads=choice.threads, memory=choice.memory).run(images, record=names)
        write_arrays(recording.out, {**run.spikes, "potential": run.potential})
    return {"file": str(recording.out), "layers": names}


def _simulated_on(model: Model, data: str | None, root: str | None, limit: int | None) -> Samples:
    payloads = None if data is None else load_payloads(data, limit)
    if payloads is not None:
        return Samples(images=payloads.inputs, labels=payloads.labels, source=payloads.name)
    evaluated = evaluation_set(model, data, root, limit)
    if evaluated is None:
        return distinct_samples(model, None, limit or NOISE_SAMPLES)
    return Samples(images=evaluated.images, labels=evaluated.labels, source=evaluated.name)


def _engine(choice: EngineChoice, model: Model, graph: QuantizedGraph, reading: Reading, watch: Observer) -> Engine:
    if choice.name == "fast":
        return fast_engine(choice.threads, choice.memory)
    if choice.name == "reference":
        return recording_engine(run_reference)
    if choice.name not in ENGINES:
        raise ConfigError("--engine", choice.name, ", ".join(ENGINES))
    available = find_target(choice.name).availability()
    if not available.ok:
        raise TargetError(f"--engine {choice.name}", "not available here", ", ".join(ENGINES), available.reason)
    if choice.name == "onnx":
        return _onnx_engine(choice, model, graph, watch)
    return _lava_engine(model, graph, reading)


def _lava_engine(model: Model, graph: QuantizedGraph, reading: Reading) -> Engine:
    from stars_deploy.targets.lava import LavaTarget

    if model.directory is not None and graph is not model.graph:
        raise ConfigError("--timesteps", graph.timesteps, f"{model.graph.timesteps} with --engine lava")
    target = LavaTarget(timing=reading.timing, reset_interval=reading.reset_interval, reset_offset=reading.reset_offset)
    file = model.artefact("lava")
    if file is None:
        raise ConfigError("--engine lava", f"cannot run {model.file}", "a built directory or a .net file")
    return recording_engine(lambda _, images: target.execute(file, images, graph.timesteps))


def _onnx_engine(choice: EngineChoice, model: Model, graph: QuantizedGraph, watch: Observer) -> Engine:
    """Run the artefact where it holds this network; else one that is written for the occasion."""
    from stars_deploy.targets.onnx_model import OnnxNetwork

    file = model.artefact("onnx")
    if graph is model.graph and file is not None and file.is_file():
        network = OnnxNetwork(file, threads=choice.threads or 1, record=True)
    else:
        watch.noted("no model.onnx holds this network: one is written for this simulation alone")
        with tempfile.TemporaryDirectory() as folder:
            (file,) = write_targets(graph, Path(folder), ["onnx"])
            network = OnnxNetwork(file, threads=choice.threads or 1, record=True)
    return recording_engine(lambda _, images: network.execute(images))
