"""What the later commands open: a built or exported folder, or a ``.npz``, ``.net``, ``.onnx`` or ``.nir`` file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stars_deploy.baseline import AnnReference
from stars_deploy.data import EvaluationSet, load_dataset
from stars_deploy.engine import FastEngine
from stars_deploy.errors import ArtifactError, ConfigError, DataError
from stars_deploy.export.calibration import Calibration, calibrate_graph, compare_rates
from stars_deploy.export.quantization import quantize_graph
from stars_deploy.graph import SpikingGraph
from stars_deploy.lowering.passes import lower
from stars_deploy.pipeline.directory import FLOAT_GRAPH, MODEL, REPORT, RunDirectory, as_pixels
from stars_deploy.pipeline.measuring import read_measurement
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.serde import load_quantized, load_spiking
from stars_deploy.targets import find_target
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

    def teacher(self) -> AnnReference | None:
        """Return what the build measured of its teacher, where the folder's report tells; nothing is measured again.

        Its accuracy is left out: it is that of the build's own evaluation set.

        Raises
        ------
        FormatError, ConfigError
            If the report says it in a way that cannot be read.
        """
        if self.directory is None or not self.directory.file(REPORT).is_file():
            return None
        found = read_measurement(self.directory.report(), str(self.directory.file(REPORT)))
        return None if found is None else AnnReference(layers=found.layers, measured=found.cpu)

    def artefact(self, target: str) -> Path | None:
        """Return the file that `target` executes: in the folder of a ``.npz``, else this one if of that format."""
        filename = find_target(target).filename
        if self.file.suffix == ".npz":
            return self.file.parent / filename
        return self.file if Path(filename).suffix == self.file.suffix else None

    def origin(self, timesteps: int) -> SpikingGraph | None:
        """Return the float graph that the integers were rounded from, where it lies beside them."""
        path = self.file.parent / FLOAT_GRAPH
        if self.file.name != MODEL or not path.is_file():
            return None
        return replace(load_spiking(path), timesteps=timesteps)

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
    """Open a built or exported directory, or a file of integers: ``model.npz``, ``.net``, ``.onnx``, ``.nir``.

    Parameters
    ----------
    path : path
    timesteps : int, optional
        For a file that does not state its own.
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
        return _open_directory(place)
    if place.suffix not in _READERS:
        got = "does not exist" if not place.exists() else f"a {place.suffix or 'nameless'} file"
        allowed = f"a built directory, or a {', '.join(_READERS)} file"
        raise ArtifactError(str(place), got, allowed, "check the path")
    return Model(name=place.stem, file=place, graph=_READERS[place.suffix](place, timesteps, reading or Reading()))


def _open_directory(place: Path) -> Model:
    directory = RunDirectory(place)
    file = directory.file(MODEL)
    if not file.is_file():
        raise ArtifactError(
            str(place), f"holds no {MODEL}", "the folder of a finished build or an export",
            "finish it with `stars-deploy build --resume`",
        )  # fmt: skip
    # What `export` leaves has integers, but no settings to build them from again.
    return Model(
        name=place.name, file=file, graph=load_quantized(file), directory=directory if directory.is_build() else None
    )


def _read_integers(path: Path, timesteps: int | None, reading: Reading) -> QuantizedGraph:
    return load_quantized(path)


def _read_net(path: Path, timesteps: int | None, reading: Reading) -> QuantizedGraph:
    return read_netx(path, timesteps, **asdict(reading))


def _read_onnx(path: Path, timesteps: int | None, reading: Reading) -> QuantizedGraph:
    from stars_deploy.targets.onnx_model import read_onnx  # loads ONNX

    return read_onnx(path).graph


def _read_nir(path: Path, timesteps: int | None, reading: Reading) -> QuantizedGraph:
    from stars_deploy.targets.nir_graph import read_integers  # loads NIR

    return read_integers(path)


_READERS: Mapping[str, Callable[[Path, int | None, Reading], QuantizedGraph]] = {
    ".npz": _read_integers,
    ".net": _read_net,
    ".onnx": _read_onnx,
    ".nir": _read_nir,
}


def quantize_calibrated(
    graph: SpikingGraph, images: npt.NDArray[np.float64], bits: int, input_bits: int
) -> tuple[QuantizedGraph, Calibration]:
    """Lower a float graph, calibrate it on images in [0, 1] and quantise it.

    Parameters
    ----------
    graph : SpikingGraph
        Canonical.
    images : array, (N, *shape), or (T, N, *shape) for a frame at each timestep
    bits, input_bits : int
    """
    lowered = lower(graph)
    calibration = calibrate_graph(lowered, images, bits, input_bits)
    quantized = quantize_graph(lowered, bits, calibration.input_bits, calibration.shares)
    deployed = compare_rates(calibration.layers, deployed_rates(quantized, images))
    return quantized, replace(calibration, deployed=deployed)


def deployed_rates(graph: QuantizedGraph, images: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the firing rate of each population of the integer network [spikes/neuron/timestep].

    Parameters
    ----------
    graph : QuantizedGraph
    images : array of float, (N, *shape) or (T, N, *shape)
    """
    run = FastEngine(graph, threads=1).run(graph.input.quantize(images))
    updates = {p.name: len(run.potential) * graph.timesteps * p.size for p in graph.populations}
    return {name: int(counts.spikes.sum()) / updates[name] for name, counts in run.counts.items()}


def evaluation_set(model: Model, data: str | None, root: str | None, limit: int | None) -> EvaluationSet | None:
    """Return the evaluation set asked for, or that of the build; None where there is none.

    Raises
    ------
    DataError
        If it is missing, or its images or classes do not fit the network.
    """
    if data is None and model.directory is not None:
        configured = model.directory.config().data
        data, root, limit = configured.name, root or configured.root, configured.limit if limit is None else limit
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
