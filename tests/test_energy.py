from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stars_deploy.energy import NOT_MODELLED, estimate_energy
from stars_deploy.hardware import Constant, Interval, estimate_cores, load_profile
from stars_deploy.latency import estimate_latency
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.simulate import Evaluation, LayerActivity

CHIPS = [load_profile("loihi1"), load_profile("loihi2")]


@pytest.fixture(scope="module")
def graph():
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 1, 2)),
        populations=(Population(name="a", shape=(10,), bias=np.zeros(10, int)),),
        projections=(DenseProjection(name="p", source="input", target="a", weight=np.ones((10, 2), int)),),
        timesteps=2,
    )


def evaluation_of(synops=(60.0, 20.0), graded=(20.0, 0.0), active=(4.0, 6.0), spikes=(3.0, 1.0), messages=16.0):
    layer = LayerActivity(
        name="a",
        neurons=10,
        spikes_per_step=tuple(spikes),
        spike_synops_per_step=tuple(synops),
        input_synops_per_step=tuple(graded),
        dense_synops_per_step=tuple(synops),
        active_per_step=tuple(active),
    )
    return Evaluation(
        timesteps=len(synops),
        samples=1,
        accuracy=None,
        predictions=np.zeros(1, np.int64),
        input_messages=messages,
        layers=(layer,),
    )


def energy_of(graph, evaluation, profile):
    cores = estimate_cores(graph, profile)
    return estimate_energy(evaluation, profile, cores, estimate_latency(graph, evaluation, profile, cores))


def with_constant(profile, name, **values):
    energy = profile.energy
    constant = getattr(energy, name).model_copy(update=values)
    return profile.model_copy(update={"energy": energy.model_copy(update={name: constant})})


def exact(profile):
    """Return `profile` without the floor under its intervals."""
    sure = Constant(nominal=1, low=1, high=1, unit="1", source="test", evidence="estimate")
    return profile.model_copy(
        update={"model_error": profile.model_error.model_copy(update={"dynamic_energy": sure, "latency": sure})}
    )


def test_energy_by_hand(graph):
    # 100 synops, 10 active and 10 inactive updates, 4 spikes + 16 graded messages.
    estimate = energy_of(graph, evaluation_of(), load_profile("loihi1"))
    picojoules = {name: interval.nominal * 1e12 for name, interval in estimate.parts.items()}
    assert picojoules == pytest.approx(
        {"synapses": 2360, "neurons_active": 810, "neurons_inactive": 520, "messages": 34, "hops": 20 * 5 * 3.5}
    )
    assert estimate.dynamic.nominal == pytest.approx((2360 + 810 + 520 + 34 + 350) * 1e-12)
    # ns on one core: (3.5*80 + 8.4*4 + 5.3*6 + 2.1*3 + 465) + (3.5*20 + 8.4*6 + 5.3*4 + 2.1*1 + 465)
    period = (280 + 33.6 + 31.8 + 6.3 + 465 + 70 + 50.4 + 21.2 + 2.1 + 465) * 1e-9
    assert estimate.static.nominal == pytest.approx(0.0962 * period)
    assert estimate.total.nominal == pytest.approx(estimate.dynamic.nominal + estimate.static.nominal)
    assert estimate.hypothetical_static_of_used_cores.nominal == pytest.approx(0.0962 * period / 128)


def test_ends_take_the_same_end_of_every_constant(graph):
    profile = exact(load_profile("loihi1"))
    estimate = energy_of(graph, evaluation_of(), profile)
    assert estimate.dynamic.low == pytest.approx((1650 + 567 + 364 + 34) * 1e-12)
    assert estimate.dynamic.high == pytest.approx((3550 + 1053 + 676 + 20 * 180.3 + 20 * 12.5 * 4.2) * 1e-12)
    period_low = (3.1 * 100 + 6.3 * 10 + 3.98 * 10 + 2.1 * 4 + 2 * 113) * 1e-9
    assert estimate.static.low == pytest.approx(0.0297 * period_low)
    assert estimate.total.low == pytest.approx(estimate.dynamic.low + estimate.static.low)
    assert estimate.total.high == pytest.approx(estimate.dynamic.high + estimate.static.high)


