"""NIR files of ours run in norse, snnTorch and SpikingJelly: our own spikes, layer by layer and step by step.

norse is in the environment that stars-deploy itself installs. For the other two an environment of their own is made
(once, in pytest's cache), or taken from the folder that STARS_PEERS names: one virtual environment for each tool.
``docs/nir-peers.md`` is the table of what these tests assert.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from peer_networks import KINDS, TIMESTEPS, delayed_aside, features, student, tie

from stars_deploy.export.execution import initial_state, run_float, step_neuron
from stars_deploy.graph import SPIKING, Normalize
from stars_deploy.lowering.passes import canonicalize
from stars_deploy.targets.nir_graph.writer import FILE_DT, write_nir

PEERS = Path(__file__).parent / "peers"
SEEDS = (0, 2, 4)
#: Nearer to the threshold than this, float32 may fire where float64 does not, or the other way round.
NEAR = 1e-5
#: What a tool does with each of peer_networks.features: None is our spikes and our output; "output", our spikes but
#: another output; "dropped", that it leaves the node out, so that the network falls into two parts and it is chance
#: (the order of a set) which of them runs, if any; "starts at v_leak", that potentials do and are reset to 0; else what
#: it says instead.
FEATURES = {
    "norse": {
        "spikes as output": None,
        "kernel 3x5": None,
        "sum pooling": None,
        "average pooling": "dropped",
        "threshold per neuron": None,
        "bias per neuron": "starts at v_leak",
        "leak away from 0": "starts at v_leak",
        "reset away from 0": "starts at v_leak",
        "groups": "ValueError: in_channels must be divisible by groups",
        "scale": "dropped",
        "delayed loop": "dropped",
        "two readout projections": "output",
        "LI readout": "output",
    },
    "snntorch": {
        "spikes as output": None,
        "kernel 3x5": None,
        "sum pooling": None,
        "average pooling": None,
        "threshold per neuron": "AssertionError: v_threshold must be same for all neurons",
        "bias per neuron": "AssertionError: v_leak not supported",
        "leak away from 0": "AssertionError: v_leak not supported",
        "reset away from 0": "AssertionError: v_leak not supported",
        "groups": "ValueError: in_channels must be divisible by groups",
        "scale": "ValueError: Unknown node type <class 'nir.ir.linear.Scale'>",
        "delayed loop": "ValueError: Unknown node type <class 'nir.ir.delay.Delay'>",
        "two readout projections": "ValueError: too many values to unpack",
        "LI readout": "ValueError: Unknown node type <class 'nir.ir.neuron.LI'>",
    },
    "spikingjelly": {
        "spikes as output": None,
        "kernel 3x5": None,
        "sum pooling": None,
        "average pooling": None,
        "threshold per neuron": "ValueError: nir.LIF.v_threshold must be uniform",
        "bias per neuron": "ValueError: nir.LIF.v_leak must be uniform",
        "leak away from 0": "ValueError: nir.LIF.v_leak must equal v_reset",
        "reset away from 0": None,
        "groups": "NotImplementedError: Grouped convolutions are not supported",
        "scale": "ValueError: Unknown node type <class 'nir.ir.linear.Scale'>",
        "delayed loop": "ValueError: Unknown node type <class 'nir.ir.delay.Delay'>",
        "two readout projections": "ValueError: too many values to unpack",
        "LI readout": "ValueError: Unknown node type <class 'nir.ir.neuron.LI'>",
    },
}

#: What the tools answer to each function of tests/peers/limits_*.py.
LIMITS = {
    "norse": {
        "export_scalar_parameters": "TypeError: Scalar datasets don't support chunk/filter options",
        "export_with_the_batch_axis": "ValueError: Type inference error: type mismatch: input.output: [[ 1 10]] -> "
        "0.input: [[10]]",
        "export_a_convolution_without_bias": "AttributeError: 'NoneType' object has no attribute 'detach'",
        "export_a_convolution": "TypeError: One of data, shape or dtype must be specified",
        "export_a_flatten": "None",
        "export_a_time_constant_of_4_ms": "4.0e-06 s",
        "import_its_own_time_constant": "4.0e-06 s",
        "import_a_linear": "in 3, out 2, weight (3, 2)",
        "run_a_batch": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x36 and 12x5)",
    },
    "snntorch": {
        "export_scalar_parameters": "ValueError: Type inference error: type mismatch: 0.output: [[5]] -> 1.input: []",
        "export_with_the_batch_axis": "ValueError: Type inference error: type mismatch: input.output: [[ 1 10]] -> "
        "0.input: [[10]]",
        "run_rsynaptic_without_reset_delay": "TypeError: unsupported operand type(s) for /: 'NoneType' and 'Tensor'",
        "import_its_own_recurrent_file": "AttributeError: 'GraphModule' object has no attribute 'items'",
        "import_its_own_average_pooling": "TypeError: 'numpy.int64' object is not iterable",
        "run_a_batch": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x36 and 12x5)",
        "run_a_sample_without_batch_axis": "(5,)",
        "import_an_if_of_r_1": "beta 0.9",
    },
}


def run_peer(python: Path, tool: str, folder: Path, graphs, dt: float = FILE_DT):
    """Write `graphs` in canonical form and run them in `tool`: by name, the graph, its own record and the tool's."""
    cases, arguments = {}, []
    for number, (name, drawn) in enumerate(graphs.items()):
        graph = canonicalize(drawn)
        images = np.random.default_rng(number).random((3, *graph.input.shape)).astype(np.float32)
        if name == "tie":
            images[:] = np.reshape([1, 2, 3], (3, 1))
        file, given, out = (folder / f"{number}{suffix}" for suffix in (".nir", ".npz", "_out.npz"))
        write_nir(graph, None, file, dt=dt)
        np.savez(given, images=normalized(graph, images), timesteps=TIMESTEPS, dt=FILE_DT)
        cases[name] = (graph, run_float(graph, images), out)
        arguments += [file, given, out]
    command = [python, PEERS / f"run_{tool}.py", *arguments]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=alone)
    assert all(out.exists() for _, _, out in cases.values()), done.stderr[-2000:]
    return {name: (graph, record, dict(np.load(out))) for name, (graph, record, out) in cases.items()}


