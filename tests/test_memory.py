"""Words of synaptic memory: against what Lava's compiler printed for PilotNet on Loihi 2, and bit by bit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.hardware import load_profile
from stars_deploy.hardware.mapping import map_network
from stars_deploy.hardware.memory import weight_bits, words_of
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection

LOIHI2 = load_profile("loihi2")


def conv(shape, largest=127, bits=8, groups=1):
    weight = np.zeros(shape, int)
    weight.flat[0], weight.flat[-1] = largest, -largest
    return ConvProjection(
        name="p", source="a", target="b", weight=weight, precision=Precision(bits=bits, signed=True), groups=groups
    )


def dense(shape, largest=127):
    weight = np.zeros(shape, int)
    weight.flat[-1] = -largest
    return DenseProjection(name="p", source="a", target="b", weight=weight)


@pytest.mark.parametrize(
    ("largest", "bits"),
    [(0, 1), (1, 2), (2, 3), (3, 4), (4, 4), (5, 5), (8, 5), (9, 6), (16, 6), (17, 7), (32, 7), (33, 8), (64, 8)],
)
def test_weights_take_their_sign_and_a_magnitude_scaled_up(largest, bits):
    assert weight_bits(dense((2, 2), largest)) == bits


def test_no_weight_takes_more_than_its_precision():
    assert weight_bits(dense((2, 2), 127)) == weight_bits(dense((2, 2), 65)) == 8
    assert weight_bits(conv((1, 1, 1, 1), 7, bits=4)) == 4


#: PilotNet's layers, with the largest weight that leaves as many bits as each of its layers needs.
CONVOLUTIONS = [
    ((24, 3, 3, 3), 127, 81),  # 24 x 8 bits: 3 words
    ((36, 24, 3, 3), 32, 864),  # 36 x 7 bits: 4 words
    ((48, 36, 3, 3), 16, 1620),  # 48 x 6 bits: 5 words
    ((64, 48, 3, 3), 8, 2160),  # 64 x 5 bits: 5 words
    ((64, 64, 3, 3), 8, 2880),
]
DENSE = [
    ((100, 2560), 8, 100, 61440),  # 100 x (5 + 10) bits + 8: 24 words for each of 2,560 inputs
    ((100, 2560), 8, 17, 12800),
    ((100, 2560), 8, 9, 7680),  # the compiler: 7,253, for 12 cores of 8 or 9 neurons
    ((50, 100), 16, 50, 1300),
    ((10, 50), 127, 10, 150),
    ((1, 10), 127, 1, 10),
]


@pytest.mark.parametrize(("shape", "largest", "words"), CONVOLUTIONS)
def test_words_of_convolutions_in_the_compilers_table(shape, largest, words):
    assert words_of(conv(shape, largest), shape[0], LOIHI2) == words


@pytest.mark.parametrize(("shape", "largest", "neurons", "words"), DENSE)
def test_words_of_dense_layers_in_the_compilers_log(shape, largest, neurons, words):
    assert words_of(dense(shape, largest), neurons, LOIHI2) == words
    if neurons == 9:
        assert words == pytest.approx(7253, rel=0.2)


def test_the_list_of_an_axon_has_an_index_for_each_synapse_and_a_header():
    # 3 synapses x (8 + 10) bits + 8 = 62 bits: one word for each of 5 inputs; a fourth synapse needs a second one.
    assert words_of(dense((3, 5)), 3, LOIHI2) == 5
    assert words_of(dense((4, 5)), 4, LOIHI2) == 10
    assert words_of(dense((4, 5), largest=1), 4, LOIHI2) == 5  # 4 x (2 + 10) + 8 = 56


def groups_touched(out, groups, tile):
    """Return the most groups that any run of `tile` output channels beginning at a multiple of `tile` meets."""
    width = out // groups
    return max(
        len({channel // width for channel in range(first, min(first + tile, out))}) for first in range(0, out, tile)
    )


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(1, 30))
@settings(deadline=None, max_examples=200)
def test_a_core_keeps_the_kernels_of_all_groups_that_it_meets(groups, width, per_group, tile):
    out = groups * width
    tile = min(tile, out)
    projection = conv((out, per_group, 2, 3), 127, groups=groups)
    kernels = per_group * 2 * 3 * math.ceil(min(tile, width) * 8 / 64)
    words = words_of(projection, tile, LOIHI2)
    assert words % kernels == 0
    # Never less than it needs; at most one group more, where where it begins is not known.
    assert groups_touched(out, groups, tile) <= words // kernels <= min(groups, groups_touched(out, groups, tile) + 1)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 127))
@settings(deadline=None, max_examples=100)
def test_fewer_neurons_never_take_more_words(neurons, inputs, largest):
    projection, kernel = dense((neurons, inputs), largest), conv((neurons, inputs, 1, 1), largest)
    for one in (projection, kernel):
        words = [words_of(one, part, LOIHI2) for part in range(1, neurons + 1)]
        assert words == sorted(words)
        assert words[0] >= inputs


@pytest.fixture(scope="module")
def pilotnet(shared):
    from stars_deploy.targets.netx_reader import read_netx

    return map_network(read_netx(shared / "networks" / "pilotnet_lif.net", 1), LOIHI2)


@pytest.mark.shared
def test_pilotnet_takes_the_cores_of_the_compilers_table(pilotnet):
    assert [layer.cores for layer in pilotnet.layers] == [13, 25, 13, 3, 3, 2, 12, 1, 1, 1]
    assert len(pilotnet.cores) == 74
    assert (pilotnet.chips, pilotnet.problems) == (1, ())
    assert pilotnet.utilisation()["cores"] == (74, 120)
    assert pilotnet.largest.cores == 25


@pytest.mark.shared
def test_pilotnet_takes_the_words_of_the_compilers_table(pilotnet):
    words = [layer.synaptic_words for layer in pilotnet.layers]
    assert words[:6] == [0, 81, 864, 1620, 2160, 2880]
    assert words[7:] == [1300, 150, 10]
    assert words[6] == pytest.approx(7253, rel=0.2)


@pytest.mark.shared
def test_what_the_compiler_tried_for_pilotnets_first_dense_layer(shared):
    from stars_deploy.targets.netx_reader import read_netx

    graph = read_netx(shared / "networks" / "pilotnet_lif.net", 1)
    (dense6,) = [one for one in graph.projections if one.weight.shape == (100, 2560)]
    assert [words_of(dense6, neurons, LOIHI2) for neurons in (100, 17, 9)] == [61440, 12800, 7680]
