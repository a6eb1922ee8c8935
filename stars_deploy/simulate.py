"""A quantised network over an evaluation set: what it answers and what it does, counted per layer and timestep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.engines import Engine, Measurement, fast_engine
from stars_deploy.errors import ConfigError, DataError
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.synops import LayerCounts, NeuronSums, merge_sums

#: What a pixel takes while it is quantised: two doubles and two integers.
_PIXEL_BYTES = 32
#: Told how many samples of how many are done.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class LayerActivity:
    """What one population does, as the mean over the evaluation set; tuples hold one number a timestep.

    Parameters
    ----------
    name : str
    neurons : int
    spikes_per_step, spike_synops_per_step, input_synops_per_step, dense_synops_per_step : tuple of float
        Spikes emitted; synops entering from spiking populations, and from the graded input; the same with stored
        zero weights counted as well.
    active_per_step : tuple of float
        Neurons that received a non-zero input or fired; the others are updated as well, at the inactive rate.
    """

    name: str
    neurons: int
    spikes_per_step: tuple[float, ...]
    spike_synops_per_step: tuple[float, ...]
    input_synops_per_step: tuple[float, ...]
    dense_synops_per_step: tuple[float, ...]
    active_per_step: tuple[float, ...]

    @property
    def timesteps(self) -> int:
        """Timesteps for one inference."""
        return len(self.spikes_per_step)

    @property
    def synops_per_step(self) -> tuple[float, ...]:
        """Synops entering at each timestep, from spikes and from the graded input."""
        pairs = zip(self.spike_synops_per_step, self.input_synops_per_step, strict=True)
        return tuple(spike + graded for spike, graded in pairs)

    @property
    def firing_rate(self) -> float:
        """Spikes for each neuron and timestep."""
        return sum(self.spikes_per_step) / self.neuron_updates

    @property
    def neuron_updates(self) -> int:
        """Updates for one inference: every neuron at every timestep."""
        return self.neurons * self.timesteps

    def totals(self) -> dict[str, float]:
        """Return the counts of one inference by name, as in ``report.json``."""
        return {
            "synops": sum(self.synops_per_step),
            "spike_synops": sum(self.spike_synops_per_step),
            "input_synops": sum(self.input_synops_per_step),
            "dense_synops": sum(self.dense_synops_per_step),
            "neuron_updates": self.neuron_updates,
            "active_updates": sum(self.active_per_step),
            "inactive_updates": self.neuron_updates - sum(self.active_per_step),
            "spikes": sum(self.spikes_per_step),
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network's answers and its activity, per inference, as means over the evaluation set.

    Parameters
    ----------
    timesteps, samples : int
    accuracy : float or None
        Share of right answers; None where there are no labels.
    predictions : array of int, (samples,)
    input_messages : float
        Non-zero pixels x timesteps of one inference, which the input sends; none where the image sets biases.
    layers : tuple of LayerActivity
        In the order of the graph's populations.
    sums : NeuronSums or None
        What each neuron did, summed over all samples, where it was asked for.
    """

    timesteps: int
    samples: int
    accuracy: float | None
    predictions: npt.NDArray[np.int64]
    input_messages: float
    layers: tuple[LayerActivity, ...]
    sums: NeuronSums | None = None

    def totals(self) -> dict[str, float]:
        """Return the counts of one inference summed over layers."""
        total = dict.fromkeys(self.layers[0].totals(), 0.0)
        for layer in self.layers:
            for name, count in layer.totals().items():
                total[name] += count
        total["input_messages"] = self.input_messages
        return total


