"""Read a NIR file, our own or a stranger's, as a :class:`~stars_deploy.graph.SpikingGraph`.

Nothing is loaded by ``nir.read``, which allocates whatever a header claims: h5py opens the file, and every group and
array passes :mod:`~stars_deploy.targets.hdf5_guard`. What the nodes mean is what their docstrings in
:mod:`stars_deploy.nodes` say, forward Euler with hard reset; what the float graph cannot hold is refused by name.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import h5py

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import ConfigError, FormatError, StarsDeployError
from stars_deploy.graph import Input, Integrator, SpikingGraph
from stars_deploy.lowering.rounding import Rounding
from stars_deploy.targets.hdf5_guard import Allowance, GuardedGroup
from stars_deploy.targets.nir_graph.content import read_content
from stars_deploy.targets.nir_graph.metadata import MAX_METADATA, MAX_TIMESTEPS, METADATA, Metadata, parse_metadata
from stars_deploy.targets.nir_graph.names import distinct
from stars_deploy.targets.nir_graph.recurrence import delay_loops
from stars_deploy.targets.nir_graph.restoration import restore_graph

#: Most values in all arrays of a file together: 2 GiB as float64, twice the weights of VGG-16.
MAX_VALUES = 1 << 28
MAX_DELAY = 1 << 16
#: What h5py, NumPy and JSON raise on damaged files.
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class NirFile:
    """What a NIR file holds; ``rounding`` is what makes integers of ``graph``, if the file says so."""

    graph: SpikingGraph
    rounding: Rounding | None


def read_nir(
    path: str | os.PathLike[str],
    *,
    dt: float | None = None,
    timesteps: int | None = None,
    recurrent_delay: int = 0,
    low: float = 0.0,
    high: float = 1.0,
) -> NirFile:
    """Read `path`.

    A graph that ends in a projection, as most tools write it and we do, gets an integrator of its output appended:
    the logits are the sum over all timesteps. Several edges into one node add up; an edge that is there twice counts
    once, as in every tool that loads NIR.

    Parameters
    ----------
    path : path
    dt : float, optional
        Timestep of the tool that wrote the file [s]; needed for a stranger's file, because NIR does not hold it. Our
        own files do.
    timesteps : int, optional
        Timesteps for one inference; needed for a stranger's file, and overrides those of our own.
    recurrent_delay : int
        Timesteps that are put on every edge that closes a loop without a delay
        (:func:`~stars_deploy.targets.nir_graph.recurrence.delay_loops`); 0 refuses such loops.
    low, high : float
        Range of the input of a stranger's file.

    Raises
    ------
    FormatError
        If the file is damaged, does not say what is needed, or holds what the float graph cannot.
    ArtifactError
        If there is no such file, or a Git-LFS pointer in its place.
    ConfigError
        If an option is out of range, or `dt` is not that of our own file.
    """
    _check_options(dt, timesteps, recurrent_delay, low, high)
    where = str(existing_file(path))
    try:
        with h5py.File(where, "r", locking=False) as file:
            allowance = Allowance(values=MAX_VALUES, most=MAX_VALUES)
            size = Path(where).stat().st_size
            root = GuardedGroup(file=where, name="", node=file, file_size=size, left=allowance)
            root.only(frozenset({"version", "node"}))
            top = root.group("node")
            metadata = _read_metadata(top)
            options = _Options(dt=dt, timesteps=timesteps, recurrent_delay=recurrent_delay, low=low, high=high)
            return _read_own(top, metadata, options) if metadata else _read_foreign(top, options)
    except (FormatError, ConfigError):
        raise
    except StarsDeployError as error:
        raise FormatError(f"{where}: {error.where}", error.got, error.allowed, error.remedy) from error
    except _UNREADABLE as error:
        raise FormatError(
            where, f"not a readable NIR file ({error})", "an HDF5 .nir file", "copy or write it again"
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Options:
    dt: float | None
    timesteps: int | None
    recurrent_delay: int
    low: float
    high: float


def _check_options(dt: float | None, timesteps: int | None, recurrent_delay: int, low: float, high: float) -> None:
    if dt is not None and not 0 < dt < math.inf:
        raise ConfigError("dt", dt, "more than 0 s")
    if timesteps is not None and not 1 <= timesteps <= MAX_TIMESTEPS:
        raise ConfigError("timesteps", timesteps, f"1 to {MAX_TIMESTEPS}")
    if not 0 <= recurrent_delay <= MAX_DELAY:
        raise ConfigError("recurrent_delay", recurrent_delay, f"0 to {MAX_DELAY} timesteps")
    if not -math.inf < low < high < math.inf:
        raise ConfigError("low, high", f"{low} to {high}", "a range of pixels, low < high")


def _read_metadata(top: GuardedGroup) -> Metadata | None:
    if "metadata" not in top:
        return None
    group = top.group("metadata")
    if METADATA not in group:
        return None
    text = str(group.texts(METADATA, 1, MAX_METADATA).reshape(-1)[0])
    return parse_metadata(text, f"{group.file}: {group.name}/{METADATA}")


def _read_own(top: GuardedGroup, metadata: Metadata, options: _Options) -> NirFile:
    if options.dt is not None and not math.isclose(options.dt, metadata.dt, rel_tol=1e-9):
        raise ConfigError("dt", f"{options.dt:g} s", f"{metadata.dt:g} s, which {top.file} says", "leave out --dt")
    graph = restore_graph(read_content(top, metadata.file_dt), metadata, f"{top.file}: {top.name}/metadata/{METADATA}")
    return NirFile(
        graph=graph if options.timesteps is None else replace(graph, timesteps=options.timesteps),
        rounding=metadata.rounding,
    )


def _read_foreign(top: GuardedGroup, options: _Options) -> NirFile:
    allowed = "a file written by stars-deploy, or a number given with it"
    if options.dt is None:
        raise FormatError(
            top.file,
            "does not say how long a timestep is: NIR holds no dt",
            allowed,
            "`stars-deploy export` it with --dt: 1e-4 for a file of snnTorch or SpikingJelly, 1e-3 of norse, 1 of "
            "sinabs (its times are in timesteps)",
        )
    if options.timesteps is None:
        raise FormatError(
            top.file,
            "does not say how many timesteps one inference takes",
            allowed,
            "`stars-deploy export` it with --timesteps",
        )
    content = read_content(top, options.dt)
    nodes, edges = delay_loops(content.nodes, content.edges, options.dt, options.recurrent_delay)
    nodes = {
        name: replace(node, low=options.low, high=options.high) if isinstance(node, Input) else node
        for name, node in nodes.items()
    }
    end = content.ends[0]
    if content.summed:
        end = distinct("readout", nodes)
        nodes[end] = Integrator(name=end, r=1 / options.dt)
        edges = (*edges, *((name, end) for name in content.ends))
    graph = SpikingGraph(nodes=tuple(nodes.values()), edges=edges, dt=options.dt, timesteps=options.timesteps)
    if graph.output.name != end:
        raise top.error("edges", f"{graph.output.name} comes after the output {end}", "an output that comes last")
    return NirFile(graph=graph, rounding=None)
