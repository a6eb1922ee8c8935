"""Models in ONNX Runtime: every spike for verification, or counts and potentials alone for simulation."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from stars_deploy.errors import FormatError, TargetError
from stars_deploy.populations import STATE_EXP, IntArray, QuantizedInput
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.base import Availability, SpikeRecord
from stars_deploy.targets.onnx_model.drawing import describe
from stars_deploy.targets.onnx_model.frames import channels_first, payload_kind
from stars_deploy.targets.onnx_model.outputs import BATCH, readout_of
from stars_deploy.targets.onnx_model.reader import OnnxFile, read_onnx
from stars_deploy.targets.onnx_model.sequence import SPIKES, spikes_name
from stars_deploy.targets.onnx_model.step import NEXT
from stars_deploy.targets.reference import check_images, present

#: Neurons of the largest population times samples that are run at a time: what fits the second cache runs fastest.
_TOGETHER = 100_000
_MOST_SAMPLES = 256
Answer = dict[str, npt.NDArray[Any]]


def find_runtime() -> Availability:
    """Say whether ONNX Runtime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(ok=False, reason="ONNX Runtime is not installed: pip install 'onnxruntime>=1.19'")
    return Availability(ok=True)


def execute_onnx(path: Path, images: IntArray, timesteps: int) -> SpikeRecord:
    """Run the model in a file on quantised `images` and return every spike.

    Where the model takes an image, it gets pixels that quantise to `images`, so that its own quantisation is run too.
    What the model answers is compared with the spikes and potentials inside it.

    Raises
    ------
    TargetError
        If ONNX Runtime is not installed or fails, or the model takes one image and gets one for each timestep.
    FormatError
        If the file is damaged, or its outputs contradict the spikes inside.
    """
    read_onnx(path, timesteps)  # refuses another number of timesteps
    return OnnxNetwork(path, record=True, timesteps=timesteps).execute(images)


