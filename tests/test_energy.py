"""Energy: by hand, against sums over every operation, and its intervals."""

from dataclasses import asdict, replace
from importlib import resources

import numpy as np
import pytest
from chips import small_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import graphs
from slow_cost import SlowCounts

from stars_deploy.activity import measure_activity
from stars_deploy.energy import NOT_MODELLED, PARTS, estimate_energy
from stars_deploy.engines import fast_engine
from stars_deploy.hardware import load_profile
from stars_deploy.hardware.mapping import map_network
from stars_deploy.latency import estimate_latency
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.traffic import Counter, count_sums

#: Energies [pJ] that differ in every digit, with ends.
ENERGIES = {
    "energy.synapse_conv": (1.0, 3.0, 4.0),
    "energy.synapse_dense": (0.5, 5.0, 5.5),
    "energy.neuron_active": (6.0, 11.0, 13.0),
    "energy.neuron_inactive": (2.0, 7.0, 8.0),
    "energy.spike": (0.25, 1.25, 9.0),
    "energy.message": (0.125, 2.125, 3.0),
    "energy.hop_east_west": (0.0625, 4.0625, 6.0),
    "energy.hop_north_south": (0.5, 6.5, 7.5),
    "static_power_per_chip": (0.01, 0.03, 0.04),
}
EXACT = {"model_error.latency": (1.0, 1.0, 1.0), "model_error.dynamic_energy": (1.0, 1.0, 1.0)}


def priced_chip(neurons, **changes):
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return small_chip(neurons, **{**ENERGIES, **EXACT, **named})


def estimated(graph, images, profile):
    by_sample = images.swapaxes(0, 1) if graph.input.over_time(images) else images
    activity = measure_activity(graph, by_sample, engine=fast_engine(1))
    counter = Counter(graph, map_network(graph, profile))
    latency = estimate_latency(graph, activity, counter)
    energy = estimate_energy(count_sums(counter, activity), activity.evaluation.samples, counter.mapping, latency)
    return energy, activity, counter, latency


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(
    graphs(timesteps=st.integers(1, 5), batch=st.integers(1, 3), width=1),
    st.sampled_from([priced_chip(neurons) for neurons in (1, 4, 4095)]),
)
def test_the_energy_of_any_network_is_that_of_its_operations(drawn, profile):
    graph, images = drawn
    found, activity, counter, latency = estimated(graph, images, profile)
    probe, mapping = activity.probe, counter.mapping
    samples = len(probe.samples)
    assert samples == activity.evaluation.samples
    slow = [
        SlowCounts(
            graph, mapping, {n: f[:, sample] for n, f in probe.sent.items()},
            {n: f[:, sample] for n, f in probe.active.items()},
        )
        for sample in range(samples)
    ]  # fmt: skip

    def mean(kind, *, source=None, layer=None):
        """Sum over samples, of one layer's cores or of one source's messages."""
        total = 0
        for one in slow:
            for key, count in getattr(one, kind).items():
                wanted = key[0] == source if layer is None else mapping.cores[key[1]].layer == layer
                total += count * wanted
        return total / samples

    assert [layer.name for layer in found.by_layer] == [graph.input.name, *(p.name for p in graph.populations)]
    corners = ("nominal", "low", "high")
    parts = {corner: dict.fromkeys(PARTS, 0.0) for corner in corners}
    for layer in found.by_layer:
        name, updates = layer.name, 0
        if name != graph.input.name:
            updates = graph.timesteps * graph.population(name).size
        counts = {
            "synapses": [("synapse_conv", mean("conv", layer=name)), ("synapse_dense", mean("dense", layer=name))],
            "neurons_active": [("neuron_active", mean("active", layer=name))],
            "neurons_inactive": [("neuron_inactive", updates - mean("active", layer=name))],
            "spikes": [("spike", mean("spikes", layer=name))],
            "messages": [("message", mean("messages", source=name))],
            "hops": [
                ("hop_east_west", mean("east_west", source=name)), ("hop_north_south", mean("north_south", source=name))
            ],
        }  # fmt: skip
        for part, charges in counts.items():
            priced = {
                corner: sum(getattr(profile.energy, kind).at(corner) * count * 1e-12 for kind, count in charges)
                for corner in corners
            }
            assert layer.parts[part] == pytest.approx(priced["nominal"]), (name, part)
            for corner in corners:
                parts[corner][part] += priced[corner]
        assert layer.dynamic == pytest.approx(sum(layer.parts.values()))
    assert set(found.parts) == set(PARTS)
    for corner in corners:
        assert {p: getattr(interval, corner) for p, interval in found.parts.items()} == pytest.approx(parts[corner])
        dynamic = sum(parts[corner].values())
        static = profile.static_power_per_chip.at(corner) * mapping.chips * getattr(latency.per_inference, corner)
        assert getattr(found.dynamic, corner) == pytest.approx(dynamic)
        assert getattr(found.static, corner) == pytest.approx(static)
        assert getattr(found.total, corner) == pytest.approx(dynamic + static)
        used = static / mapping.chips * len(mapping.cores) / 12
        assert getattr(found.hypothetical_static_of_used_cores, corner) == pytest.approx(used)
    assert sum(layer.dynamic for layer in found.by_layer) == pytest.approx(found.dynamic.nominal)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    graphs(timesteps=st.integers(1, 5), batch=st.integers(1, 3), width=1),
    st.sampled_from([small_chip(n, base=base) for n in (2, 4095) for base in ("loihi1", "loihi2", "loihi1-sanafe")]),
)
def test_intervals_are_ordered_and_hold_the_model_error(drawn, profile):
    found, _, _, _ = estimated(*drawn, profile)
    intervals = [
        *found.parts.values(), found.dynamic, found.static, found.total, found.hypothetical_static_of_used_cores
    ]  # fmt: skip
    assert all(0 <= interval.low <= interval.nominal <= interval.high for interval in intervals)
    error = profile.model_error.dynamic_energy
    assert found.dynamic.low <= error.low * found.dynamic.nominal
    assert found.dynamic.high >= error.high * found.dynamic.nominal
    # Widening reaches the sum, never the parts.
    assert found.dynamic.nominal == pytest.approx(sum(part.nominal for part in found.parts.values()))
    assert found.dynamic.low <= sum(part.low for part in found.parts.values()) * (1 + 1e-12)