def normalized(graph, images):
    """What other tools are fed: the normalisation behind the input is not in the file."""
    for node in graph.nodes:
        if isinstance(node, Normalize):
            images = (images - node.mean.reshape(-1, 1, 1)) / node.std.reshape(-1, 1, 1)
    return images.astype(np.float32)


def find_differences(graph, record, peer):
    """For each population: where its spikes differ, and how far each potential was from its threshold."""
    found = {}
    for node in graph.nodes:
        if isinstance(node, SPIKING):
            assert node.name in peer and record.values[node.name].shape == peer[node.name].shape, node.name
            distance = np.abs(potentials(graph, node, record) - node.v_threshold)
            found[node.name] = record.values[node.name] != peer[node.name], distance
    return found


def potentials(graph, node, record):
    """Potentials of a population before it fires, (T, B, *shape)."""
    never = dataclasses.replace(node, v_threshold=np.finfo(np.float32).max)
    arriving = [sum(record.values[source][step] for source in graph.sources(node.name)) for step in range(TIMESTEPS)]
    state, steps = initial_state(node, arriving[0].shape), []
    for current in arriving:
        steps.append(step_neuron(never, current, state, graph.dt)[1][-1])
        _, state = step_neuron(node, current, state, graph.dt)
    return np.stack(steps)


def check_equal(name, graph, record, peer):
    """No spike differs; and none could have, for no potential is so near to its threshold that precision matters."""
    assert "error" not in peer, f"{name}: {peer['error']}"
    for population, (differs, distance) in find_differences(graph, record, peer).items():
        report = (
            f"{name} {population}: {differs.sum()} of {differs.size} spikes, nearest potential {distance.min():.1e}"
        )
        assert not differs.any() and distance.min() > NEAR, report
        assert 0.02 < record.values[population].mean() < 0.9, name
    check_output(name, record, peer)


def check_output(name, record, peer):
    """The file ends in the readout's projection: the sum of its output over time is T times the logits."""
    ours = record.logits * TIMESTEPS
    assert ours.shape == peer["output"].shape, f"{name}: {peer['output'].shape}"
    assert len(np.unique(ours, axis=0)) == len(ours)
    assert np.abs(ours - peer["output"]).max() < 1e-6 * np.abs(ours).max(), name


def check_features(python, tool, folder):
    """Each thing that a file can hold does in `tool` what FEATURES says."""
    cases = run_peer(python, tool, folder, features())
    assert cases.keys() == FEATURES[tool].keys()
    for name, expected in FEATURES[tool].items():
        graph, record, peer = cases[name]
        if expected is None:
            check_equal(name, graph, record, peer)
        elif expected == "output":  # the spikes are ours, what the tool returns is not
            assert not any(differs.any() for differs, _ in find_differences(graph, record, peer).values())
            with pytest.raises(AssertionError):
                check_output(name, record, peer)
        elif expected == "dropped":
            with pytest.raises(AssertionError):
                check_equal(name, graph, record, peer)
        elif expected == "starts at v_leak":
            assert np.array_equal(start_at_leak(graph, record), peer["first"]), name
            assert not np.array_equal(record.values["first"], peer["first"]), name
        else:
            assert re.match(re.escape(expected), str(peer.get("error"))), f"{name}: {peer.get('error')}"


