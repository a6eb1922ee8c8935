"""Lava itself: the network runs on after its start-up, and the time and CPU of its processes between steps is taken.

Import, compilation and the first steps are left out. The image is constant, as it is for one sample; each layer resets
after T steps, as it does between samples. No sink reads the spikes.
"""

from __future__ import annotations

import importlib.metadata
import time
from pathlib import Path
from typing import Any

import numpy as np
from digests import digest_record
from process_tree import session_cpu_seconds, session_memory_mb
from timing import FEWEST_RUNS, summarise_runs

from peers.integer_network import open_network
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.lava import TARGET
from stars_deploy.targets.lava.runs import LavaRun, execute_runs

#: Longest run of Lava for the comparison of spikes [s].
LONGEST = 900.0


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time Lava on a network; digest what it computes for ``request["agree"]`` samples."""
    available = TARGET.availability()
    if not available.ok:
        return {"reason": available.reason}
    file = Path(request["file"] or Path(request["folder"]) / "model.net")
    graph, images = open_network(request)
    record = execute_runs([LavaRun(path=file, graph=graph, images=images[: request["agree"]])], LONGEST, "lava")[0]
    figures = _time_steps(file, graph, images[0], request)
    return {
        **figures,
        "digests": digest_record(record.spikes, record.potential),
        "version": f"lava-nc {importlib.metadata.version('lava-nc')}, lava-dl {importlib.metadata.version('lava-dl')}",
    }


def _time_steps(
    file: Path, graph: QuantizedGraph, image: np.ndarray[Any, Any], request: dict[str, Any]
) -> dict[str, Any]:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    network, source = _build(file, graph, image)
    timesteps = graph.timesteps
    wall: list[float] = []
    cpu: list[float] = []
    try:
        network.run(condition=RunSteps(num_steps=timesteps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        start = time.perf_counter()
        network.run(condition=RunSteps(num_steps=timesteps))
        sample = time.perf_counter() - start
        runs = 1 if request["quick"] else FEWEST_RUNS
        samples = max(1, round(request["seconds"] / runs / sample))
        for _ in range(runs):
            before, used = time.perf_counter(), session_cpu_seconds()
            network.run(condition=RunSteps(num_steps=samples * timesteps))
            wall.append(time.perf_counter() - before)
            cpu.append(session_cpu_seconds() - used)
        return {**summarise_runs(wall, cpu, samples), "peak_mb": session_memory_mb(), "loaded_mb": 0.0}
    finally:
        network.stop()
        del source  # it had to live until here


def _build(file: Path, graph: QuantizedGraph, image: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return Lava's network and the process that shows it the image (none where the image is a bias)."""
    from lava.lib.dl.netx import hdf5

    biased = bool(graph.input.biases)
    network = hdf5.Network(
        net_config=str(file),
        input_message_bits=0 if biased else graph.input.precision.bits,
        reset_interval=graph.timesteps,
        reset_offset=0 if biased else 1,
    )
    by_axis = image.transpose()  # Lava's arrays are (W, H, C)
    if biased:
        network.in_layer.neuron.bias_mant.init = by_axis
        return network, None
    from lava.proc.io.source import RingBuffer

    source = RingBuffer(data=by_axis[..., np.newaxis])
    source.s_out.connect(network.inp)
    return network, source
