"""NIR files written by snnTorch, SpikingJelly, sinabs and norse: read here, they give the tool's own spikes.

``tests/data/nir/README.md`` says how the files were made. Each comes with what its own tool did on three images, step
by step. Where the file cannot say what the tool does, the tool's own rule is emulated here, and the spikes are equal
again: the difference is that rule and nothing else. ``docs/nir-peers.md`` has the numbers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nir
import numpy as np
import pytest

from stars_deploy.errors import FormatError, StarsDeployError
from stars_deploy.export.calibration import calibrate_graph
from stars_deploy.export.execution import apply_node, initial_state, run_float, step_neuron
from stars_deploy.export.quantization import quantize_graph
from stars_deploy.graph import IF, LIF, SPIKING, CubaLIF, Delay, Input, SpikingGraph
from stars_deploy.lowering.passes import canonicalize, lower
from stars_deploy.quantized import find_difference
from stars_deploy.targets import TARGETS
from stars_deploy.targets.nir_graph.reader import read_nir
from stars_deploy.targets.reference import run_reference

DATA = Path(__file__).parent / "data" / "nir"
TIMESTEPS = 12
#: Files whose tool does what the file says, with the timestep that its tool has in mind [s].
FAITHFUL = {
    "snntorch_conv": 1e-4,
    "snntorch_synaptic": 1e-4,
    "snntorch_rleaky": 1e-4,
    "snntorch_rleaky_diagonal": 1e-4,
    "spikingjelly_conv": 1e-4,
    "spikingjelly_conv1d": 1e-4,
    "spikingjelly_cuba": 1e-4,
    "spikingjelly_reset": 1e-4,
    "sinabs_conv": 1.0,
    "sinabs3_conv": 1.0,
    "norse_lif": 1e-3,
    "norse_lif_default_dt": 1e-6,  # its times were multiplied by its dt of 1e-3 once more
    "norse_conv": 1e-3,
    "norse_iaf": 1.0,  # norse's IAF adds its input as it is, whatever dt
}
#: Spikes that differ, of all, where the tool does something else than its file says.
UNFAITHFUL = {
    "snntorch_rsynaptic": (1e-4, 122),
    "snntorch_defaults": (1e-4, 101),
    "sinabs_lif": (1.0, 69),
    "sinabs_defaults": (1.0, 120),
    "norse_cuba": (1e-3, 113),
}
ALL = {**FAITHFUL, **{name: dt for name, (dt, _) in UNFAITHFUL.items()}}
#: Files whose projections have a bias into a synaptic current: in integers, synapses from a neuron that always fires.
CURRENT_BIASES = {"snntorch_rsynaptic", "norse_cuba"}


def read(name, dt):
    # A loop is late by one timestep in every tool that has any.
    return read_nir(DATA / f"{name}.nir", dt=dt, timesteps=TIMESTEPS, recurrent_delay=1).graph


def recorded(name, graph):
    """The images, and the tool's own spikes by the name of the population here: (T, B, *shape)."""
    arrays = np.load(DATA / f"{'sinabs_conv' if name == 'sinabs3_conv' else name}.npz")
    populations = [node.name for node in graph.nodes if isinstance(node, SPIKING)]
    images = arrays["images"].reshape(-1, *graph.input.shape).astype(np.float64)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images) == 3
    spikes = {}
    for key in arrays:
        # A recurrent layer is one module in snnTorch, and rec.lif with rec.w_rec in its file.
        found = [p for p in populations if key.removeprefix("spikes.") in (p, p.removesuffix(".lif"))]
        if found:
            (population,) = found
            spikes[population] = arrays[key].reshape(TIMESTEPS, len(images), *graph.shapes[population])
    assert sorted(spikes) == sorted(populations)
    return images, spikes


def count_differences(graph, images, spikes):
    record = run_float(graph, images)
    return sum(int((record.values[population] != steps).sum()) for population, steps in spikes.items())


@pytest.mark.parametrize("name", FAITHFUL)
def test_spikes_are_those_of_the_tool_that_wrote_the_file(name):
    graph = read(name, FAITHFUL[name])
    images, spikes = recorded(name, graph)
    assert all(0.01 < steps.mean() < 0.7 for steps in spikes.values())
    assert count_differences(graph, images, spikes) == 0