def start_at_leak(graph, record):
    """Spikes of the first population if its potential starts at the file's v_leak, and spikes reset it to 0."""
    node, bias = graph.node("first"), graph.node("conv1").bias
    # A bias for each neuron is in the file's v_leak: NIR's convolution has one for each channel.
    start = np.broadcast_to(node.v_leak + (bias if bias.ndim == 3 else 0.0), record.values["first"][0].shape)
    plain, state, steps = dataclasses.replace(node, v_reset=0.0), (start,), []
    for current in record.values["conv1"]:
        spikes, state = step_neuron(plain, current, state, graph.dt)
        steps.append(spikes)
    return np.stack(steps)


def check_limits(python: Path, tool: str) -> None:
    """What the tool cannot do is what LIMITS says, in its own words."""
    command = [python, "-W", "ignore", PEERS / f"limits_{tool}.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert dict(line.split(": ", 1) for line in done.stdout.splitlines()) == LIMITS[tool]


def students(kinds):
    return {f"{kind} {seed}": student(kind, seed) for kind in kinds for seed in SEEDS}


def test_norse_fires_as_we_do(tmp_path):
    python = Path(sys.executable)
    cases = run_peer(python, "norse", tmp_path, students(KINDS))
    for name, (graph, record, peer) in cases.items():
        if not name.startswith("residual"):
            check_equal(name, graph, record, peer)
            continue
        # nirtorch.load runs a population before the second of its sources: that one arrives a timestep late.
        late = run_float(delayed_aside(graph), record.values["image"][0])
        assert all(np.array_equal(late.values[population], peer[population]) for population in ("first", "second"))
        assert not np.array_equal(record.values["second"], peer["second"])
    check_features(python, "norse", tmp_path)


@pytest.mark.slow
def test_snntorch_fires_as_we_do(tmp_path, peer_python):
    python = peer_python("snntorch")
    cases = run_peer(python, "snntorch", tmp_path, students(KINDS))
    for name, (graph, record, peer) in cases.items():
        if name.startswith("if"):
            assert str(peer["error"]) == "AssertionError: r != 1 not supported"
        else:
            check_equal(name, graph, record, peer)
    check_features(python, "snntorch", tmp_path)


@pytest.mark.slow
def test_snntorch_takes_every_file_for_one_of_its_own_timestep(tmp_path, peer_python):
    """Which is why files are written on a grid of 1e-4 s: on that of 1e-3 s a decay of .9 becomes one of .99."""
    graphs = {kind: student(kind, 0) for kind in ("lif", "cuba")}
    cases = run_peer(peer_python("snntorch"), "snntorch", tmp_path, graphs, dt=1e-3)
    differences = find_differences(*cases["lif"])
    assert sum(differs.sum() for differs, _ in differences.values()) > 100
    assert str(cases["cuba"][2]["error"]) == "AssertionError: r not supported in CubaLIF"


@pytest.mark.slow
def test_spikingjelly_fires_as_we_do(tmp_path, peer_python):
    python = peer_python("spikingjelly")
    cases = run_peer(python, "spikingjelly", tmp_path, {**students(KINDS), "tie": tie()})
    _, record, peer = cases.pop("tie")
    # It fires at the threshold, we above it: 1, 2 and 3 quarters a timestep.
    assert peer["first"][:, :, 0].T.tolist() == [[0, 0, 0, 1] * 2 + [0, 0], [0, 1] * 5, [0, 1] * 5]
    assert record.values["first"][:, :, 0].T.tolist() == [[0, 0, 0, 0, 1] * 2, [0, 0, 1] * 3 + [0], [0, 1] * 5]
    for name, (graph, record, peer) in cases.items():
        check_equal(name, graph, record, peer)
    check_features(python, "spikingjelly", tmp_path)


@pytest.mark.slow
def test_norse_has_the_limits_that_are_documented():
    check_limits(Path(sys.executable), "norse")


@pytest.mark.slow
def test_snntorch_has_the_limits_that_are_documented(peer_python):
    check_limits(peer_python("snntorch"), "snntorch")
