"""The two tasks of a sweep: integers for a setting, and what they do on the evaluation set.

Both results are ``.npz`` archives as their own modules write and check them, so they can be kept, sent and read back
without trust.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stars_deploy.activity import PROBE_SAMPLES, Activity, load_activity, measure_activity, save_activity
from stars_deploy.engines import fast_engine
from stars_deploy.export.calibration import calibrate_graph
from stars_deploy.export.quantization import quantize_graph
from stars_deploy.graph import SpikingGraph
from stars_deploy.lowering.passes import lower
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.serde import Graph, load_graph, load_quantized, save_graph
from stars_deploy.sweep.tasks import Array, SharedArray, Surroundings, Task
from stars_deploy.synops import connections

Read = TypeVar("Read")

#: Quantising runs the float network for every candidate of a scale: roughly as much as so many runs of integers.
_QUANTIZATION_RUNS = 50


@dataclass(frozen=True)
class PortableGraph:
    """A graph that goes to other processes as the file that it can be written to, and is checked when it arrives."""

    graph: Graph

    def __reduce__(self) -> tuple[Callable[[bytes], PortableGraph], tuple[bytes]]:
        return _arrived, (_written(lambda path: save_graph(self.graph, path)),)


def quantization(
    label: str, graph: SpikingGraph, images: SharedArray, *, bits: int, input_bits: int, built: QuantizedGraph
) -> Task:
    """Return the task of lowering, calibrating and quantising a float graph; :func:`read_graph` reads its result.

    Parameters
    ----------
    label : str
    graph : SpikingGraph
        At the timesteps of the setting.
    images : SharedArray, (N, *shape)
        To calibrate on, in [0, 1].
    bits, input_bits : int
    built : QuantizedGraph
        A network of the same size, by which the effort is told.
    """
    return Task(
        label=label,
        work=_quantize,
        payload={"graph": PortableGraph(graph), "bits": bits, "input_bits": input_bits},
        arrays=(images,),
        effort=_QUANTIZATION_RUNS * float(connections_of(built) * graph.timesteps * len(images.array)),
    )


def simulation(label: str, graph: QuantizedGraph, images: SharedArray, labels: SharedArray | None) -> Task:
    """Return the task of running a network over an evaluation set; :func:`read_activity` reads its result.

    Parameters
    ----------
    label : str
    graph : QuantizedGraph
    images : SharedArray, (samples, *shape) or (samples, T, *shape)
    labels : SharedArray, (samples,), optional
    """
    samples = len(images.array)
    return Task(
        label=label,
        work=_simulate,
        payload={"graph": PortableGraph(graph), "probe_samples": PROBE_SAMPLES},
        arrays=(images,) if labels is None else (images, labels),
        size=samples,
        effort=float(connections_of(graph) * graph.timesteps * samples),
    )


def read_graph(content: bytes) -> QuantizedGraph:
    """Return the network that :func:`quantization` made.

    Raises
    ------
    ArtifactError, FormatError
        If it is damaged.
    """
    return _read(content, load_quantized)


def read_activity(content: bytes) -> Activity:
    """Return what :func:`simulation` measured.

    Raises
    ------
    ArtifactError
        If it is damaged.
    """
    return _read(content, load_activity)


def _arrived(content: bytes) -> PortableGraph:
    return PortableGraph(_read(content, load_graph))


def connections_of(graph: QuantizedGraph) -> int:
    """Return the synapses of a network, zero weights included: what every neuron firing once would cost [synops]."""
    return sum(connections(projection, graph.shape_of(projection.source)) for projection in graph.projections)


def _quantize(payload: Any, arrays: Sequence[Array], surroundings: Surroundings) -> bytes:
    bits, input_bits = payload["bits"], payload["input_bits"]
    lowered = lower(payload["graph"].graph)
    calibration = calibrate_graph(lowered, arrays[0], bits, input_bits)
    graph = quantize_graph(lowered, bits, calibration.input_bits, calibration.shares)
    return _written(lambda path: save_graph(graph, path))


def _simulate(payload: Any, arrays: Sequence[Array], surroundings: Surroundings) -> bytes:
    images, *labels = arrays
    progress = surroundings.progress
    activity = measure_activity(
        payload["graph"].graph,
        images,
        labels[0] if labels else None,
        engine=fast_engine(surroundings.threads),
        probe_samples=payload["probe_samples"],
        progress=None if progress is None else lambda done, total: progress(done),
    )
    return _written(lambda path: save_activity(path, activity))


def _written(write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="stars-deploy-") as folder:
        path = Path(folder) / "result.npz"
        write(path)
        return path.read_bytes()


def _read(content: bytes, read: Callable[[Path], Read]) -> Read:
    with tempfile.TemporaryDirectory(prefix="stars-deploy-") as folder:
        path = Path(folder) / "result.npz"
        path.write_bytes(content)
        return read(path)