@pytest.mark.parametrize("name", sorted(ALL))
def test_lowered_graphs_mean_the_same(name):
    graph = read(name, ALL[name])
    images, _ = recorded(name, graph)
    lowered = lower(graph)
    values, after = run_float(graph, images).values, run_float(lowered, images).values
    for node in graph.nodes:
        if isinstance(node, SPIKING):
            assert np.array_equal(values[node.name].ravel(), after[node.name].ravel())


@pytest.mark.parametrize("name", sorted(CURRENT_BIASES))
def test_a_bias_into_a_current_is_kept_in_integers(name, tmp_path):
    graph = canonicalize(read(name, ALL[name]))
    images, _ = recorded(name, graph)
    biased = [n.name for n in graph.nodes if isinstance(n, CubaLIF) and graph.node(graph.sources(n.name)[0]).bias.any()]
    calibration = calibrate_graph(lower(graph), images, 8, 8)
    quantized = quantize_graph(lower(graph), 8, calibration.input_bits, calibration.shares)
    assert [item.name for item in quantized.populations] == ["ones", *(layer.name for layer in calibration.layers)]
    assert [i.target for i in quantized.projections if i.source == "ones"] == biased and biased
    assert not any("ones" in text for text in calibration.warnings)
    assert all(layer.current_error < 0.07 for layer in calibration.layers)
    record, made = run_float(graph, images), run_reference(quantized, quantized.input.quantize(images))
    assert made.spikes["ones"].all()
    for layer in calibration.layers:
        assert abs(made.spikes[layer.name].mean() - record.rate(layer.name)) < 0.05
    assert record.rate(biased[0]) > 0.05
    # The file of the float graph gives the integers back, bit by bit.
    TARGETS["nir"].write(quantized, tmp_path / "m.nir", origin=graph)
    assert find_difference(TARGETS["nir"].read(tmp_path / "m.nir", TIMESTEPS), quantized) == ""
    # Without the bias it is another network.
    silent = [
        dataclasses.replace(item, weight=0 * item.weight) if item.source == "ones" else item
        for item in quantized.projections
    ]
    other = run_reference(
        dataclasses.replace(quantized, projections=tuple(silent)), quantized.input.quantize(images)
    ).spikes[biased[0]]
    assert np.mean(other != made.spikes[biased[0]]) > 0.05


@pytest.mark.parametrize("name", UNFAITHFUL)
def test_what_the_file_cannot_say_is_counted(name):
    dt, expected = UNFAITHFUL[name]
    graph = read(name, dt)
    assert count_differences(graph, *recorded(name, graph)) == expected


def test_a_wrong_timestep_is_another_network():
    graph = read("snntorch_conv", 5e-5)
    assert count_differences(graph, *recorded("snntorch_conv", graph)) > 100
    with pytest.raises(FormatError, match="at least a timestep"):
        read("snntorch_conv", 1e-3)


def test_a_loop_needs_its_delay_from_the_caller():
    with pytest.raises(StarsDeployError, match="loop"):
        read_nir(DATA / "snntorch_rleaky.nir", dt=1e-4, timesteps=TIMESTEPS)


def test_a_timestep_is_asked_for():
    with pytest.raises(StarsDeployError, match="dt"):
        read_nir(DATA / "snntorch_conv.nir", timesteps=TIMESTEPS)


@pytest.mark.parametrize("name", ["snntorch_conv", "spikingjelly_cuba"])
def test_compression_changes_nothing(name, tmp_path):
    """The files here are uncompressed, to be small; ``nir.write`` compresses in chunks."""
    nir.write(tmp_path / "chunks.nir", nir.read(DATA / f"{name}.nir"))
    again = read_nir(tmp_path / "chunks.nir", dt=1e-4, timesteps=TIMESTEPS).graph
    graph = read(name, 1e-4)
    images, spikes = recorded(name, graph)
    assert again.shapes == graph.shapes and count_differences(again, images, spikes) == 0


def test_sinabs_decays_exponentially():
    """``exp(-dt / tau)`` of the potential stays in sinabs, ``1 - dt / tau`` in NIR's Euler step; times in steps."""
    graph = with_populations(read("sinabs_lif", 1.0), lambda node: {"tau_mem": 1 / (1 - np.exp(-1 / node.tau_mem))})
    assert count_differences(graph, *recorded("sinabs_lif", graph)) == 0


