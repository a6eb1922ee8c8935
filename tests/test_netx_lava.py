"""Strangers' NetX files in Lava itself: every layer's spikes as the reader and the reference say."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from netx_files import KERNEL, LOOP, WEIGHT, WHC, conv, dense, even, flatten, image, neuron, recurrent, write_layers

from stars_deploy.targets.netx import read_netx
from stars_deploy.targets.reference import run_reference

IN_LAVA = """
import sys, numpy as np
from pathlib import Path
from lava.lib.dl.netx import hdf5
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer
for path in sorted(Path(sys.argv[1]).glob("*.net")):
    given = dict(np.load(path.with_suffix(".npz")))
    options = dict(reset_interval=4, reset_offset=2) if "reset" in given else {}
    network = hdf5.Network(net_config=str(path), input_message_bits=int(given["bits"]), **options)
    steps = given["frames"].shape[-1]
    if "biases" in given:
        network.in_layer.neuron.bias_mant.init = given["biases"]
    else:
        source = RingBuffer(data=given["frames"])
        source.s_out.connect(network.inp)
    sinks = [Sink(shape=layer.out.shape, buffer=steps) for layer in network.layers]
    for layer, sink in zip(network.layers, sinks):
        layer.out.connect(sink.a_in)
    try:
        network.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        got = {str(index): sink.data.get() for index, sink in enumerate(sinks)}
        np.savez(path.with_suffix(".out.npz"), v=network.layers[-1].neuron.v.get(), **got)
    finally:
        network.stop()
"""


def strange_files():
    """Fields that our writer does not write: file layers and bits of the payload."""
    rng = np.random.default_rng(8)
    quick = neuron(vThMant=20)
    return {
        "decays": (
            [
                image(2, 5, 4),
                conv(KERNEL, (3, 4, 3), stride=1, bias=[9, -9, 5], neuron=neuron(iDecay=WHC, vDecay=[5, 900, 4000])),
                conv(
                    rng.integers(-20, 40, (2, 3, 2, 2, 1)),
                    (2, 3, 2),
                    neuron=neuron(vDecay=WHC[0, :3, :2], vThMant=[9, 90]),
                ),
                flatten(12),
                dense(even(rng, (5, 12)).reshape(-1), shape=[5, 1, 1], bias=7, neuron=None),
            ],
            3,
        ),
        "delays": (
            [
                image(1, 1, 3),
                flatten(3),
                dense(WEIGHT, delay=np.float32(2), neuron=quick),
                dense(LOOP, delay=[0, 3, 1, 2], neuron=quick),
                dense(even(rng, (2, 4)), delay=[1, 0, 2, 5], bias=[5], neuron=quick),
            ],
            0,
        ),
        "loops": (
            [
                recurrent(LOOP, even(rng, (4, 4)), delay=[0, 1, 2, 0], neuron=quick),
                recurrent(rng.integers(0, 8, (3, 4)), rng.integers(-9, 0, (3, 3)), neuron=neuron(vThMant=3)),
                recurrent(rng.integers(-9, 9, (3, 3)), np.zeros((3, 3), int), neuron=None),
            ],
            4,
        ),
        "eye": (
            [image(2, 5, 4, neuron=neuron(vDecay=[100, 4000], vThMant=90)), conv(KERNEL, (3, 4, 3), neuron=quick)],
            0,
        ),
    }


@pytest.mark.lava
def test_lava_runs_strangers_files_as_we_read_them(tmp_path):
    steps, rng = 14, np.random.default_rng(1)
    graphs, frames = {}, {}
    for name, (layers, bits) in strange_files().items():
        path = write_layers(tmp_path / f"{name}.net", *layers)
        options = {"reset_interval": 4, "reset_offset": 2} if name in ("decays", "eye") else {}
        graph = read_netx(path, steps, max(bits, 1), timing="pipelined", **options)
        high = 200 if name == "eye" else 1 << max(bits, 1)
        shown = rng.integers(0, high, (steps, 1, *graph.input.shape))
        given = {"bits": np.array(bits)}
        if name == "eye":
            shown = np.broadcast_to(shown[:1], shown.shape)
            given["biases"] = shown[0, 0].transpose()
        graphs[name], frames[name] = graph, shown
        flat = len(graph.populations[0].shape) == 1 and name != "eye"
        stream = shown[:, 0].reshape(steps, -1).T if flat else shown[:, 0].transpose(3, 2, 1, 0)
        np.savez(tmp_path / f"{name}.npz", frames=stream, **given, **({"reset": np.array(1)} if options else {}))
    done = subprocess.run(
        [sys.executable, "-c", IN_LAVA, str(tmp_path)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, graph in graphs.items():
        expected, got = run_reference(graph, frames[name]), np.load(tmp_path / f"{name}.out.npz")
        for index, (layer, spikes) in enumerate(expected.spikes.items()):
            # Lava's (W, H, C, steps)
            assert (got[str(index)].transpose() == spikes[:, 0]).all(), (name, layer)
            if graph.population(layer).fires:
                assert 0 < spikes.sum() < spikes.size, (name, layer)
        assert (got["v"].transpose().reshape(-1) == expected.potential[0]).all(), name
