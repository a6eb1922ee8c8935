"""From what was trained elsewhere, or left by a build, to integers: a student, a ``.nir``, a folder or a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.artifacts import existing_file
from stars_deploy.data import load_calibration
from stars_deploy.errors import ConfigError, DataError
from stars_deploy.export.calibration import Calibration, LayerReport
from stars_deploy.graph import Normalize, SpikingGraph
from stars_deploy.lowering.chains import fresh_name
from stars_deploy.lowering.passes import canonicalize
from stars_deploy.pipeline.directory import IMAGES, RunDirectory, as_pixels
from stars_deploy.pipeline.models import Reading, open_model, quantize_calibrated
from stars_deploy.pipeline.samples import noise_images, noise_spikes
from stars_deploy.quantized import QuantizedGraph

#: Noise images for calibration where a network comes without better ones.
NOISE_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Importing:
    """What a float network of another tool does not say itself.

    Parameters
    ----------
    dt : float, optional
        Length of a timestep [s]; needed for a ``.nir`` that stars-deploy did not write.
    calibration : str, optional
        ``noise``, or an ``.npz`` with an array ``images`` (:func:`stars_deploy.data.load_calibration`); by default the
        synthetic images beside a student, else noise.
    recurrent_delay : int
        Timesteps put on each edge that closes a loop; 0 refuses loops that have no delay of their own.
    mean, std : tuple of float, optional
        Normalisation of the input that the network was trained with, one number a channel, where the file leaves it to
        its user.
    """

    dt: float | None = None
    calibration: str | None = None
    recurrent_delay: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Integers, the canonical float graph that they were rounded from if it is known, and how they were found."""

    graph: QuantizedGraph
    origin: SpikingGraph | None
    calibrated_on: str
    calibration: Calibration | None = None

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """What quantisation did to each layer; empty where nothing was quantised."""
        return () if self.calibration is None else self.calibration.layers

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of that."""
        return () if self.calibration is None else self.calibration.warnings


def quantise_model(
    path: Path, timesteps: int | None, bits: int | None, input_bits: int | None, importing: Importing
) -> Quantised:
    """Return the integers of a ``student.safetensors``, a ``.nir``, a folder or a file of integers.

    Raises
    ------
    ConfigError
        If something is asked for that cannot be had of such a model.
    """
    if path.suffix == ".nir":
        return _quantise_nir(path, timesteps, bits, input_bits, importing)
    if importing not in (Importing(), Importing(calibration=importing.calibration)):
        raise ConfigError("--dt, --recurrent-delay, --mean, --std", f"given for {path}", "only for a .nir file")
    if path.suffix == ".safetensors":
        return _quantise_student(path, timesteps, bits, input_bits, importing.calibration)
    if importing.calibration is not None:
        raise ConfigError("--calibration", f"given for {path}", "only for a student or a .nir file")
    return _opened(path, timesteps, bits, input_bits)


def _quantise_nir(
    path: Path, timesteps: int | None, bits: int | None, input_bits: int | None, importing: Importing
) -> Quantised:
    from stars_deploy.targets.nir_graph import read_nir, round_file  # loads NIR

    file = read_nir(path, dt=importing.dt, timesteps=timesteps, recurrent_delay=importing.recurrent_delay)
    asked = (bits, input_bits, importing.calibration, importing.mean, importing.std)
    if file.rounding is not None and asked == (None,) * len(asked):
        graph = round_file(file, path)
        return Quantised(graph=graph, origin=file.graph, calibrated_on="nothing: the scales are those of the file")
    canonical = canonicalize(_normalized(file.graph, importing))
    images, source = _calibration_images(canonical, _known(input_bits), importing.calibration, None)
    return _calibrated(canonical, images, source, bits, input_bits)


def _normalized(graph: SpikingGraph, importing: Importing) -> SpikingGraph:
    """Put the normalisation asked for behind the input."""
    if importing.mean is None and importing.std is None:
        return graph
    channels = graph.input.shape[0]
    mean, std = importing.mean or (0.0,) * channels, importing.std or (1.0,) * channels
    if any(isinstance(node, Normalize) for node in graph.nodes):
        raise ConfigError("--mean, --std", "given", "only for a file that does not state its own normalisation")
    if len(mean) != channels or len(std) != channels:
        raise ConfigError("--mean, --std", f"{len(mean)} and {len(std)} numbers", f"{channels}, one a channel")
    name = fresh_name("normalize", {node.name for node in graph.nodes})
    node = Normalize(name=name, mean=np.array(mean), std=np.array(std))
    source = graph.input.name
    edges = tuple((name if one == source else one, other) for one, other in graph.edges)
    return graph.with_nodes((*graph.nodes, node), ((source, name), *edges))


def _quantise_student(
    path: Path, timesteps: int | None, bits: int | None, input_bits: int | None, calibration: str | None
) -> Quantised:
    # torch is needed for this only, so the other commands do not wait for it.
    from stars_deploy.export.trace import trace_student
    from stars_deploy.student import load_student

    student, plan = load_student(existing_file(path))
    if timesteps is not None:
        student.timesteps = timesteps
    canonical = canonicalize(trace_student(student, plan.labels))
    images, source = _calibration_images(canonical, _known(input_bits), calibration, path.parent)
    return _calibrated(canonical, images, source, bits, input_bits)


def _calibrated(
    canonical: SpikingGraph, images: npt.NDArray[Any], source: str, bits: int | None, input_bits: int | None
) -> Quantised:
    graph, calibration = quantize_calibrated(canonical, images, _known(bits), _known(input_bits))
    return Quantised(graph=graph, origin=canonical, calibrated_on=source, calibration=calibration)


def _calibration_images(
    graph: SpikingGraph, input_bits: int, asked: str | None, folder: Path | None
) -> tuple[npt.NDArray[Any], str]:
    """Return images (N, *shape) or frames (T, N, *shape), and where they are from."""
    shape = tuple(graph.input.shape)
    if asked is None and folder is not None and (folder / IMAGES).is_file():
        return as_pixels(RunDirectory(folder).images().calibration), f"synthetic images of {folder / IMAGES}"
    if asked in (None, "noise"):
        if input_bits == 1:
            return noise_spikes(NOISE_IMAGES, graph.timesteps, shape).swapaxes(0, 1), "noise of spikes"
        return noise_images(NOISE_IMAGES, shape) * graph.input.high, "noise"
    images = load_calibration(str(asked))
    if images.shape[1:] == shape:
        return images, str(asked)
    if images.shape[1:] == (graph.timesteps, *shape):
        return images.swapaxes(0, 1), str(asked)
    allowed = f"(samples, {shape}), or (samples, {graph.timesteps} timesteps, {shape})"
    raise DataError(f"{asked}:images", f"shape {images.shape}", allowed)


def _opened(path: Path, timesteps: int | None, bits: int | None, input_bits: int | None) -> Quantised:
    # What is written is the network; in which time it is run is chosen when it is read.
    reading = Reading(input_bits=_known(input_bits), timing="synchronous") if path.suffix == ".net" else None
    model = open_model(path, timesteps, reading)
    if input_bits is not None and model.file.suffix != ".net":
        raise ConfigError("--input-bits", f"{input_bits} for {path}", "only for a student, a .nir or a .net file")
    graph = model.at_setting(timesteps, bits)
    origin = model.origin(graph.timesteps)
    if graph is not model.graph and model.directory is not None:
        return Quantised(graph=graph, origin=origin, calibrated_on=f"synthetic images of {path}")
    return Quantised(graph=graph, origin=origin, calibrated_on="nothing: the integers are those of the file")


def _known(bits: int | None) -> int:
    return 8 if bits is None else bits