def run_evaluation(
    graph: QuantizedGraph,
    images: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    batch_size: int | None = None,
    image_memory: int = 64 << 20,
    timesteps: int | None = None,
    engine: Engine | None = None,
    per_neuron: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `graph` over an evaluation set in batches, and count.

    Parameters
    ----------
    graph : QuantizedGraph
    images : array, (samples, *shape) or (samples, T, *shape)
        Floats in the pixel range of the teacher, or integers already quantised [LSB]; one image, or one frame for each
        timestep.
    labels : array of int, (samples,), optional
    batch_size : int, optional
        Samples run at a time; by default what suits the engine and `image_memory`.
    image_memory : int
        What the quantised images of a batch may take [bytes].
    timesteps : int, optional
        In place of ``graph.timesteps``; prove the bounds for it first.
    engine : Engine, optional
        :func:`fast_engine` unless another is given.
    per_neuron : bool
        Count each neuron apart as well: 16 bytes for each neuron and timestep.
    progress : callable, optional
        ``progress(done, total)`` [samples], after each batch.

    Raises
    ------
    ConfigError
        If `batch_size` or `timesteps` is below 1.
    DataError
        If there are no images, they do not fit the input, or labels are too few, too many or not class indices.
    QuantizationError
        If a pixel leaves the range of the input.
    TargetError
        If an engine records spikes of another shape.
    """
    for name, value in (("batch_size", batch_size), ("timesteps", timesteps)):
        if value is not None and value < 1:
            raise ConfigError(name, value, "at least 1", f"ask for a {name} of one or more")
    runner = engine or fast_engine()
    network = graph if timesteps is None else graph.with_timesteps(timesteps)
    pixels = check_images(network, images)
    truth = None if labels is None else _checked_labels(network, labels, len(pixels))
    size = batch_size or max(1, min(runner.samples, image_memory // (_PIXEL_BYTES * pixels[0].size)))
    prepared = runner.prepare(network)
    collected = _run_batches(network, pixels, size, lambda frames: prepared.measure(frames, per_neuron), progress)
    return Evaluation(
        timesteps=network.timesteps,
        samples=len(pixels),
        accuracy=None if truth is None else float((collected.predictions == truth).mean()),
        predictions=collected.predictions,
        input_messages=collected.input_messages / len(pixels),
        layers=tuple(
            _mean(name, network.population(name).size, layer, len(pixels)) for name, layer in collected.counts.items()
        ),
        sums=collected.sums,
    )


def as_frames(graph: QuantizedGraph, images: npt.NDArray[Any]) -> IntArray:
    """Return images quantised, (B, *shape) or with time first (T, B, *shape) [LSB], as engines take them."""
    steps = images.astype(np.int64) if _is_quantized(images) else graph.input.quantize(images)
    return steps.swapaxes(0, 1) if graph.input.over_time(steps) else steps


@dataclass(frozen=True, kw_only=True)
class _Collected:
    predictions: IntArray
    input_messages: int
    counts: Mapping[str, LayerCounts]
    sums: NeuronSums | None


def _run_batches(
    graph: QuantizedGraph,
    pixels: npt.NDArray[Any],
    batch_size: int,
    measure: Callable[[IntArray], Measurement],
    progress: Progress | None,
) -> _Collected:
    """Return the predictions, and the counts summed over all samples."""
    counts: dict[str, LayerCounts] = {}
    sums: NeuronSums | None = None
    predictions, messages = np.zeros(len(pixels), np.int64), 0
    for start in range(0, len(pixels), batch_size):
        frames = as_frames(graph, pixels[start : start + batch_size])
        measured = measure(frames)
        for name, layer in measured.counts.items():
            counts[name] = counts[name] + layer if name in counts else layer
        sums = measured.sums if sums is None else merge_sums([sums, measured.sums])
        if not graph.input.biases:
            messages += int(np.count_nonzero(frames)) * (1 if graph.input.over_time(frames) else graph.timesteps)
        predictions[start : start + len(measured.classes)] = measured.classes
        if progress is not None:
            progress(start + len(measured.classes), len(pixels))
    predictions.setflags(write=False)
    return _Collected(predictions=predictions, input_messages=messages, counts=counts, sums=sums)


def _mean(name: str, neurons: int, counts: LayerCounts, samples: int) -> LayerActivity:
    def per_step(sums: IntArray) -> tuple[float, ...]:
        return tuple(int(total) / samples for total in sums)

    return LayerActivity(
        name=name,
        neurons=neurons,
        spikes_per_step=per_step(counts.spikes),
        spike_synops_per_step=per_step(counts.spike_synops),
        input_synops_per_step=per_step(counts.input_synops),
        dense_synops_per_step=per_step(counts.dense_synops),
        active_per_step=per_step(counts.active),
    )


def _is_quantized(images: npt.NDArray[Any]) -> bool:
    return bool(np.issubdtype(images.dtype, np.integer))


def check_images(graph: QuantizedGraph, images: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return images as an array if they fit the input of `graph`; raises as :func:`run_evaluation`."""
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise DataError("images", f"not an array ({error})", f"(samples, {graph.input.shape})") from error
    if not (_is_quantized(array) or np.issubdtype(array.dtype, np.floating)):
        raise DataError("images", f"dtype {array.dtype}", "floats, or integers already quantised")
    over_time = graph.input.fits(array.shape) and graph.input.over_time(array)
    if not graph.input.fits(array.shape) or (over_time and array.shape[1] != graph.timesteps):
        allowed = f"(samples, {graph.input.shape}), or (samples, {graph.timesteps} timesteps, {graph.input.shape})"
        raise DataError("images", f"shape {array.shape}", allowed, "choose another data set")
    if not len(array):
        raise DataError("images", "no images", "at least one", "give an evaluation set that is not empty")
    return array


def _checked_labels(graph: QuantizedGraph, labels: npt.ArrayLike, samples: int) -> npt.NDArray[Any]:
    array, classes = np.asarray(labels), graph.output.size
    if array.shape != (samples,) or not np.issubdtype(array.dtype, np.integer):
        raise DataError("labels", f"shape {array.shape}, dtype {array.dtype}", f"({samples},) integers, one an image")
    if array.min() < 0 or array.max() >= classes:
        raise DataError(
            "labels",
            f"classes from {array.min()} to {array.max()}",
            f"0 to {classes - 1}",
            "evaluate on the data set that the teacher was trained for",
        )
    return array
