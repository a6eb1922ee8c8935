"""Comparing records: what counts, and what is named first."""

from __future__ import annotations

import numpy as np
import pytest

from stars_deploy.targets.base import Difference, SpikeRecord, choose_classes, compare_records


def record(**changes):
    spikes = {"a": np.zeros((3, 2, 2, 1, 2), bool), "b": np.zeros((3, 2, 4), bool)}
    potential = np.arange(8).reshape(2, 4)
    spikes["b"][1, 0, 2] = True
    for name, place in changes.items():
        if name == "potential":
            potential[place] += 5
        else:
            spikes[name][place] ^= True
    return SpikeRecord(spikes=spikes, potential=potential)


def test_equal_records():
    comparison = compare_records(record(), record())
    assert (comparison.compared_spikes, comparison.mismatches, comparison.first) == (24 + 24, 0, None)


def test_first_difference_is_the_earliest_in_layer_order():
    comparison = compare_records(record(), record(b=(0, 0, 0), a=(2, 1, 1, 0, 1), potential=(0, 0)))
    assert comparison.mismatches == 3
    assert comparison.first == Difference(layer="a", timestep=3, sample=1, neuron=(1, 0, 1), expected=0, got=1)
    assert str(comparison.first) == "layer a, timestep 3, sample 1, neuron (1, 0, 1): expected 0, got 1"


def test_a_missing_spike_is_a_difference():
    comparison = compare_records(record(), record(b=(1, 0, 2)))
    assert comparison.first == Difference(layer="b", timestep=2, sample=0, neuron=(2,), expected=1, got=0)


def test_potentials_are_compared():
    comparison = compare_records(record(), record(potential=(1, 3)))
    assert (comparison.mismatches, comparison.compared_spikes) == (1, 48)
    assert comparison.first == Difference(layer="b", timestep=0, sample=1, neuron=(3,), expected=7, got=12)


@pytest.mark.parametrize(
    ("spikes", "mismatches", "layer"),
    [
        ({"a": record().spikes["a"]}, 24, "b"),
        ({"a": record().spikes["a"][:2], "b": record().spikes["b"]}, 24, "a"),
        ({**record().spikes, "c": np.zeros((3, 2, 5), bool)}, 30, "c"),
    ],
    ids=["missing", "shape", "unexpected"],
)
def test_layers_that_do_not_correspond(spikes, mismatches, layer):
    comparison = compare_records(record(), SpikeRecord(spikes=spikes, potential=record().potential))
    assert comparison.mismatches == mismatches
    assert comparison.first.layer == layer


def test_potentials_of_another_shape():
    other = SpikeRecord(spikes=record().spikes, potential=np.zeros((2, 3), int))
    comparison = compare_records(record(), other)
    assert comparison.mismatches == 8 and comparison.first.layer == "b"


def test_classes_count_spikes_first_then_compare_potentials():
    assert record().classes().tolist() == [2, 3]
    silent = record(b=(1, 0, 2))
    assert silent.classes().tolist() == [3, 3]
    lowest, highest = -(1 << 23) + 1, (1 << 23) - 1
    assert choose_classes(np.array([[0, 1], [1, 1]]), np.array([[highest, lowest], [4, 3]])).tolist() == [1, 0]