# ---------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def network():
    """Three pixels to ten neurons, of which those that hear the first pixel fire at once; to one that hears five."""
    weight = np.zeros((10, 3), int)
    weight[:4, 0], weight[2:8, 1] = 9, -1
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(3,)),
        populations=(
            Population(name="a", shape=(10,), bias=np.zeros(10, int), vth=3),
            Population(name="b", shape=(1,), bias=np.zeros(1, int)),
        ),
        projections=(
            DenseProjection(name="p", source="input", target="a", weight=weight),
            DenseProjection(name="q", source="a", target="b", weight=np.array([[1] * 3 + [0] * 5 + [1] * 2])),
        ),
        timesteps=2,
    )


#: The first two pixels are lit. A timestep of a: 4 + 6 synops, 8 of 10 neurons touched, 4 spikes, 2 messages in.
#: Of b: 3 of these spikes reach it, 1 of 1 touched.
PIXELS = np.array([[1, 1, 0]])


def test_energy_by_hand(network):
    found, _, counter, latency = estimated(network, PIXELS, load_profile("loihi1"))
    assert len(counter.mapping.cores) == 2 and counter.mapping.tiles == 1
    picojoules = {name: interval.nominal * 1e12 for name, interval in found.parts.items()}
    assert picojoules == pytest.approx({
        "synapses": 23.6 * 2 * (10 + 3),
        "neurons_active": 81 * 2 * (8 + 1),
        "neurons_inactive": 52 * 2 * 2,
        "spikes": 0,
        "messages": 1.7 * 2 * (2 + 3),
        "hops": 0,
    })  # fmt: skip
    # ns: a takes 3.5 x 10 + 8.4 x 8 + 5.3 x 2 + 2.1 x 3 a timestep; one tile.
    period = 2 * (35 + 67.2 + 10.6 + 6.3 + 113) * 1e-9
    assert latency.per_inference.nominal == pytest.approx(period)
    assert found.static.nominal == pytest.approx(0.0962 * period)
    assert found.total.nominal == pytest.approx(found.dynamic.nominal + found.static.nominal)
    assert found.hypothetical_static_of_used_cores.nominal == pytest.approx(0.0962 * period * 2 / 128)
    layers = {layer.name: layer.parts for layer in found.by_layer}
    assert layers["input"]["messages"] == pytest.approx(2 * 2 * 1.7e-12)
    assert layers["a"]["messages"] == pytest.approx(2 * 3 * 1.7e-12)
    assert (layers["input"]["synapses"], layers["b"]["messages"]) == (0, 0)


def test_ends_take_the_same_end_of_every_constant(network):
    profile = replace_errors(load_profile("loihi1"))
    found, _, _, _ = estimated(network, PIXELS, profile)
    assert found.dynamic.low == pytest.approx((16.5 * 26 + 56.7 * 18 + 36.4 * 4 + 1.7 * 10) * 1e-12)
    high = 35.5 * 26 + 105.3 * 18 + 67.6 * 4 + 69.3 * 8 + 111 * 10
    assert found.dynamic.high == pytest.approx(high * 1e-12)
    period_low = 2 * (3.1 * 10 + 6.3 * 8 + 3.98 * 2 + 2.1 * 3 + 113) * 1e-9
    assert found.static.low == pytest.approx(0.0297 * period_low)
    assert found.total.low == pytest.approx(found.dynamic.low + found.static.low)
    assert found.total.high == pytest.approx(found.dynamic.high + found.static.high)


