"""Networks on chips: what fits, what does not and why, what is in doubt."""

import math
from dataclasses import replace

import numpy as np
import pytest
from chips import chip, small_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import graphs
from slow_cost import cores_of

from stars_deploy.errors import ConfigError
from stars_deploy.hardware import load_profile
from stars_deploy.hardware.mapping import LIMITS, check_mapped, map_network
from stars_deploy.hardware.memory import words_of
from stars_deploy.hardware.placement import Floor
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput


def layered_graph(hidden=(2, 50, 50), weight_bits=8, features=200, image_bits=1, kernel=1, inputs=1):
    """A convolution over an image of the same size, and a dense readout."""
    precision = Precision(bits=weight_bits, signed=True)
    size, largest = int(np.prod(hidden)), (1 << (weight_bits - 1)) - 1
    padding = (kernel // 2, kernel // 2)
    weight = np.full((hidden[0], inputs, kernel, kernel), largest)
    return QuantizedGraph(
        input=QuantizedInput(
            name="input", shape=(inputs, *hidden[1:]), precision=Precision(bits=image_bits, signed=False)
        ),
        populations=(
            Population(name="conv", shape=hidden, vth=5, bias=np.zeros(hidden, int)),
            Population(name="out", shape=(features,), bias=np.zeros(features, int)),
        ),
        projections=(
            ConvProjection(
                name="c", source="input", target="conv", weight=weight, precision=precision, padding=padding
            ),
            DenseProjection(
                name="d", source="conv", target="out", weight=np.full((features, size), largest), precision=precision
            ),
        ),
        timesteps=2,
    )


def roomy(name):
    """Return a built-in profile in which axons are never the limit."""
    return chip(name, {"limits.axons_in_per_core": 1e6, "limits.axons_out_per_core": 1e6})


def test_cores_by_hand():
    # conv: columns of 100 neurons; Loihi 1 takes 8 (2^3 x 100 <= 1,024), Loihi 2 takes 32 (<= 4,095).
    # out: 200 x 18 + 8 bits: 57 words for each of 5,000 inputs, 17.4 (23.75) cores' worth; then 12 (9) neurons a core
    # take 4 (3) words for each: 20,000 > 16,384, so twice as many cores; 15,000 > 12,000 likewise.
    first, second = (map_network(layered_graph(), roomy(name)) for name in ("loihi1", "loihi2"))
    assert [(layer.cores, layer.tile, layer.binding) for layer in first.layers] == [
        (7, (2, 50, 8), "neurons"), (36, (6, 1, 1), "synaptic_words")
    ]  # fmt: skip
    assert [(layer.cores, layer.tile, layer.binding) for layer in second.layers] == [
        (2, (2, 50, 32), "neurons"), (48, (5, 1, 1), "synaptic_words")
    ]  # fmt: skip
    assert [layer.synaptic_words for layer in first.layers] == [1, 5000 * 2]
    assert [layer.neurons for layer in first.layers] == [5000, 200]
    assert second.largest.name == "out"


def test_utilisation_is_of_the_fullest_core():
    mapping = map_network(layered_graph(), roomy("loihi2"))
    # The fullest conv core has 32 columns of 50 x 2; each of its neurons reaches 48 cores.
    assert mapping.utilisation() == {
        "neurons": (3200, 4095),
        "synaptic_words": (10000, 12000),
        "axons_in": (5000, 1_000_000),
        "axons_out": (3200 * 48, 1_000_000),
        "cores": (50, 120),
    }
    # Loihi 1 has 4,096 output axons: columns of 100 neurons that reach 36 cores each fit one at a time.
    tight = map_network(layered_graph(), load_profile("loihi1"))
    assert (tight.layers[0].cores, tight.layers[0].tile, tight.layers[0].binding) == (50, (2, 50, 1), "axons_out")
    assert tight.utilisation()["axons_out"] == (100 * 36, 4096)


def test_narrower_weights_need_fewer_words():
    wide, narrow = (map_network(layered_graph((2, 10, 10), bits), load_profile("loihi1")) for bits in (8, 4))
    assert [mapping.layers[1].cores for mapping in (wide, narrow)] == [1, 1]
    assert [mapping.layers[1].synaptic_words for mapping in (wide, narrow)] == [57 * 200, 44 * 200]


def test_chips_are_whole():
    mapping = map_network(layered_graph((2, 10, 10), features=200), small_chip(15))
    assert [layer.cores for layer in mapping.layers] == [3 * 10, 14]  # 4 rows of a column, and equal parts
    assert mapping.chips == 4
    assert mapping.utilisation()["cores"] == (44, 48)
    assert {core.place.chip for core in mapping.cores} == {0, 1, 2, 3}
    assert mapping.tiles == 22  # two cores each


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    graphs(timesteps=2, batch=1, width=1, images="empty"),
    st.sampled_from([small_chip(neurons) for neurons in (1, 3, 8, 4095)]),
)
def test_any_network_is_mapped_whole_and_always_the_same(drawn, profile):
    graph, _ = drawn
    mapping, again = map_network(graph, profile), map_network(graph, profile)
    assert mapping.cores == again.cores and mapping.layers == again.layers
    assert (mapping.problems, mapping.notes, mapping.tiles) == (again.problems, again.notes, again.tiles)
    home, floor = cores_of(graph, mapping), Floor(profile)
    assert set(home) == {(p.name, neuron) for p in graph.populations for neuron in range(p.size)}
    assert [core.index for core in mapping.cores] == list(range(len(mapping.cores)))
    for core in mapping.cores:
        held = [name for (name, _), index in home.items() if index == core.index]
        assert held == [core.layer] * core.neurons
        assert core.neurons <= profile.limits.neurons_per_core.nominal
        channels = core.box[0][1] - core.box[0][0]
        assert core.synaptic_words == sum(words_of(one, channels, profile) for one in graph.into(core.layer))
        assert core.place == floor.place(core.index)
    assert [layer.name for layer in mapping.layers] == [population.name for population in graph.populations]
    for layer in mapping.layers:
        own = [core for core in mapping.cores if core.layer == layer.name]
        assert layer.cores == len(own)
        assert layer.neurons == sum(core.neurons for core in own)
        for name in ("synaptic_words", "axons_in", "axons_out"):
            assert getattr(layer, name) == max(getattr(core, name) for core in own)
    assert mapping.chips == math.ceil(len(mapping.cores) / 12)
    assert mapping.tiles == len({core.index // 12 * 6 + core.index % 12 // 2 for core in mapping.cores})
    assert mapping.largest.cores == max(layer.cores for layer in mapping.layers)


# ---------------------------------------------------------------- what does not fit


def refusal(graph, profile):
    """Return (layer, limit, got, allowed) of each problem, and the error that names them."""
    mapping = map_network(graph, profile)
    with pytest.raises(ConfigError) as caught:
        check_mapped(mapping)
    assert caught.value.exit_code == 2
    assert caught.value.where == f"--hardware {profile.name}: {mapping.problems[0].layer}"
    assert all(str(problem) in str(caught.value) for problem in mapping.problems)
    assert caught.value.remedy == mapping.problems[0].remedy
    return [(one.layer, one.limit, one.got, one.allowed) for one in mapping.problems], str(caught.value)


def test_what_fits_is_returned():
    mapping = map_network(layered_graph((2, 4, 4), features=3), load_profile("loihi1"))
    assert check_mapped(mapping) is mapping
    assert (mapping.problems, mapping.notes) == ((), ())


def test_a_dense_layer_with_too_many_inputs_for_the_memory_is_named():
    # One neuron: 18 + 8 bits, a word for each of 800 inputs.
    problems, message = refusal(layered_graph((2, 20, 20), features=3), small_chip(limits__synaptic_words_per_core=700))
    assert problems == [("out", "synaptic_words", 800, 700)]
    assert "out: 800 64-bit words of synapses on one core, at most 700" in message
    assert "--bits" in message


def test_a_kernel_too_large_for_the_memory_is_named():
    problems, _ = refusal(
        layered_graph((4, 4, 4), features=2, kernel=3, inputs=2), small_chip(limits__synaptic_words_per_core=17)
    )
    assert problems[0] == ("conv", "synaptic_words", 18, 17)


def test_a_dense_layer_with_too_many_input_axons_is_named_and_not_cut():
    graph = layered_graph((2, 50, 50), features=20)
    problems, message = refusal(graph, load_profile("loihi1"))
    assert problems == [("out", "axons_in", 5000, 4096)]
    assert "out: 5,000 input axons on one core, at most 4,096" in message
    assert "fewer inputs" in message
    cores = map_network(graph, load_profile("loihi1")).layers[1].cores
    assert cores == map_network(graph, chip("loihi1", {"limits.axons_in_per_core": 8192})).layers[1].cores


def test_weights_that_are_too_wide_are_named():
    problems, message = refusal(layered_graph((2, 4, 4), weight_bits=10, features=3), load_profile("loihi1"))
    assert problems == [("conv", "weight_bits", 10, 9), ("out", "weight_bits", 10, 9)]
    assert "conv: 10 bits a weight, at most 9" in message and "--bits" in message


def test_a_window_with_too_many_pixels_is_named():
    """One neuron of a 3 x 3 convolution listens to 9 axons, however finely its population is cut."""
    profile = small_chip(100, limits__axons_in_per_core=8)
    mapping = map_network(replace_dense(layered_graph((1, 4, 4), kernel=3)), profile)
    assert [(one.layer, one.limit, one.got, one.allowed) for one in mapping.problems] == [("conv", "axons_in", 9, 8)]
    assert mapping.layers[0].cores == 16


def replace_dense(graph):
    """Return the graph without its readout."""
    return replace(graph, populations=graph.populations[:1], projections=graph.projections[:1])


# ---------------------------------------------------------------- axons ask for finer cuts


def test_too_many_input_axons_cut_a_feature_map_finer():
    graph = replace_dense(layered_graph((1, 8, 8), kernel=3))
    whole, tight = (map_network(graph, small_chip(64, limits__axons_in_per_core=axons)) for axons in (64, 40))
    assert (whole.layers[0].cores, whole.layers[0].axons_in, whole.layers[0].binding) == (1, 64, "none")
    # Strips of 4 columns see 5 or 6 columns of 8 pixels: 40 at the borders.
    assert (tight.layers[0].cores, tight.layers[0].axons_in, tight.layers[0].binding) == (2, 40, "axons_in")
    assert not tight.problems


def test_too_many_output_axons_cut_the_sender_finer():
    # Three readout neurons take a word for each of 32 inputs: two cores, which all 32 neurons of the sender reach.
    graph, words = layered_graph((2, 4, 4), features=6), {"limits__synaptic_words_per_core": 32}
    spacious = map_network(graph, small_chip(32, limits__axons_out_per_core=64, **words))
    assert [layer.cores for layer in spacious.layers] == [1, 2]
    assert (spacious.layers[0].axons_out, spacious.layers[0].binding) == (64, "none")
    tight = map_network(graph, small_chip(32, limits__axons_out_per_core=63, **words))
    assert [layer.cores for layer in tight.layers] == [2, 2] and not tight.problems
    assert (tight.layers[0].axons_out, tight.layers[0].binding) == (32, "axons_out")


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(graphs(timesteps=2, batch=1, width=1, images="empty"), st.integers(1, 30), st.integers(1, 30))
def test_axon_limits_are_held_or_named(drawn, axons_in, axons_out):
    graph, _ = drawn
    profile = small_chip(20, limits__axons_in_per_core=axons_in, limits__axons_out_per_core=axons_out)
    mapping = map_network(graph, profile)
    named = {(one.layer, one.limit): one.got for one in mapping.problems}
    for limit in LIMITS:
        for layer in mapping.layers:
            most = max(getattr(core, limit) for core in mapping.cores if core.layer == layer.name)
            allowed = getattr(profile.limits, f"{limit}_per_core").nominal
            assert named.get((layer.name, limit)) == (most if most > allowed else None)
            if limit == "axons_out" and most > allowed:
                assert layer.tile == (1, 1, 1)  # as fine as it gets


# ---------------------------------------------------------------- doubts


def test_what_passes_the_low_end_of_a_limit_is_noted():
    graph = layered_graph((1, 70, 70), features=3)
    mapping = map_network(graph, load_profile("loihi2"))
    assert not mapping.problems
    assert mapping.notes == (
        "out uses 4,900 input axons on one core: within the 65,536 assumed, beyond the 4,096 at the low end of that "
        "limit (estimate)",
    )
    assert map_network(layered_graph((1, 60, 60), features=3), load_profile("loihi2")).notes == ()


def test_several_chips_are_noted():
    mapping = map_network(layered_graph((2, 5, 12), features=3), small_chip(10))
    assert mapping.chips == 2
    (note,) = mapping.notes
    assert note.startswith("2 chips: ") and "lower bounds" in note


@pytest.mark.parametrize(
    ("bits", "signed", "noted"), [(1, False, False), (2, False, True), (8, False, True), (2, True, False)]
)
def test_graded_messages_are_noted_where_a_chip_has_none(bits, signed, noted):
    graph = layered_graph((2, 4, 4), features=3)
    graph = replace(graph, input=replace(graph.input, precision=Precision(bits=bits, signed=signed)))
    notes = map_network(graph, load_profile("loihi1")).notes
    assert [("graded messages" in note) for note in notes] == [True] * noted
    assert map_network(graph, load_profile("loihi2")).notes == ()


def test_an_image_that_sets_biases_sends_no_graded_messages():
    graph = QuantizedGraph(
        input=QuantizedInput(name="image", shape=(2,), precision=Precision(bits=16, signed=True), biases="in"),
        populations=(Population(name="in", shape=(2,), bias=np.zeros(2, int), vth=3),),
        projections=(),
        timesteps=2,
    )
    mapping = map_network(graph, load_profile("loihi1"))
    assert (mapping.notes, mapping.routes, mapping.fans) == ((), (), ())
    assert (mapping.cores[0].synaptic_words, mapping.cores[0].axons_in, len(mapping.cores)) == (0, 0, 1)
