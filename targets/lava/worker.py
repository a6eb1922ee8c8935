"""The process in which Lava runs: ``python -m stars_deploy.targets.lava.worker FOLDER``.

Reads ``request.json`` and ``images.npy`` in FOLDER, runs the NetX file in Lava and leaves ``layer0.bits``,
``layer1.bits``, ... and ``potential.i32``. Started by :class:`stars_deploy.targets.lava.LavaTarget` in a session of its
own.
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


def run_request(folder: Path) -> None:
    """Run the request in `folder`; Lava's processes are stopped whatever happens."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy", allow_pickle=False)
    network, processes = _connect(request, images, folder)

    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    steps = len(images) * request["timesteps"] + len(network.layers)
    try:
        network.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    finally:
        network.stop()
    del processes  # the sources and sinks had to live until here


def _connect(request: dict[str, Any], images: np.ndarray[Any, Any], folder: Path) -> tuple[Any, list[Any]]:
    """Build the process graph: images -> network, and a sink on every layer."""
    from lava.lib.dl.netx import hdf5
    from lava.proc.io.source import RingBuffer

    from stars_deploy.targets.lava.sink import SpikeSink, StateSink

    network = hdf5.Network(
        net_config=request["net"],
        input_message_bits=request["message_bits"],
        reset_interval=request["timesteps"],
        reset_offset=1,  # the first image arrives in the second step
    )
    print(network)
    # (B, C, H, W) -> (W, H, C, steps), or C order over (C, H, W) before a dense layer
    stream = images.reshape(len(images), -1).T if request["flat"] else images.transpose()
    source = RingBuffer(data=np.repeat(stream, request["timesteps"], axis=-1))
    source.s_out.connect(network.inp)
    processes: list[Any] = [source]
    for index, layer in enumerate(network.layers):
        sink = SpikeSink(shape=layer.out.shape, path=str(folder / f"layer{index}.bits"))
        layer.out.connect(sink.s_in)
        processes.append(sink)
    neurons = network.layers[-1].neuron
    potential = StateSink(shape=neurons.v.shape, path=str(folder / "potential.i32"))
    potential.state.connect_var(neurons.v)
    processes.append(potential)
    return network, processes


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
    run_request(Path(sys.argv[1]).resolve())
