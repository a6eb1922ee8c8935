"""Read a NetX HDF5 file (``.net``) as a :class:`~stars_deploy.quantized.QuantizedGraph`.

Our own files come back equal. Every network of leaky integrate-and-fire neurons (CUBA) that Lava loads and executes as
it is written is read; everything else is refused by name, also what Lava would alter or skip in silence.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import ConfigError, FormatError, StarsDeployError
from stars_deploy.populations import PAYLOAD_BITS, QuantizedInput
from stars_deploy.quantized import ConvProjection, Projection, QuantizedGraph
from stars_deploy.targets.hdf5_guard import GuardedGroup
from stars_deploy.targets.netx_chain import read_chain
from stars_deploy.targets.netx_metadata import Metadata
from stars_deploy.targets.netx_writer import METADATA, Layer

#: Lava's time with a reset for each sample, shifted back by each layer's lag; or Lava's global time.
TIMINGS = ("synchronous", "pipelined")
_NO_RESET = ("0 in synchronous timing, where every sample starts anew", 'choose the timing "pipelined"')
#: What h5py, NumPy and JSON raise on damaged files.
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError)


def read_netx(
    path: str | os.PathLike[str],
    timesteps: int | None = None,
    input_bits: int = 8,
    *,
    timing: str | None = None,
    reset_interval: int = 0,
    reset_offset: int = 0,
) -> QuantizedGraph:
    """Read `path`.

    Parameters
    ----------
    path : path
    timesteps : int, optional
        Timesteps for one inference; needed for files that do not say it, and overrides those that do.
    input_bits : int
        Bits of the image's payload, for files that do not say it.
    timing : str, optional
        ``synchronous``: a timestep passes through all layers, plus the delays in the file; recurrent synapses have a
        delay of 1 more. Lava does this with ``reset_interval`` at `timesteps`, each layer one step after the other.
        ``pipelined``: each projection has a delay of 1 more, as in Lava's global time. By default synchronous, unless
        someone else's file has recurrent layers or delays: what they have in flight outlasts Lava's reset.
    reset_interval, reset_offset : int
        Those of ``lava.lib.dl.netx.hdf5.Network`` [timesteps], for pipelined timing; population i is reset with the
        offset ``reset_offset + 1 + i``. An interval of 0 never resets.

    Raises
    ------
    FormatError
        If the file is damaged, or holds anything that the integer graph cannot express or Lava would alter.
    ArtifactError
        If there is no such file, or a Git-LFS pointer in its place.
    ConfigError
        If an option is out of range, or a reset is asked for in synchronous timing.
    """
    _check_options(input_bits, timing, reset_interval, reset_offset)
    where = str(existing_file(path))
    try:
        with h5py.File(where, "r", locking=False) as file:
            root = GuardedGroup(file=where, name="", node=file, file_size=Path(where).stat().st_size)
            return _read_graph(root, timesteps, input_bits, timing, (reset_interval, reset_offset))
    except (FormatError, ConfigError):
        raise
    except StarsDeployError as error:
        raise FormatError(where, f"holds an impossible network ({error})", remedy="write it again") from error
    except _UNREADABLE as error:
        raise FormatError(
            where, f"not a readable NetX file ({error})", "an HDF5 .net file", "copy or write it again"
        ) from error


def _read_graph(
    root: GuardedGroup, timesteps: int | None, input_bits: int, timing: str | None, reset: tuple[int, int]
) -> QuantizedGraph:
    root.only(frozenset({"layer", "simulation", METADATA}))
    metadata = Metadata(root)
    image, layers = read_chain(root.group("layer"), metadata, input_bits)
    network = _Network(input=image, layers=layers)
    # Our own files mean a synchronous network; of others it is not known what they were trained in.
    chosen = timing or ("synchronous" if metadata.present else network.usual_timing())
    if reset[0] and chosen == "synchronous":
        raise ConfigError("reset_interval", reset[0], *_NO_RESET)
    if chosen == "pipelined":
        network = network.pipelined(*reset)
    return network.as_graph(_timesteps(root, metadata, timesteps), metadata.labels)


def _check_options(input_bits: int, timing: str | None, reset_interval: int, reset_offset: int) -> None:
    if timing is not None and timing not in TIMINGS:
        raise ConfigError("timing", repr(timing), ", ".join(TIMINGS))
    if not 1 <= input_bits <= PAYLOAD_BITS:
        raise ConfigError("input_bits", input_bits, f"1 to {PAYLOAD_BITS}")
    for name, value in (("reset_interval", reset_interval), ("reset_offset", reset_offset)):
        if value < 0:
            raise ConfigError(name, value, "0 or more timesteps")


def _timesteps(root: GuardedGroup, metadata: Metadata, given: int | None) -> int:
    timesteps = metadata.timesteps if given is None else given
    if timesteps is None:
        raise root.error(
            "",
            "does not say how many timesteps one inference takes",
            "a file written by stars-deploy, or a number given with it",
            "give it with --timesteps, or read_netx(path, timesteps=...)",
        )
    return timesteps


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What a file holds, in synchronous timing."""

    input: QuantizedInput
    layers: tuple[Layer, ...]

    def usual_timing(self) -> str:
        """Return the timing in which Lava can run it."""
        forward = [layer.projection.delay for layer in self.layers if layer.projection]
        looped = any(layer.recurrent for layer in self.layers)
        return "pipelined" if looped or any(np.max(delay) for delay in forward) else "synchronous"

    def pipelined(self, reset_interval: int, reset_offset: int) -> _Network:
        """Return it in Lava's global time: every synapse sends what it summed in the step before."""
        layers = []
        for index, layer in enumerate(self.layers):
            offset = reset_offset + 1 + index if reset_interval else 0
            projection = layer.projection
            layers.append(
                replace(
                    layer,
                    population=replace(layer.population, reset_interval=reset_interval, reset_offset=offset),
                    # Recurrent synapses have this delay in any timing.
                    projection=projection and _later(projection),
                )
            )
        return replace(self, layers=tuple(layers))

    def as_graph(self, timesteps: int, labels: tuple[str, ...]) -> QuantizedGraph:
        """Return the graph."""
        projections = [item for layer in self.layers for item in (layer.projection, layer.recurrent) if item]
        return QuantizedGraph(
            input=self.input,
            populations=tuple(layer.population for layer in self.layers),
            projections=tuple(projections),
            timesteps=timesteps,
            labels=labels,
        )


def _later(projection: Projection) -> Projection:
    if isinstance(projection, ConvProjection):
        return replace(projection, delay=projection.delay + 1)
    return replace(projection, delay=projection.delay + 1)
