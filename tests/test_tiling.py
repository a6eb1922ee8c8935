"""How populations are cut: each neuron on one core, within limits, in strips whose width is a power of two."""

import math

import numpy as np
import pytest
from chips import small_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stars_deploy.hardware.memory import words_of
from stars_deploy.hardware.tiling import boxes, cut, finer
from stars_deploy.quantized import ConvProjection, DenseProjection, Population

FEW = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))


def population(*shape):
    return Population(name="b", shape=shape, bias=np.zeros(shape, int))


def kernel(channels, inputs=1, size=1):
    weight = np.full((channels, inputs, size, size), 100)
    return ConvProjection(name="p", source="a", target="b", weight=weight)


def synapses(neurons, inputs=1, largest=100):
    return DenseProjection(name="p", source="a", target="b", weight=np.full((neurons, inputs), largest))


MAPS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
SHAPES = st.one_of(MAPS, st.tuples(st.integers(1, 60)))
CHIP_LIST = [
    small_chip(neurons, limits__synaptic_words_per_core=words)
    for neurons in (1, 2, 3, 4, 5, 7, 8, 12, 16, 33, 100, 1000)
    for words in (1, 2, 5, 20, 500)
]


def covered(tiling, layer):
    """Return how many parts hold each neuron, and the parts."""
    count, parts = np.zeros(layer.shape, int), list(boxes(tiling, layer))
    for box in parts:
        assert len(box) == len(layer.shape)
        assert all(0 <= first < last <= size for (first, last), size in zip(box, layer.shape, strict=True))
        count[tuple(slice(*span) for span in box)] += 1
    return count, parts


def widest(most, fits):
    """Return the largest power of two of at most `most` that `fits`."""
    return max(1 << bits for bits in range(most.bit_length()) if 1 << bits <= most and fits(1 << bits))


@FEW
@given(SHAPES, st.sampled_from(CHIP_LIST), st.integers(1, 6))
def test_each_neuron_is_on_one_core(shape, profile, inputs):
    layer = population(*shape)
    entering = (kernel(shape[0], inputs) if len(shape) == 3 else synapses(shape[0], inputs),)
    tiling = cut(layer, entering, profile)
    while tiling is not None:
        count, parts = covered(tiling, layer)
        assert (count == 1).all()
        assert len(parts) == tiling.cores == math.prod(tiling.parts)
        assert parts == sorted(parts)  # C order
        tiling = finer(tiling, layer, "axons_in")


@FEW
@given(SHAPES, st.sampled_from(CHIP_LIST), st.integers(1, 6))
def test_limits_are_held_where_they_can_be(shape, profile, inputs):
    layer = population(*shape)
    entering = (kernel(shape[0], inputs) if len(shape) == 3 else synapses(shape[0], inputs),)
    tiling = cut(layer, entering, profile)
    neurons = profile.limits.neurons_per_core.nominal
    words = profile.limits.synaptic_words_per_core.nominal
    for box in boxes(tiling, layer):
        assert math.prod(last - first for first, last in box) <= neurons
        assert words_of(entering[0], box[0][1] - box[0][0], profile) <= words or tiling.tile[0] == 1


@FEW
@given(MAPS, st.sampled_from(CHIP_LIST))
def test_strips_are_the_widest_power_of_two(shape, profile):
    layer, limit = population(*shape), int(profile.limits.neurons_per_core.nominal)
    channels, rows, columns = shape
    if channels * rows <= limit:  # the widest strip of all channels and rows
        assert cut(layer, (), profile).tile == (channels, rows, widest(columns, lambda w: w * rows * channels <= limit))
    elif channels <= limit:  # less than a column: the highest part of one
        assert cut(layer, (), profile).tile == (channels, widest(rows, lambda h: h * channels <= limit), 1)
    else:
        assert cut(layer, (), profile).tile == (widest(channels, lambda c: c <= limit), 1, 1)


