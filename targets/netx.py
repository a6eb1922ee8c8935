"""``netx``: the HDF5 ``.net`` file of Lava's NetX, written and read back; executed by the integer reference."""

from __future__ import annotations

from pathlib import Path

from stars_deploy.graph import SpikingGraph
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.targets.base import Availability, SpikeRecord
from stars_deploy.targets.netx_reader import read_netx
from stars_deploy.targets.netx_writer import write_netx
from stars_deploy.targets.reference import run_reference

__all__ = ["TARGET", "NetXTarget", "read_netx", "write_netx"]


class NetXTarget:
    """The file format: what is verified is that the file, read back, computes the same."""

    name = "netx"
    filename = "model.net"
    summary = "Lava NetX file (HDF5 .net), read back and executed by the integer reference"

    def availability(self) -> Availability:
        """Available everywhere: h5py is a dependency."""
        return Availability(ok=True)

    def write(self, graph: QuantizedGraph, path: Path, origin: SpikingGraph | None = None) -> None:
        """Write `graph` to `path`; see :func:`~stars_deploy.targets.netx_writer.write_netx`."""
        write_netx(graph, path)

    def read(self, path: Path, timesteps: int) -> QuantizedGraph:
        """Read `path` back; see :func:`~stars_deploy.targets.netx_reader.read_netx`."""
        return read_netx(path, timesteps=timesteps)

    def execute(self, path: Path, images: IntArray, timesteps: int) -> SpikeRecord:
        """Read `path` back and run the reference on `images`, (B, C, H, W) [LSB]."""
        return run_reference(self.read(path, timesteps), images)


TARGET = NetXTarget()
