"""``nir``: the float graph in a NIR file, written and read back; executed by the integer reference."""

from __future__ import annotations

import os
from pathlib import Path

from stars_deploy.errors import FormatError, StarsDeployError
from stars_deploy.graph import SpikingGraph
from stars_deploy.lowering.dequantization import dequantize
from stars_deploy.lowering.passes import lower, round_parameters
from stars_deploy.lowering.rounding import round_graph, rounding_of
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.targets.base import Availability, SpikeRecord
from stars_deploy.targets.nir_graph.reader import NirFile, read_nir
from stars_deploy.targets.nir_graph.writer import write_nir
from stars_deploy.targets.reference import run_reference

__all__ = ["TARGET", "NirFile", "NirTarget", "read_integers", "read_nir", "round_file", "write_nir"]


def read_integers(path: str | os.PathLike[str], timesteps: int | None = None) -> QuantizedGraph:
    """Read the integer network of a file that stars-deploy wrote.

    Parameters
    ----------
    path : path
    timesteps : int, optional
        Timesteps for one inference, in place of those in the file.

    Raises
    ------
    FormatError
        If it holds no rounding (a stranger's file, of which integers are still to be made) or one that does not fit, or
        as :func:`~stars_deploy.targets.nir_graph.reader.read_nir`.
    """
    return round_file(read_nir(path, timesteps=timesteps), path)


def round_file(file: NirFile, path: str | os.PathLike[str]) -> QuantizedGraph:
    """Return the integers of `file`, which was read from `path`.

    Raises
    ------
    FormatError
        If it holds no rounding, or one that does not fit.
    """
    if file.rounding is None:
        raise FormatError(
            str(path),
            "does not say which integers its numbers become",
            "a file written by stars-deploy with its integers",
            "make integers of it with `stars-deploy export`",
        )
    try:
        return round_graph(lower(file.graph), file.rounding)
    except StarsDeployError as error:
        raise FormatError(f"{path}: {error.where}", error.got, error.allowed, error.remedy) from error


class NirTarget:
    """The exchange format: what is verified is that the floats in the file, rounded as it says, compute the same."""

    name = "nir"
    filename = "model.nir"
    summary = "NIR file (HDF5) of the float network for other tools, read back and rounded, executed by the reference"

    def availability(self) -> Availability:
        """Available everywhere: nir and h5py are dependencies."""
        return Availability(ok=True)

    def write(self, graph: QuantizedGraph, path: Path, origin: SpikingGraph | None = None) -> None:
        """Write `origin`, or else the floats that `graph` stands for, to `path`, with the rounding that makes `graph`.

        See :func:`~stars_deploy.targets.nir_graph.writer.write_nir`.
        """
        write_nir(round_parameters(dequantize(graph)) if origin is None else origin, rounding_of(graph), path)

    def read(self, path: Path, timesteps: int) -> QuantizedGraph:
        """Read `path` back and round it; see :func:`read_integers`."""
        return read_integers(path, timesteps)

    def execute(self, path: Path, images: IntArray, timesteps: int) -> SpikeRecord:
        """Read `path` back and run the reference on `images`, (B, C, H, W) [LSB]."""
        return run_reference(self.read(path, timesteps), images)


TARGET = NirTarget()