def test_an_interval_is_never_narrower_than_the_model_is_known(graph):
    profile = load_profile("loihi2")
    certain = profile.energy.model_copy(
        update={
            name: constant.model_copy(update={"low": constant.nominal, "high": constant.nominal})
            for name, constant in profile.energy
        }
    )
    estimate = energy_of(graph, evaluation_of(), profile.model_copy(update={"energy": certain}))
    assert estimate.dynamic.low == pytest.approx(0.6 * estimate.dynamic.nominal)
    assert estimate.dynamic.high == pytest.approx(1.5 * estimate.dynamic.nominal)


@pytest.mark.parametrize(
    ("name", "part", "count"),
    [
        ("synapse", "synapses", 100),
        ("neuron_active", "neurons_active", 10),
        ("neuron_inactive", "neurons_inactive", 10),
        ("message", "messages", 20),
    ],
)
def test_a_constant_moves_the_total_by_its_count(graph, name, part, count):
    profile = load_profile("loihi1")
    before = energy_of(graph, evaluation_of(), profile)
    nominal = getattr(profile.energy, name).nominal + 1
    after = energy_of(graph, evaluation_of(), with_constant(profile, name, nominal=nominal))
    assert after.parts[part].nominal - before.parts[part].nominal == pytest.approx(count * 1e-12)
    assert after.total.nominal - before.total.nominal == pytest.approx(count * 1e-12)


def test_a_constant_changed_in_a_copied_file_changes_the_result(graph, tmp_path):
    from importlib import resources

    text = (resources.files("stars_deploy") / "profiles" / "loihi1.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("{nominal: 23.6, low: 16.5", "{nominal: 33.6, low: 16.5"))
    before = energy_of(graph, evaluation_of(), load_profile("loihi1"))
    after = energy_of(graph, evaluation_of(), load_profile(path))
    assert after.dynamic.nominal - before.dynamic.nominal == pytest.approx(100 * 10e-12)


def test_static_power_is_paid_for_whole_chips(graph):
    profile = load_profile("loihi1")
    evaluation = evaluation_of()
    cores = estimate_cores(graph, profile)
    latency = estimate_latency(graph, evaluation, profile, cores)
    one = estimate_energy(evaluation, profile, cores, latency)
    three = estimate_energy(evaluation, profile, replace(cores, chips=3), latency)
    assert three.static.nominal == pytest.approx(3 * one.static.nominal)
    assert three.dynamic == one.dynamic


def test_it_says_that_it_is_an_estimate_and_what_it_leaves_out(graph):
    plain = asdict(energy_of(graph, evaluation_of(), load_profile("loihi2")))
    assert plain["label"] == "estimate"
    assert plain["profile"] == "loihi2"
    assert plain["not_modelled"] == NOT_MODELLED
    assert any("input/output" in item for item in NOT_MODELLED)
    assert set(plain["total"]) == {"nominal", "low", "high"}


@given(
    st.sampled_from(CHIPS),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=2),
    st.lists(st.floats(0, 10), min_size=2, max_size=2),
    st.floats(0, 1e3),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_intervals_are_ordered(profile, synops, active, messages):
    network = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 1, 2)),
        populations=(Population(name="a", shape=(10,), bias=np.zeros(10, int)),),
        projections=(DenseProjection(name="p", source="input", target="a", weight=np.ones((10, 2), int)),),
        timesteps=2,
    )
    estimate = energy_of(network, evaluation_of(synops=synops, active=active, messages=messages), profile)
    intervals: list[Interval] = [
        *estimate.parts.values(),
        estimate.dynamic,
        estimate.static,
        estimate.total,
        estimate.hypothetical_static_of_used_cores,
    ]
    assert all(0 <= interval.low <= interval.nominal <= interval.high for interval in intervals)
