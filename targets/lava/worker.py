"""The process in which Lava runs: ``python -m stars_deploy.targets.lava.worker FOLDER``.

Reads ``request.json`` in FOLDER, a list of runs that each name a NetX file and a folder with ``images.npy``, and leaves
in that folder ``START/layer0.bits``, ``START/layer1.bits``, ... and ``START/potential.i32`` for each start of the
network. Started by :mod:`stars_deploy.targets.lava.runs` in a session of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

Frames = np.ndarray[Any, Any]


def run_requests(folder: Path) -> None:
    """Run the requests in `folder`, one after another; Lava's processes are stopped whatever happens."""
    for request in json.loads((folder / "request.json").read_text(encoding="utf-8")):
        place = folder / request["folder"]
        images = np.load(place / "images.npy", allow_pickle=False)
        for number, frames in enumerate(_arrange(images, request)):
            start = place / str(number)
            start.mkdir()
            _run_once(request, frames, start)


def _arrange(images: Frames, request: dict[str, Any]) -> list[Frames]:
    """Return what the network sees at each step, (steps, *Lava's input shape), for each of its starts.

    Lava's arrays are (W, H, C); before a dense layer they are flat, in C order over (C, H, W).
    """
    timesteps = request["timesteps"]
    if not request["over_time"]:
        images = np.broadcast_to(images, (timesteps, *images.shape))
    by_sample = images.swapaxes(0, 1)
    if request["flat"]:
        by_sample = by_sample.reshape(*by_sample.shape[:2], -1)
    else:
        by_sample = by_sample.transpose(0, 1, *range(images.ndim - 1, 1, -1))
    if request["fresh"]:
        return list(by_sample)
    return [by_sample.reshape(-1, *by_sample.shape[2:])]


def _run_once(request: dict[str, Any], frames: Frames, folder: Path) -> None:
    from lava.lib.dl.netx import hdf5
    from lava.magma.core.process.process import ProcessServer
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    network = hdf5.Network(
        net_config=request["net"],
        input_message_bits=request["message_bits"],
        reset_interval=request["reset_interval"] or None,
        reset_offset=request["reset_offset"],
    )
    print(request["net"], network, sep="\n")
    processes = [_connect_input(network, request, frames), *_connect_sinks(network, folder)]
    try:
        network.run(
            condition=RunSteps(num_steps=len(frames) + request["lag"]), run_cfg=Loihi2SimCfg(select_tag="fixed_pt")
        )
    finally:
        network.stop()
    del processes  # the sources and sinks had to live until here
    ProcessServer().reset_server()  # which keeps every process ever made, weights and images included


def _connect_input(network: Any, request: dict[str, Any], frames: Frames) -> Any:
    if request["biased"]:
        from stars_deploy.targets.lava.source import BiasSource

        biases = network.in_layer.neuron.bias_mant
        biases.init = frames[0]
        setter = BiasSource(frames=frames)
        setter.bias.connect_var(biases)
        return setter
    from lava.proc.io.source import RingBuffer

    source = RingBuffer(data=np.moveaxis(frames, 0, -1))
    source.s_out.connect(network.inp)
    return source


def _connect_sinks(network: Any, folder: Path) -> list[Any]:
    from stars_deploy.targets.lava.sink import SpikeSink, StateSink

    processes: list[Any] = []
    for index, layer in enumerate(network.layers):
        sink = SpikeSink(shape=layer.out.shape, path=str(folder / f"layer{index}.bits"))
        layer.out.connect(sink.s_in)
        processes.append(sink)
    neurons = network.layers[-1].neuron
    potential = StateSink(shape=neurons.v.shape, path=str(folder / "potential.i32"))
    potential.state.connect_var(neurons.v)
    return [*processes, potential]


def watch_parent() -> None:
    """End this whole session when the process that started it is gone (standard input ends)."""
    if os.getpid() != os.getsid(0):
        return  # run by hand: the session is the user's
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Read below Python's own buffer: its lock would be held in the processes that Lava forks.
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGTERM)


if __name__ == "__main__":
    watch_parent()
    run_requests(Path(sys.argv[1]).resolve())