@FEW
@given(SHAPES, st.sampled_from(CHIP_LIST))
def test_ever_finer_tilings_end_at_one_neuron(shape, profile):
    layer = population(*shape)
    tiling, rounds = cut(layer, (), profile), 0
    while (again := finer(tiling, layer, "axons_out")) is not None:
        assert again.cores > tiling.cores
        assert all(new <= old for new, old in zip(again.tile, tiling.tile, strict=True))
        assert again.binding == "axons_out"
        tiling, rounds = again, rounds + 1
        assert rounds <= 3 * 64
    assert tiling.cores == layer.size
    assert tiling.tile == (1, 1, 1)


@FEW
@given(st.integers(1, 200), st.sampled_from(CHIP_LIST), st.integers(1, 8))
def test_flat_populations_are_cut_into_equal_parts(neurons, profile, inputs):
    layer = population(neurons)
    tiling = cut(layer, (synapses(neurons, inputs),), profile)
    sizes = [last - first for ((first, last),) in boxes(tiling, layer)]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert tiling.tile == (max(sizes), 1, 1)
    # As many as the overrun says, not one by one: what the compiler did.
    over = max(
        neurons / profile.limits.neurons_per_core.nominal,
        words_of(synapses(neurons, inputs), neurons, profile) / profile.limits.synaptic_words_per_core.nominal,
    )
    assert tiling.cores >= min(math.ceil(over), neurons)
    if neurons > 1:
        assert (tiling.binding == "none") == (over <= 1) == (tiling.cores == 1)


@pytest.mark.parametrize(
    ("shape", "neurons", "tile", "parts", "binding"),
    [
        ((3, 66, 200), 4095, (3, 66, 16), (1, 1, 13), "neurons"),  # PilotNet's input: 198 a column
        ((24, 31, 98), 4095, (24, 31, 4), (1, 1, 25), "neurons"),
        ((36, 14, 47), 4095, (36, 14, 8), (1, 1, 6), "neurons"),
        ((2, 3, 20), 4095, (2, 3, 16), (1, 1, 2), "tile_width"),  # one core had room: the compiler cut 16 and 4
        ((2, 3, 16), 4095, (2, 3, 16), (1, 1, 1), "none"),
        ((4, 9, 5), 20, (4, 4, 1), (1, 3, 5), "neurons"),  # one column is 36: rows in powers of two as well
        ((40, 2, 2), 20, (16, 1, 1), (3, 2, 2), "neurons"),  # and channels
    ],
)
def test_feature_maps_by_hand(shape, neurons, tile, parts, binding):
    tiling = cut(population(*shape), (), small_chip(neurons))
    assert (tiling.tile, tiling.parts, tiling.binding) == (tile, parts, binding)


def test_channels_are_halved_where_a_kernel_overruns_the_memory():
    # 20 channels x 8 bits = 160 bits: 3 words for each of 5 x 9 inputs; 10 channels take 2, 5 take 1.
    layer, entering = population(20, 2, 2), (kernel(20, inputs=5, size=3),)
    for words, channels in ((135, 20), (134, 10), (90, 10), (89, 5), (45, 5), (44, 1)):
        tiling = cut(layer, entering, small_chip(100, limits__synaptic_words_per_core=words))
        assert tiling.tile[0] == channels
        assert tiling.binding == ("none" if channels == 20 else "synaptic_words")


def test_several_projections_share_a_cores_memory():
    layer = population(16, 1, 1)
    one = kernel(16, inputs=4)  # 2 words x 4; with half of the channels 1 x 4
    for count, channels in ((1, 16), (2, 8), (3, 1)):
        profile = small_chip(100, limits__synaptic_words_per_core=8)
        assert cut(layer, (one,) * count, profile).tile[0] == channels


def test_pilotnets_first_dense_layer_is_cut_as_by_the_compiler():
    """61,440 words / 12,000: six parts; 17 neurons still take 12,800: twelve."""
    layer = population(100)
    tiling = cut(layer, (synapses(100, 2560, 8),), small_chip(4095, limits__synaptic_words_per_core=12000))
    assert (tiling.cores, tiling.tile, tiling.binding) == (12, (9, 1, 1), "synaptic_words")
    assert [last - first for ((first, last),) in boxes(tiling, layer)] == [9] * 4 + [8] * 8