def test_norse_adds_its_input_undivided_to_the_current():
    """``u += i`` in norse, ``u += dt / tau_syn w_in i`` in NIR: the file would need w_in = tau_syn / dt, and has 1."""
    graph = with_populations(read("norse_cuba", 1e-3), lambda node: {"w_in": node.tau_syn / 1e-3})
    assert count_differences(graph, *recorded("norse_cuba", graph)) == 0


def test_snntorch_subtracts_the_threshold_one_timestep_late():
    graph = read("snntorch_defaults", 1e-4)
    images, spikes = recorded("snntorch_defaults", graph)
    for population in spikes:
        node = graph.node(population)
        assert isinstance(node, LIF)
        arriving = currents(graph, population, images, spikes)
        potential, steps = np.zeros_like(arriving[0]), []
        for current in arriving:
            late = potential > node.v_threshold
            potential = potential + graph.dt / node.tau_mem * (node.r * current - potential) - late * node.v_threshold
            steps.append(potential > node.v_threshold)
        assert np.array_equal(np.stack(steps), spikes[population])


def test_snntorch_resets_rsynaptic_one_timestep_late():
    """And loses what arrives in that timestep (for the membrane: the current keeps it)."""
    graph = read("snntorch_rsynaptic", 1e-4)
    images, spikes = recorded("snntorch_rsynaptic", graph)
    node = graph.node("rec.lif")
    assert isinstance(node, CubaLIF)
    never = dataclasses.replace(node, v_threshold=np.finfo(np.float32).max)
    arriving = currents(graph, node.name, images, spikes)
    state, steps = initial_state(node, arriving[0].shape), []
    for current in arriving:
        late = state[-1] > node.v_threshold
        _, (synaptic, potential) = step_neuron(never, current, state, graph.dt)
        state = (synaptic, np.where(late, 0.0, potential))
        steps.append(state[-1] > node.v_threshold)
    assert np.array_equal(np.stack(steps), spikes[node.name])
    # The layer behind it is one that the file does describe.
    assert np.array_equal(simulate(graph, "lif2", currents(graph, "lif2", images, spikes)), spikes["lif2"])


def test_sinabs_fires_several_times_and_subtracts():
    graph = read("sinabs_defaults", 1.0)
    images, spikes = recorded("sinabs_defaults", graph)
    assert max(steps.max() for steps in spikes.values()) > 1
    for population in spikes:
        node = graph.node(population)
        assert isinstance(node, IF)
        arriving = currents(graph, population, images, spikes)
        potential, steps = np.zeros_like(arriving[0]), []
        for current in arriving:
            potential = potential + graph.dt * node.r * current
            steps.append(np.floor(np.maximum(potential, 0) / node.v_threshold))
            potential = potential - steps[-1] * node.v_threshold
        assert np.array_equal(np.stack(steps), spikes[population])


def with_populations(graph: SpikingGraph, change) -> SpikingGraph:
    """`graph` with the fields that `change` returns for each population replaced."""
    nodes = [dataclasses.replace(node, **change(node)) if isinstance(node, SPIKING) else node for node in graph.nodes]
    return graph.with_nodes(tuple(nodes), graph.edges)


def currents(graph: SpikingGraph, population: str, images, spikes):
    """What arrives at a population at each timestep when the populations before it do what the tool recorded."""

    def value(name, step):
        node = graph.node(name)
        if isinstance(node, Input):
            return images
        if name in spikes:
            return spikes[name][step].astype(np.float64)
        if isinstance(node, Delay):
            late = step - int(graph.delay_steps(name).max())
            return arriving(name, late) if late >= 0 else np.zeros((len(images), *graph.shapes[name]))
        return apply_node(node, arriving(name, step))

    def arriving(name, step):
        return sum(value(source, step) for source in graph.sources(name))

    return np.stack([arriving(population, step) for step in range(TIMESTEPS)])


def simulate(graph: SpikingGraph, population: str, arriving):
    """Spikes of a population, by the equations here, on what arrives at it."""
    node = graph.node(population)
    state, steps = initial_state(node, arriving[0].shape), []
    for current in arriving:
        output, state = step_neuron(node, current, state, graph.dt)
        steps.append(output)
    return np.stack(steps)
