"""The networks that are measured, and where their files are.

NetX networks lie beside the repository (``../shared/networks``); students of the VGG kind are made by
:mod:`peers.student` in a folder for the time of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "networks"


@dataclass(frozen=True, kw_only=True)
class BenchmarkNetwork:
    """One network and how it is run.

    Parameters
    ----------
    name : str
    timesteps, batch : int
    file : Path, optional
        A NetX file.
    topology : str
        Of a student, such as ``vgg:16-128``; empty for a NetX file.
    rate : float
        Firing rate that each layer of a student is calibrated to [spikes/neuron/timestep].
    """

    name: str
    timesteps: int
    batch: int
    file: Path | None = None
    topology: str = ""
    rate: float = 0.15

    def missing(self) -> str:
        """Return why the network cannot be run here, or an empty string."""
        if self.file is None or self.file.is_file():
            return ""
        return f"no {self.file.name} in {'/'.join(self.file.parts[-3:-1])} beside the repository"

    @property
    def recipe(self) -> str:
        """Name for the folder of a student's files: students of one recipe share them."""
        return f"{self.topology.replace(':', '-')}-t{self.timesteps}-r{round(100 * self.rate)}"


TINY = BenchmarkNetwork(name="tiny.net", timesteps=16, batch=64, file=SHARED / "tiny.net")
PILOTNET = BenchmarkNetwork(name="pilotnet_lif.net", timesteps=16, batch=8, file=SHARED / "pilotnet_lif.net")
STUDENT = BenchmarkNetwork(name="vgg:16-128", timesteps=4, batch=64, topology="vgg:16-128")
DEEP_STUDENT = BenchmarkNetwork(name="vgg:16-32-64-128", timesteps=4, batch=64, topology="vgg:16-32-64-128")
NETWORKS = (TINY, PILOTNET, STUDENT, DEEP_STUDENT)

BATCHES = (8, 64, 512)
TIMESTEPS = (4, 8, 16, 32)
WIDTHS = ("vgg:8-64", "vgg:16-128", "vgg:32-256")
RATES = (0.05, 0.2, 0.5)


def with_batch(batch: int) -> BenchmarkNetwork:
    """Return the conv-bound student with another batch."""
    return replace(STUDENT, name=f"batch {batch}", batch=batch)


def with_timesteps(timesteps: int) -> BenchmarkNetwork:
    """Return the conv-bound student with another number of timesteps."""
    return replace(STUDENT, name=f"T {timesteps}", timesteps=timesteps)


def with_topology(topology: str) -> BenchmarkNetwork:
    """Return the conv-bound student with other widths."""
    return replace(STUDENT, name=topology, topology=topology)


def with_rate(rate: float) -> BenchmarkNetwork:
    """Return the conv-bound student calibrated to another firing rate."""
    return replace(STUDENT, name=f"rate {rate:.0%}", rate=rate)
