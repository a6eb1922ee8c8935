"""What a network did on an evaluation set, before any chip is assumed: counts of every neuron, and some samples whole.

Measured, never estimated. :mod:`stars_deploy.traffic` puts it onto the cores of a chip; as it depends on no chip, one
activity serves any number of profiles, and can be kept in a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.artifacts import existing_file, write_arrays
from stars_deploy.engine import DEFAULT_MEMORY
from stars_deploy.engines import Engine, fast_engine
from stars_deploy.errors import ArtifactError
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.simulate import (
    Evaluation,
    LayerActivity,
    Progress,
    as_frames,
    check_images,
    run_evaluation,
)
from stars_deploy.synops import NeuronSums
from stars_deploy.targets.reference import present

#: Samples that are kept whole: enough for a mean time within some percent, and for its spread.
PROBE_SAMPLES = 128
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Some samples whole, for what is not linear in the counts: a chip waits for its busiest core, image by image.

    Parameters
    ----------
    samples : array of int, (P,)
        Which of the evaluation set; evenly spaced.
    sent : mapping of str to array of bool, (T, P, neurons)
        Messages of the input (none where the image sets biases) and of each population.
    active : mapping of str to array of bool, (T, P, neurons)
        Neurons of each population that received something through a non-zero weight, or fired.
    """

    samples: npt.NDArray[np.int64]
    sent: Mapping[str, npt.NDArray[np.bool_]]
    active: Mapping[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Activity:
    """An evaluation with the sums of each neuron in it, and a probe of single samples."""

    evaluation: Evaluation
    probe: Probe

    @property
    def sums(self) -> NeuronSums:
        """What each neuron did, summed over all samples."""
        if self.evaluation.sums is None:
            raise ArtifactError("activity", "an evaluation without the sums of each neuron", "one with per_neuron")
        return self.evaluation.sums


def measure_activity(
    graph: QuantizedGraph,
    images: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    engine: Engine | None = None,
    probe_samples: int = PROBE_SAMPLES,
    memory: int = DEFAULT_MEMORY,
    image_memory: int = 64 << 20,
    progress: Progress | None = None,
) -> Activity:
    """Run `graph` over an evaluation set, count every neuron, and keep some samples whole.

    Parameters
    ----------
    graph, images, labels, engine, image_memory, progress
        As for :func:`stars_deploy.simulate.run_evaluation`, which raises what this raises.
    probe_samples : int
        Samples to keep whole, at most; fewer where the set is smaller, or they would take a quarter of `memory`.
    memory : int
        [bytes]
    """
    runner = engine or fast_engine()
    evaluation = run_evaluation(
        graph, images, labels, engine=runner, image_memory=image_memory, per_neuron=True, progress=progress
    )
    pixels = check_images(graph, images)
    neurons = int(np.prod(graph.input.shape)) + 2 * sum(population.size for population in graph.populations)
    count = max(1, min(probe_samples, len(pixels), memory // 4 // (graph.timesteps * neurons)))
    samples = np.unique(np.linspace(0, len(pixels) - 1, count).round().astype(np.int64))
    prepared = runner.prepare(graph)
    traces = [
        prepared.trace(as_frames(graph, pixels[samples[start : start + runner.samples]]))
        for start in range(0, len(samples), runner.samples)
    ]
    spikes, active = (
        {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        for parts in ([trace.spikes for trace in traces], [trace.active for trace in traces])
    )
    shown = present(graph, as_frames(graph, pixels[samples]) != 0)
    sent = {graph.input.name: np.zeros_like(shown) if graph.input.biases else shown, **spikes}
    return Activity(
        evaluation=evaluation,
        probe=Probe(
            samples=samples,
            sent={name: _flat(flags) for name, flags in sent.items()},
            active={name: _flat(flags) for name, flags in active.items()},
        ),
    )


def save_activity(path: str | os.PathLike[str], activity: Activity) -> None:
    """Write an activity as an ``.npz``, whole or not at all; spikes take a bit each.

    Raises
    ------
    ArtifactError
        If the file cannot be written.
    """
    evaluation, probe = activity.evaluation, activity.probe
    arrays: dict[str, npt.NDArray[Any]] = {
        "predictions": evaluation.predictions,
        "probe_samples": probe.samples,
    }
    for name, flags in probe.sent.items():
        arrays[f"probe_sent/{name}"] = np.packbits(flags, axis=-1)
        arrays[f"sent/{name}"] = activity.sums.sent[name]
    for name, flags in probe.active.items():
        arrays[f"probe_active/{name}"] = np.packbits(flags, axis=-1)
        arrays[f"active/{name}"] = activity.sums.active[name]
    fields = ("spikes", "spike_synops", "input_synops", "dense_synops", "active")
    head = {
        "schema": SCHEMA_VERSION,
        "timesteps": evaluation.timesteps,
        "samples": evaluation.samples,
        "accuracy": evaluation.accuracy,
        "input_messages": evaluation.input_messages,
        "sources": list(probe.sent),
        "layers": [
            {"name": layer.name, "neurons": layer.neurons, **{key: getattr(layer, f"{key}_per_step") for key in fields}}
            for layer in evaluation.layers
        ],
    }
    arrays["head"] = np.frombuffer(json.dumps(head).encode("utf-8"), np.uint8)
    write_arrays(path, arrays)


def load_activity(path: str | os.PathLike[str]) -> Activity:
    """Read what :func:`save_activity` wrote; nothing is unpickled.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged or of another schema.
    """
    file = existing_file(Path(path))
    try:
        with np.load(file, allow_pickle=False) as archive:
            head = json.loads(archive["head"].tobytes().decode("utf-8"))
            if head["schema"] != SCHEMA_VERSION:
                raise ArtifactError(str(file), f"schema {head['schema']}", str(SCHEMA_VERSION), "measure again")
            return _restore(head, archive)
    except ArtifactError:
        raise
    except Exception as error:  # a damaged zip raises whatever its decoder met first
        raise ArtifactError(str(file), f"not readable ({error})", remedy="measure again") from error


def _restore(head: Mapping[str, Any], archive: Mapping[str, npt.NDArray[Any]]) -> Activity:
    layers = tuple(
        LayerActivity(
            name=layer["name"],
            neurons=layer["neurons"],
            **{f"{key}_per_step": tuple(values) for key, values in layer.items() if key not in ("name", "neurons")},
        )
        for layer in head["layers"]
    )
    sent: dict[str, IntArray] = {name: archive[f"sent/{name}"] for name in head["sources"]}
    active: dict[str, IntArray] = {layer.name: archive[f"active/{layer.name}"] for layer in layers}

    def unpacked(key: str, name: str) -> npt.NDArray[np.bool_]:
        bits = archive[f"{key}/{name}"]
        return np.unpackbits(bits, axis=-1, count=int(np.prod(sent[name].shape[1:]))).astype(np.bool_)

    return Activity(
        evaluation=Evaluation(
            timesteps=head["timesteps"],
            samples=head["samples"],
            accuracy=head["accuracy"],
            predictions=archive["predictions"],
            input_messages=head["input_messages"],
            layers=layers,
            sums=NeuronSums(sent=sent, active=active),
        ),
        probe=Probe(
            samples=archive["probe_samples"],
            sent={name: unpacked("probe_sent", name) for name in sent},
            active={name: unpacked("probe_active", name) for name in active},
        ),
    )


def _flat(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return np.ascontiguousarray(flags).reshape(*flags.shape[:2], -1)
