"""What the later commands open: a built directory, a ``model.npz`` or a ``.net`` file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stars_deploy.data import EvaluationSet, load_dataset
from stars_deploy.errors import ArtifactError, ConfigError, DataError
from stars_deploy.export.calibration import Calibration, calibrate_graph
from stars_deploy.export.quantization import quantize_graph
from stars_deploy.graph import SpikingGraph
from stars_deploy.pipeline.directory import FLOAT_GRAPH, MODEL, REPORT, RunDirectory, as_pixels
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.serde import load_quantized, load_spiking
from stars_deploy.targets.netx_reader import read_netx


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a ``.net`` is read: what such a file does not say itself.

    Parameters
    ----------
    input_bits : int
        Bits of the input's messages, for files that do not state them; 1 for plain spikes.
    timing, reset_interval, reset_offset
        See :func:`stars_deploy.targets.netx_reader.read_netx`.
    """

    input_bits: int = 8
    timing: str | None = None
    reset_interval: int = 0
    reset_offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Model:
    """An integer network and, where it was built here, its folder."""

    name: str
    file: Path
    graph: QuantizedGraph
    directory: RunDirectory | None = None

    @property
    def teacher_macs(self) -> int | None:
        """Multiply-accumulates of the teacher, where the folder's report tells."""
        if self.directory is None or not self.directory.file(REPORT).is_file():
            return None
        return int(self.directory.report()["ann"]["macs"])

    def at_setting(self, timesteps: int | None = None, bits: int | None = None) -> QuantizedGraph:
        """Return the network for another number of timesteps or weight bits.

        A built directory quantises its float graph again, because the readout's scale depends on how long it
        integrates, and proves its bounds; a file alone is run with the integers that it has.

        Raises
        ------
        ConfigError
            If other weight bits are asked of a file, whose float weights are not known.
        QuantizationError
            If an accumulator could leave 24 bits at that setting.
        """
        timesteps = self.graph.timesteps if timesteps is None else timesteps
        if self.directory is None:
            if bits is not None:
                raise ConfigError(
                    "--bits", f"{bits} for {self.file}", "only for a built directory: it holds the float weights"
                )
            return self.graph if timesteps == self.graph.timesteps else self.graph.with_timesteps(timesteps)
        config = self.directory.config()
        bits = config.bits if bits is None else bits
        if (timesteps, bits) == (self.graph.timesteps, config.bits):
            return self.graph
        retimed = replace(load_spiking(self.directory.file(FLOAT_GRAPH)), timesteps=timesteps)
        images = as_pixels(self.directory.images().calibration)
        return quantize_calibrated(retimed, images, bits, config.input_bits)[0]


def open_model(path: str | Path, timesteps: int | None = None, reading: Reading | None = None) -> Model:
    """Open a built directory, a ``model.npz`` or a NetX ``.net``.

    Parameters
    ----------
    path : path
    timesteps : int, optional
        For a ``.net`` that does not state its own.
    reading : Reading, optional
        For a ``.net``.

    Raises
    ------
    ArtifactError, FormatError
        If it is none of these, is missing or is damaged.
    ConfigError
        If `reading` is given for something else.
    """
    place = Path(path)
    if reading not in (None, Reading()) and place.suffix != ".net":
        raise ConfigError("--input-bits, --timing, --reset-interval", f"given for {place}", "only for a .net file")
    if place.is_dir():
        directory = RunDirectory(place)
        if not directory.file(MODEL).is_file():
            raise ArtifactError(
                str(place), f"holds no {MODEL}", "the folder of a finished build",
                "finish it with `stars-deploy build --resume`",
            )  # fmt: skip
        return Model(
            name=place.name, file=directory.file(MODEL), graph=load_quantized(directory.file(MODEL)),
            directory=directory,
        )  # fmt: skip
    if place.suffix == ".net":
        return Model(name=place.stem, file=place, graph=read_netx(place, timesteps, **asdict(reading or Reading())))
    if place.suffix == ".npz":
        return Model(name=place.stem, file=place, graph=load_quantized(place))
    got = "does not exist" if not place.exists() else f"a {place.suffix or 'nameless'} file"
    raise ArtifactError(str(place), got, "a built directory, a model.npz or a .net file", "check the path")


def quantize_calibrated(
    graph: SpikingGraph, images: npt.NDArray[np.float64], bits: int, input_bits: int
) -> tuple[QuantizedGraph, Calibration]:
    """Calibrate a lowered graph on images in [0, 1], then quantise it."""
    calibration = calibrate_graph(graph, images, bits, input_bits)
    return quantize_graph(graph, bits, calibration.input_bits, calibration.shares), calibration


def evaluation_set(model: Model, data: str | None, root: str | None, limit: int | None) -> EvaluationSet | None:
    """Return the evaluation set asked for, or that of the build; None where there is none.

    Raises
    ------
    DataError
        If it is missing, or its images or classes do not fit the network.
    """
    if data is None and model.directory is not None:
        configured = model.directory.config().data
        data, root, limit = configured.name, root or configured.root, limit or configured.limit
    if data is None:
        return None
    loaded = load_dataset(data, root).first(limit)
    check_fit(loaded, model.graph.input.shape, model.graph.output.size)
    return loaded


def check_fit(data: EvaluationSet, shape: tuple[int, ...], classes: int) -> None:
    """Refuse an evaluation set whose images or classes are not those of the network."""
    if data.images.shape[1:] != tuple(shape):
        raise DataError(f"--dataset {data.name}", f"images {data.images.shape[1:]}", f"{tuple(shape)} (C, H, W)")
    if len(data.classes) != classes:
        raise DataError(
            f"--dataset {data.name}", f"{len(data.classes)} classes", f"the {classes} classes of the network"
        )
