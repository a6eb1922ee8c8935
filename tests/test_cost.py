"""The cost of an inference as a whole, and the sections of report.json that it fills."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from chips import small_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import Traits, graphs, random_graph

from stars_deploy.activity import load_activity, measure_activity, save_activity
from stars_deploy.cost import estimate_cost, summarize_cost, summarize_messages
from stars_deploy.energy import PARTS
from stars_deploy.engines import fast_engine
from stars_deploy.errors import ConfigError
from stars_deploy.hardware import load_profile

COUNTED = ("synops", "dense_synops", "spikes", "active_updates", "inactive_updates")


@pytest.fixture(scope="module")
def network():
    kept = Traits(batch=6, populations=4, timesteps=3, payload=(4, False), residuals=1)
    graph, images = random_graph(kept, 89)
    return graph, measure_activity(graph, images, np.zeros(6, int))


@pytest.fixture(scope="module")
def profile():
    return small_chip(6)


@pytest.fixture(scope="module")
def sections(network, profile):
    graph, activity = network
    content = summarize_cost(graph, activity.evaluation, estimate_cost(graph, activity, profile))
    return json.loads(json.dumps(content, allow_nan=False))


def test_the_sections_are_those_of_the_report(sections, network):
    graph, _ = network
    assert set(sections) == {"counts", "hardware", "latency_s", "energy_j", "ann"}
    counts = sections["counts"]
    assert (counts["samples"], counts["timesteps"]) == (6, 3)
    assert set(counts["per_inference"]) == {
        "synops", "spike_synops", "input_synops", "dense_synops", "neuron_updates", "active_updates",
        "inactive_updates", "spikes", "input_messages", "messages", "hops_east_west", "hops_north_south",
    }  # fmt: skip
    assert set(counts["neurobench"]) == {"effective_acs", "effective_macs", "dense", "activation_sparsity"}
    assert [layer["name"] for layer in counts["per_layer"]] == [population.name for population in graph.populations]
    hardware = sections["hardware"]
    assert set(hardware) == {
        "profile", "description", "cores", "chips", "mesh", "cores_per_tile", "utilisation", "binding", "layers",
        "notes", "core_map", "constants",
    }  # fmt: skip
    assert set(hardware["utilisation"]) == {"neurons", "synaptic_words", "axons_in", "axons_out", "cores"}
    assert all(len(pair) == 2 for pair in hardware["utilisation"].values())
    for name in ("per_inference", "first_output", "throughput"):
        assert set(sections["latency_s"][name]) == {"nominal", "low", "high"}
    assert {
        "depth",
        "phases",
        "other_phases_s",
        "spread",
        "samples",
        "binding",
        "steps",
        "caveat",
        "not_modelled",
    } <= set(sections["latency_s"])
    assert "core_seconds" not in sections["latency_s"]  # in the core map
    assert set(sections["energy_j"]["parts"]) == set(PARTS)
    assert sections["energy_j"]["label"] == "estimate"


def test_each_constant_is_printed_with_its_source_and_evidence(sections, profile):
    printed = {constant["key"]: constant for constant in sections["hardware"]["constants"]}
    assert list(printed) == [key for key, _ in profile.constants()]
    for key, constant in profile.constants():
        assert {name: value for name, value in printed[key].items() if name != "key"} == constant.model_dump()


def test_counts_of_layers_and_cores_add_up(sections):
    total, layers, cores = (
        sections["counts"]["per_inference"], sections["counts"]["per_layer"], sections["hardware"]["core_map"]
    )  # fmt: skip
    for name in COUNTED:
        assert sum(layer[name] for layer in layers) == pytest.approx(total[name])
        for layer in layers:
            own = sum(core[name] for core in cores if core["layer"] == layer["name"])
            assert own == pytest.approx(layer[name]), (layer["name"], name)
    for layer in layers:
        assert sum(layer["synops_per_step"]) == pytest.approx(layer["synops"])
        assert sum(layer["dense_synops_per_step"]) == pytest.approx(layer["dense_synops"])
        assert sum(layer["spikes_per_step"]) == pytest.approx(layer["spikes"])
        assert sum(layer["active_per_step"]) == pytest.approx(layer["active_updates"])
        assert sum(layer["messages_per_step"]) == pytest.approx(layer["messages"])
        assert layer["firing_rate"] == pytest.approx(layer["spikes"] / layer["neurons"] / 3)
        assert layer["neuron_updates"] == layer["neurons"] * 3
    for core in cores:
        assert sum(core["synops_per_step"]) == pytest.approx(core["synops"])
        assert core["active_updates"] + core["inactive_updates"] == pytest.approx(3 * core["neurons"])
        assert len(core["seconds_per_step"]) == 3 and min(core["seconds_per_step"]) > 0
    assert sum(core["messages_in"] for core in cores) == pytest.approx(total["messages"])
    sent = sum(layer["messages"] for layer in layers)
    assert sum(core["messages_out"] for core in cores) == pytest.approx(sent)
    assert total["messages"] > sent > 0  # the input sends the others


def test_cores_lie_where_they_were_mapped(sections, network, profile):
    graph, activity = network
    cost = estimate_cost(graph, activity, profile)
    for printed, core in zip(sections["hardware"]["core_map"], cost.mapping.cores, strict=True):
        assert (printed["core"], printed["layer"]) == (core.index, core.layer)
        assert {"chip": printed["chip"], "x": printed["x"], "y": printed["y"]} == asdict(core.place)
        for name in ("neurons", "synaptic_words", "axons_in", "axons_out"):
            assert printed[name] == getattr(core, name)
    assert sections["hardware"]["cores"] == len(cost.mapping.cores) > len(graph.populations)
    largest = max(sections["hardware"]["layers"], key=lambda layer: layer["cores"])
    assert sections["hardware"]["binding"] == {"layer": largest["name"], "limit": largest["binding"]}


def test_the_busiest_core_is_never_busier_than_its_step(sections):
    """The mean time of any one core is within the mean step, which waits for the busiest of each image."""
    steps = [step["seconds"] for step in sections["latency_s"]["steps"]]
    for core in sections["hardware"]["core_map"]:
        assert all(own < whole for own, whole in zip(core["seconds_per_step"], steps, strict=True))


def test_an_activity_serves_any_chip(network):
    graph, activity = network
    costs = [estimate_cost(graph, activity, small_chip(4095, base=name)) for name in ("loihi1", "loihi2")]
    synops = [int(cost.traffic.synops.sum()) for cost in costs]
    assert synops[0] == synops[1] > 0
    assert costs[0].energy.dynamic.nominal != costs[1].energy.static.nominal
    assert costs[0].latency.per_inference.nominal > costs[1].latency.per_inference.nominal


def test_a_kept_activity_costs_the_same(network, profile, tmp_path):
    graph, activity = network
    save_activity(tmp_path / "activity.npz", activity)
    kept = load_activity(tmp_path / "activity.npz")
    one, other = (estimate_cost(graph, one, profile) for one in (activity, kept))
    assert one.energy == other.energy
    assert summarize_cost(graph, activity.evaluation, one) == summarize_cost(graph, kept.evaluation, other)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    graphs(timesteps=st.integers(1, 4), batch=st.integers(1, 3), width=1, populations=st.integers(2, 4)),
    st.sampled_from([small_chip(neurons) for neurons in (1, 5, 4095)]),
)
def test_sections_of_any_network_are_json(drawn, profile):
    graph, images = drawn
    by_sample = images.swapaxes(0, 1) if graph.input.over_time(images) else images
    activity = measure_activity(graph, by_sample, engine=fast_engine(1))
    cost = estimate_cost(graph, activity, profile)
    json.dumps(summarize_cost(graph, activity.evaluation, cost), allow_nan=False)
    messages = summarize_messages(cost)
    assert messages["messages"] == pytest.approx(cost.traffic.messages_in.sum() / activity.evaluation.samples)


def test_a_network_that_does_not_fit_is_refused(network):
    graph, activity = network
    with pytest.raises(ConfigError, match=r"--hardware loihi2: .*bits a weight, at most 2") as caught:
        estimate_cost(graph, activity, small_chip(6, limits__weight_bits=2))
    assert caught.value.exit_code == 2
    assert estimate_cost(graph, activity, small_chip(6)).mapping.problems == ()
    assert load_profile("loihi2").limits.weight_bits.nominal == 8
