import math
from dataclasses import asdict

import pytest

from stars_deploy.baseline import AnnLayer, same_chip_tier
from stars_deploy.baseline.analytic import BitWidths, estimate_analytic
from stars_deploy.baseline.break_even import judge_break_even
from stars_deploy.baseline.tiers import analytic_tiers, matched_bits, measured_tiers
from stars_deploy.cpu_measurement import BatchMeasurement, CpuMeasurement, InferenceEnergy, Spread, not_measured
from stars_deploy.hardware import Interval

LAYERS = (
    AnnLayer(name="conv", macs=1440, weights=90, inputs=64, outputs=160, zero_share=0.5, reads_image=True),
    AnnLayer(name="fc", macs=1600, weights=1600, inputs=160, outputs=10, zero_share=0.75),
)


def measurement(**changes):
    one = BatchMeasurement(
        batch=1, runs=9, seconds_per_inference=Spread(least=2e-4, median=3e-4, most=9e-4),
        joules_per_inference=InferenceEnergy(total=4e-3, idle_subtracted=1e-3),
    )  # fmt: skip
    best = BatchMeasurement(
        batch=32, runs=5, seconds_per_inference=Spread(least=1e-5, median=2e-5, most=3e-5),
        joules_per_inference=InferenceEnergy(total=5e-4, idle_subtracted=2e-4),
    )  # fmt: skip
    given = {
        "cpu": "A CPU", "runtime": "ONNX Runtime 1", "threads": 1, "date": "2026-11-25T00:00:00+00:00",
        "batches": (1, 8, 32), "batch1": one, "best": best, "energy_zones": ("package-0",), "idle_watts": 10.0,
    }  # fmt: skip
    return CpuMeasurement(**{**given, **changes})


@pytest.mark.parametrize("timesteps", [1, 2, 3, 4, 5, 7, 8, 15, 16, 100])
def test_matched_bits_are_those_of_the_paper(timesteps):
    assert matched_bits(timesteps) == math.ceil(math.log2(timesteps + 1))


def test_analytic_tiers_are_the_estimates_that_they_say():
    tiers = {
        tier.name: tier for tier in analytic_tiers(LAYERS, "the teacher", timesteps=4, weight_bits=6, pixel_bits=7)
    }
    assert list(tiers) == ["int8_dense", "int8_zero_skipping", "bit_matched_dense", "bit_matched_zero_skipping"]
    widths = {
        "int8": BitWidths(weights=8, activations=8, pixels=8),
        "bit_matched": BitWidths(weights=6, activations=3, pixels=7),
    }
    for name, tier in tiers.items():
        bits = widths[name.removesuffix("_dense").removesuffix("_zero_skipping")]
        wanted = estimate_analytic(LAYERS, bits, skip_zeros="skipping" in name)
        assert tier.energy_j == wanted.total
        assert tier.details["parts"]["weights"] == asdict(wanted.weights)
        assert (tier.tier, tier.latency_s, tier.accuracy) == ("analytic", None, None)
        assert tier.details["layers_of"] == "the teacher" and tier.details["node"] == "45 nm"
        assert ("3-bit activations, 6-bit weights" in tier.label) == name.startswith("bit_matched")
        assert any("Yan" in source for source in tier.sources) == name.startswith("bit_matched")
        assert any("Horowitz" in source for source in tier.sources)
    assert tiers["int8_zero_skipping"].details["zero_shares"] == {"conv": 0.5, "fc": 0.75}
    energies = {name: tier.energy_j.nominal for name, tier in tiers.items()}
    assert energies["int8_zero_skipping"] < energies["int8_dense"]
    assert energies["bit_matched_zero_skipping"] < energies["bit_matched_dense"] < energies["int8_dense"]


def test_without_measured_zeros_skipping_has_no_figure():
    layers = (LAYERS[0], AnnLayer(name="fc", macs=1600, weights=1600, inputs=160, outputs=10))
    tiers = analytic_tiers(layers, "the teacher", timesteps=4, weight_bits=8, pixel_bits=8)
    assert [tier.energy_j is None for tier in tiers] == [False, True, False, True]
    assert tiers[1].details["reason"] == "the share of zero activations was not measured: fc"
    assert "reason" not in tiers[0].details