class OnnxNetwork:
    """A model made ready for running many batches.

    Parameters
    ----------
    path : Path
        Written by stars-deploy.
    threads : int
        For each operator.
    timesteps : int, optional
        Those that the file must be for.
    record : bool
        Whether :meth:`execute` shall answer every spike; then :meth:`run` is slower.

    Raises
    ------
    FormatError
        If the file is damaged or holds what stars-deploy does not write.
    TargetError
        If ONNX Runtime is not installed or refuses the model.
    """

    def __init__(self, path: Path, *, threads: int = 1, record: bool = False, timesteps: int | None = None) -> None:
        self._file, self._where = read_onnx(path, timesteps), str(path)
        self._session = _Session(self._file, record=record or self._file.mode == "step", threads=threads)
        largest = max(population.size for population in self.graph.populations)
        #: Samples that are run at a time.
        self.samples = max(1, min(_MOST_SAMPLES, _TOGETHER // largest))

    @property
    def graph(self) -> QuantizedGraph:
        """The network in the file."""
        return self._file.graph

    def run(self, images: IntArray) -> tuple[IntArray, IntArray]:
        """Run a batch of quantised images, (B, *shape) or (T, B, *shape) [LSB].

        Returns
        -------
        potential : array of int, (B, N) [LSB]
            Membrane potential of the last population after the last timestep.
        spike_counts : array of int, (B, T, layers)

        Raises
        ------
        QuantizationError
            If the images do not fit the input.
        TargetError
            If ONNX Runtime fails, or the model takes one image and gets one for each timestep.
        """
        graph = self.graph
        check_images(graph, images)
        over_time = graph.input.over_time(images)
        samples = images.shape[1 if over_time else 0]
        potential = np.zeros((samples, graph.output.size), np.int64)
        counts = np.zeros((samples, graph.timesteps, len(graph.populations)), np.int64)
        for start in range(0, samples, self.samples):
            chunk = slice(start, start + self.samples)
            spikes, answer = self._session.run(images[:, chunk] if over_time else images[chunk])
            potential[chunk] = answer["potential"]
            counts[chunk] = answer["spike_counts"] if "spike_counts" in answer else count_spikes(spikes)
        return potential, counts

    def execute(self, images: IntArray) -> SpikeRecord:
        """Run a batch and return every spike, of a network made with ``record``.

        Raises
        ------
        FormatError
            If the model's outputs contradict the spikes inside.
        QuantizationError, TargetError
            As :meth:`run`.
        """
        check_images(self.graph, images)
        spikes, answer = self._session.run(images)
        _check_answer(self._where, self.graph, spikes, answer)
        return SpikeRecord(spikes=spikes, potential=answer["potential"].astype(np.int64))


def count_spikes(spikes: dict[str, npt.NDArray[np.bool_]]) -> IntArray:
    """Return the spikes of each population, (T, B, *shape), as (B, T, layers)."""
    sums = [layer.reshape(*layer.shape[:2], -1).sum(axis=2) for layer in spikes.values()]
    counts: IntArray = np.stack(sums, axis=-1).swapaxes(0, 1).astype(np.int64)
    return counts


def find_pixels(source: QuantizedInput, payloads: IntArray) -> npt.NDArray[np.float32]:
    """Return float32 pixels that `source` quantises to `payloads`.

    Raises
    ------
    TargetError
        If there are none.
    """
    pixels = ((payloads - source.offset) / source.scale).astype(np.float32)
    if (np.rint(pixels.astype(np.float64) * source.scale + source.offset) == payloads).all():
        return pixels
    for direction in (None, np.float32(np.inf), np.float32(-np.inf)):
        moved = pixels if direction is None else np.nextafter(pixels, direction)
        steps = np.rint(moved.astype(np.float64) * source.scale + source.offset)
        pixels = np.where(steps == payloads, moved, pixels)
    steps = np.rint(pixels.astype(np.float64) * source.scale + source.offset)
    if (steps != payloads).any():
        raise TargetError(
            source.name, "payloads that no float32 pixel stands for", "payloads that some do", "export with payloads"
        )
    return pixels


class _Session:
    """An inference session with what it is fed and answers."""

    def __init__(self, file: OnnxFile, record: bool, threads: int) -> None:
        if not find_runtime().ok:
            raise TargetError("onnx", "not available", "ONNX Runtime", find_runtime().reason)
        import onnxruntime

        self._file, self._record = file, record
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        model = file.model
        if record and file.mode == "sequence":
            model = _with_spikes(model, file.graph)
        try:
            content = model.SerializeToString()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions have no public base but this one
            raise TargetError("onnx", f"ONNX Runtime refuses the model ({_first_line(error)})") from error

    def run(self, images: IntArray) -> tuple[dict[str, npt.NDArray[np.bool_]], Answer]:
        """Run a batch; return the spikes if recorded, (T, B, *shape), and the outputs."""
        graph, source = self._file.graph, self._file.source
        over_time = graph.input.over_time(images)
        if self._file.mode == "step":
            frames = self._feed(present(graph, images))
            return self._step_through(frames)
        if source == "image" and over_time:
            raise TargetError(
                graph.input.name, "a frame for each timestep", "one image", "export with payloads as the input"
            )
        answer = self._ask({source: self._feed(images if source == "image" else present(graph, images))})
        recorded = {}
        for population in graph.populations if self._record else ():
            values = answer.pop(spikes_name(population.name))
            recorded[population.name] = channels_first(values, population.shape).astype(bool)
        return recorded, answer

    def _feed(self, payloads: IntArray) -> npt.NDArray[Any]:
        if self._file.source == "image":
            return find_pixels(self._file.graph.input, payloads)
        return np.ascontiguousarray(payloads, dtype=payload_kind(self._file.graph.input))

    def _step_through(self, frames: npt.NDArray[Any]) -> tuple[dict[str, npt.NDArray[np.bool_]], Answer]:
        populations = self._file.graph.populations
        state = self._first_state(frames.shape[1])
        steps: dict[str, list[npt.NDArray[np.bool_]]] = {population.name: [] for population in populations}
        answer: Answer = {}
        for frame in frames:
            answer = self._ask({self._file.source: frame, **state})
            state = {name: answer[NEXT + name] for name in state}
            for population in populations:
                steps[population.name].append(answer[spikes_name(population.name)].astype(bool))
        kept = {name: answer[name] for name in ("logits", "potential")}
        return {name: np.stack(frames_of) for name, frames_of in steps.items()}, kept

    def _first_state(self, batch: int) -> Answer:
        described = list(self._file.model.graph.input)[1:]
        return {value.name: _zeros_like(value, batch) for value in described}

    def _ask(self, feed: Answer) -> Answer:
        names = [output.name for output in self._session.get_outputs()]
        try:
            values: Iterable[npt.NDArray[Any]] = self._session.run(names, feed)
        except Exception as error:  # as above
            raise TargetError("onnx", f"ONNX Runtime fails ({_first_line(error)})") from error
        return dict(zip(names, values, strict=True))


def _zeros_like(described: Any, batch: int) -> npt.NDArray[Any]:
    from onnx import helper

    tensor = described.type.tensor_type
    shape = [batch if axis.dim_param else axis.dim_value for axis in tensor.shape.dim]
    return np.zeros(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _with_spikes(model: ModelProto, graph: QuantizedGraph) -> ModelProto:
    """Return a copy that also answers the spikes inside; nothing in it computes anything else."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for population in graph.populations:
        axes: list[int | str] = [graph.timesteps, BATCH, population.size]
        copy.graph.output.append(describe(spikes_name(population.name), SPIKES, axes))
    return copy


def _check_answer(where: str, graph: QuantizedGraph, spikes: dict[str, npt.NDArray[np.bool_]], answer: Answer) -> None:
    """Compare a model's outputs with the spikes and potentials inside it."""
    if readout_of(graph) == "potential":
        wanted = (answer["potential"] / (graph.output.scale * (1 << STATE_EXP) * graph.timesteps)).astype(np.float32)
    else:
        wanted = spikes[graph.output.name].sum(axis=0).reshape(answer["logits"].shape).astype(np.float32)
    if not np.array_equal(wanted, answer["logits"]):
        raise FormatError(where, "logits that contradict its potentials or spikes", "the same", "export it again")
    if "spike_counts" in answer and not np.array_equal(answer["spike_counts"], count_spikes(spikes)):
        raise FormatError(where, "spike counts that contradict its spikes", "the same", "export it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