def replace_errors(profile):
    """Return `profile` without the floor under its intervals."""
    sure = profile.model_error.latency.model_copy(update={"low": 1.0, "high": 1.0})
    error = profile.model_error.model_copy(update={"dynamic_energy": sure, "latency": sure})
    return profile.model_copy(update={"model_error": error})


def test_an_interval_is_never_narrower_than_the_model_is_known(network):
    certain = {name: ends[1] for name, ends in ENERGIES.items()}
    found, _, _, _ = estimated(network, PIXELS, small_chip(**certain))  # loihi2's model error
    assert found.dynamic.low == pytest.approx(0.6 * found.dynamic.nominal)
    assert found.dynamic.high == pytest.approx(1.5 * found.dynamic.nominal)
    assert found.total.low == pytest.approx(found.dynamic.low + found.static.low)


@pytest.mark.parametrize(
    ("name", "part", "count"),
    [
        ("synapse_dense", "synapses", 26),
        ("synapse_conv", "synapses", 0),
        ("neuron_active", "neurons_active", 18),
        ("neuron_inactive", "neurons_inactive", 4),
        ("spike", "spikes", 8),
        ("message", "messages", 10),
        ("hop_east_west", "hops", 0),
    ],
)
def test_a_constant_moves_the_total_by_its_count(network, name, part, count):
    before, _, _, _ = estimated(network, PIXELS, priced_chip(4095))
    low, nominal, high = ENERGIES[f"energy.{name}"]
    dearer = priced_chip(4095, **{f"energy.{name}": (low, nominal + 1, high + 1)})
    after, _, _, _ = estimated(network, PIXELS, dearer)
    assert after.parts[part].nominal - before.parts[part].nominal == pytest.approx(count * 1e-12)
    assert after.total.nominal - before.total.nominal == pytest.approx(count * 1e-12)


def test_hops_cost_by_their_direction(network):
    # A neuron a core and two cores a tile: b sits on the sixth tile, (0, 1), at the end of the way back.
    found, _, counter, _ = estimated(network, PIXELS, priced_chip(1))
    place = counter.mapping.cores[-1].place
    assert (place.x, place.y, counter.mapping.chips) == (0, 1, 1)
    # Input from (0, 0): pixel 0 to a0 .. a3, pixel 1 to a2 .. a7; tiles (0,0) (1,0) (2,0) (2,1) hold two each.
    east_west = (0 + 0 + 1 + 1) + (1 + 1 + 2 + 2 + 2 + 2)
    north_south = 2 * 1
    # a0, a1, a2 fire to b from x = 0, 0, 1.
    east_west, north_south = east_west + 1, north_south + 3
    assert found.parts["hops"].nominal == pytest.approx(2 * (4.0625 * east_west + 6.5 * north_south) * 1e-12)


def test_a_constant_changed_in_a_copied_file_changes_the_result(network, tmp_path):
    text = (resources.files("stars_deploy") / "profiles" / "loihi1.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("{nominal: 23.6, low: 16.5", "{nominal: 26.6, low: 16.5"))
    before, _, _, _ = estimated(network, PIXELS, load_profile("loihi1"))
    after, _, _, _ = estimated(network, PIXELS, load_profile(path))
    assert after.dynamic.nominal - before.dynamic.nominal == pytest.approx(26 * 3e-12)


def test_static_power_is_paid_for_whole_chips(network):
    profile = priced_chip(4095)
    activity = measure_activity(network, PIXELS, engine=fast_engine(1))
    counter = Counter(network, map_network(network, profile))
    latency, traffic = estimate_latency(network, activity, counter), count_sums(counter, activity)
    one = estimate_energy(traffic, 1, counter.mapping, latency)
    three = estimate_energy(traffic, 1, replace(counter.mapping, chips=3), latency)
    assert three.static.nominal == pytest.approx(3 * one.static.nominal)
    assert three.dynamic == one.dynamic


def test_it_says_that_it_is_an_estimate_and_what_it_leaves_out(network):
    plain = asdict(estimated(network, PIXELS, load_profile("loihi2"))[0])
    assert plain["label"] == "estimate"
    assert plain["profile"] == "loihi2"
    assert plain["not_modelled"] == NOT_MODELLED
    assert any("input/output" in item for item in NOT_MODELLED)
    assert set(plain["total"]) == {"nominal", "low", "high"}