def test_the_same_chip_at_one_timestep():
    energy, latency = Interval(nominal=2, low=1, high=3), Interval(nominal=5, low=4, high=6)
    tier = same_chip_tier(accuracy=0.9, energy=energy, latency=latency, profile="loihi2", details={"note": "made anew"})
    assert (tier.tier, tier.name, tier.accuracy) == ("same-chip", "same_chip_t1", 0.9)
    assert (tier.energy_j, tier.latency_s) == (energy, latency)
    assert tier.label == "estimate: the same network at T = 1 on the same chip (loihi2)"
    assert tier.details == {"profile": "loihi2", "timesteps": 1, "note": "made anew"}


def test_measured_tiers_hold_what_was_measured():
    one, best = measured_tiers(measurement(), accuracy=0.97)
    assert (one.tier, one.name, best.name) == ("measured", "cpu_batch_1", "cpu_best_batch")
    assert one.latency_s == Interval(nominal=3e-4, low=2e-4, high=9e-4)
    # An image waits for the whole of its batch, although the processor spends less on each.
    assert best.latency_s.nominal == pytest.approx(32 * 2e-5)
    assert best.details["seconds_per_inference"] == {"least": 1e-5, "median": 2e-5, "most": 3e-5}
    assert (one.energy_j, best.energy_j) == (
        Interval(nominal=4e-3, low=1e-3, high=4e-3),
        Interval(nominal=5e-4, low=2e-4, high=5e-4),
    )
    assert one.accuracy == best.accuracy == 0.97
    assert one.details["cpu"] == "A CPU" and one.details["threads"] == 1 and best.details["batch"] == 32
    assert "reason" not in one.details
    assert all(tier.label.startswith("measured: ") for tier in (one, best))


def test_no_counter_means_no_joules():
    timed = BatchMeasurement(batch=1, runs=3, seconds_per_inference=Spread(least=1e-4, median=1e-4, most=1e-4))
    silent = measurement(batch1=timed, best=timed, energy_zones=(), idle_watts=None, energy_reason="no RAPL zones")
    for tier in measured_tiers(silent):
        assert tier.energy_j is None and tier.latency_s is not None
        assert tier.details["reason"] == "no RAPL zones"


def test_what_could_not_be_measured_says_why():
    for given, reason in [(None, "not measured"), (not_measured("no ONNX of this teacher"), "no ONNX of this teacher")]:
        for tier in measured_tiers(given, accuracy=0.9):
            assert (tier.energy_j, tier.latency_s, tier.accuracy) == (None, None, None)
            assert tier.details == {"reason": reason}


@pytest.mark.parametrize(
    ("rate", "met"), [(0.1, True), (0.15, None), (0.5, None), (1.38, None), (1.39, False), (None, None)]
)
def test_spikes_per_synapse_beside_the_published_range(rate, met):
    item = judge_break_even(timesteps=4, spikes_per_synapse=rate, spike_rate=0.1, integrates_only=True)[0]
    assert (item.value, item.met) == (rate, met)
    assert "0.15 and 1.38" in item.statement and "Dampfhoffer" in item.source
    assert ("T = 4" in item.ours) == (rate is not None)


@pytest.mark.parametrize(("rate", "met"), [(0.1, None), (0.5, None), (1.39, False)])
def test_what_is_stated_for_if_neurons_is_not_granted_to_leaky_ones(rate, met):
    item = judge_break_even(timesteps=4, spikes_per_synapse=rate, spike_rate=0.1, integrates_only=False)[0]
    assert (item.value, item.met) == (rate, met)
    assert ("stated for IF neurons" in item.reason) == (rate < 0.15)


@pytest.mark.parametrize(
    ("timesteps", "rate", "met"), [(5, 0.05, True), (5, 0.057, False), (5, 0.2, False), (4, 0.01, None), (8, 0.2, None)]
)
def test_the_rate_at_five_timesteps_is_judged_at_five_timesteps_only(timesteps, rate, met):
    item = judge_break_even(timesteps=timesteps, spikes_per_synapse=1.0, spike_rate=rate, integrates_only=True)[1]
    assert (item.value, item.met) == (rate, met)
    assert ("stated for T = 5" in item.reason) == (timesteps != 5)
    assert f"{100 * rate:.3g} %" in item.ours


def test_a_published_ratio_is_quoted_and_not_judged():
    item = judge_break_even(timesteps=5, spikes_per_synapse=0.01, spike_rate=0.01, integrates_only=True)[2]
    assert "6 to 8 times" in item.statement and (item.value, item.met) == (None, None)
