"""The interval proof: never exceeded, reached where it can be, and refusing what really wraps or clips."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import random_graphs
from graph_features import observed_run
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.bounds import bound_layer, bound_population, prove_bounds, value_range
from stars_deploy.errors import QuantizationError
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
)
from stars_deploy.targets.reference import project, run_reference

LIMIT = 2**23
BITS = 4


def truncated(state, decay):
    """Toward zero, by another route than the product code."""
    return np.trunc(state * (4096 - decay) / 4096).astype(np.int64)


def extremes(graph, images):
    """Smallest and largest current and membrane (before its reset) of each population, on unlimited integers."""
    frames = images if graph.input.over_time(images) else np.stack([images] * graph.timesteps)
    shapes = {p.name: (frames.shape[1], *p.shape) for p in graph.populations}
    u, v = ({name: np.zeros(shape, np.int64) for name, shape in shapes.items()} for _ in range(2))
    emitted = {graph.input.name: list(frames), **{name: [] for name in shapes}}
    found = {name: [0, 0, 0, 0] for name in shapes}
    for step in range(graph.timesteps):
        for p in graph.populations:
            if p.reset_interval and (step + 1) % p.reset_interval == p.reset_offset % p.reset_interval:
                u[p.name], v[p.name] = 0 * u[p.name], 0 * v[p.name]
            activation = np.zeros(shapes[p.name], np.int64)
            for projection in graph.into(p.name):
                for delay, synapses in projection.by_delay():
                    if step >= delay:
                        activation += project(synapses, emitted[projection.source][step - delay])
            bias = p.bias + (frames[step] if graph.input.biases == p.name else 0)
            u[p.name] = truncated(u[p.name], p.decay_u) + 64 * activation
            v[p.name] = truncated(v[p.name], p.decay_v) + u[p.name] + 64 * bias
            low_u, high_u, low_v, high_v = found[p.name]
            found[p.name] = [min(low_u, u[p.name].min()), max(high_u, u[p.name].max()),
                             min(low_v, v[p.name].min()), max(high_v, v[p.name].max())]  # fmt: skip
            # The highest threshold is the limit itself, which no clipped membrane exceeds.
            spikes = (v[p.name] > 64 * p.vth) & (64 * p.vth < LIMIT)
            v[p.name] = np.where(spikes, 0, v[p.name])
            emitted[p.name].append(spikes.astype(np.int64))
    return found


decays = st.sampled_from([0, 1, 700, 2048, 4095, 4096])


@st.composite
def graphs(draw):
    """Two convolutions into one population (one of them late), a loop with a delay, and a readout or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (2, 3, 4)

    def population(name, shape, never=False):
        largest = draw(st.sampled_from([5, 200, 8000]))
        return Population(
            name=name,
            shape=shape,
            decay_u=draw(decays),
            decay_v=draw(decays),
            vth=VTH_NEVER if never else draw(st.sampled_from([0, 3, 50, 900])),
            bias=rng.integers(-largest, largest + 1, shape),
        )

    def conv(name, source, delay):
        weight = rng.integers(-30, 31, (2, 2, 3, 3)) + draw(st.sampled_from([-25, 0, 25]))
        padding = {"padding": (1, 1), "delay": delay}
        return ConvProjection(name=name, source=source, target="sum", weight=weight, **padding)

    hidden = population("hidden", shape, never=draw(st.booleans()))
    first = ConvProjection(name="first", source="image", target="hidden", padding=(0, 1),
                           weight=rng.integers(-30, 31, (2, 2, 1, 3)))  # fmt: skip
    loop = DenseProjection(name="loop", source="out", target="out", weight=rng.integers(-90, 91, (3, 3)), delay=1)
    last = DenseProjection(name="last", source="sum", target="out", weight=rng.integers(-90, 91, (3, 24)))
    populations = (hidden, population("sum", shape), population("out", (3,), never=draw(st.booleans())))
    projections = (first, conv("late", "image", draw(st.integers(0, 3))), conv("next", "hidden", 0), last, loop)
    incoming = QuantizedInput(name="image", shape=shape, precision=Precision(bits=BITS, signed=False))
    return QuantizedGraph(
        input=incoming, populations=populations, projections=projections, timesteps=draw(st.integers(1, 6))
    )


def assert_within(graph, images):
    for name, (u_low, u_high, v_low, v_high) in extremes(graph, images).items():
        bounds = bound_population(graph, graph.population(name))
        if bounds.utilization > 1 and np.max(graph.population(name).vth) == VTH_NEVER:
            continue  # beyond the limit a membrane that never fires is clipped at its threshold, which here it is not
        assert bounds.u_low <= u_low
        assert u_high <= bounds.u_high
        assert bounds.v_low <= v_low
        assert v_high <= bounds.v_high


@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(0, 2**32 - 1))
def test_no_state_leaves_its_interval(graph, seed):
    rng = np.random.default_rng(seed)
    high = 2**BITS - 1
    images = np.concatenate([rng.integers(0, high + 1, (4, 2, 3, 4)), high * rng.integers(0, 2, (12, 2, 3, 4)),
                             np.full((1, 2, 3, 4), high), np.zeros((1, 2, 3, 4), np.int64)])  # fmt: skip
    assert_within(graph, images)


NARROW = st.sampled_from([(1, False), (4, False), (8, False), (8, True)])  # so that unlimited sums fit in 53 bits


@settings(max_examples=200, deadline=None)
@given(random_graphs.graphs(payload=NARROW, timesteps=st.integers(1, 12), width=1))
def test_no_state_of_any_graph_leaves_its_interval(drawn):
    """Resets, decays and delays of each neuron and synapse, loops, signed images, images that are biases."""
    assert_within(*drawn)


def test_where_the_proof_holds_nothing_wraps_or_clips():
    """And where it does not, currents really wrap and membranes really clip, in both directions."""
    overruns = {"current wraps up", "current wraps down", "membrane clips above", "membrane clips below"}
    proven, really = Counter(), Counter()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(random_graphs.graphs())
    def check(drawn):
        graph, images = drawn
        try:
            prove_bounds(graph)
        except QuantizationError:
            proven["no"] += 1
            really.update(overruns & observed_run(graph, images)[1].keys())
        else:
            proven["yes"] += 1
            assert not overruns & observed_run(graph, images)[1].keys()

    check()
    assert min(proven["yes"], proven["no"]) >= 60, proven
    assert all(really[event] >= 20 for event in overruns), really


def single(weight, bits=4, timesteps=5, **dynamics):
    """A dense readout of `weight` (out, in) on an image of one row."""
    weight = np.asarray(weight)
    dynamics.setdefault("bias", np.zeros(len(weight), np.int64))
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=(1, 1, weight.shape[1]), precision=Precision(bits=bits, signed=False)),
        populations=(Population(name="out", shape=(len(weight),), **dynamics),),
        projections=(DenseProjection(name="w", source="image", target="out", weight=weight),),
        timesteps=timesteps,
    )


@pytest.mark.parametrize("decay_u", [0, 1000, 4096])
@pytest.mark.parametrize("decay_v", [0, 300, 4096])
@pytest.mark.parametrize("bias", [-37, 0, 41])
def test_bounds_of_one_layer_are_reached_by_the_image_that_its_signs_ask_for(decay_u, decay_v, bias):
    weight = np.random.default_rng(1).integers(-90, 91, (3, 20))
    graph = single(weight, decay_u=decay_u, decay_v=decay_v, bias=np.full(3, bias))
    images = np.concatenate([15 * (weight > 0), 15 * (weight < 0)]).reshape(-1, 1, 1, 20)
    bounds = prove_bounds(graph)["out"]
    assert extremes(graph, images)["out"] == [bounds.u_low, bounds.u_high, bounds.v_low, bounds.v_high]
    assert bounds.utilization == max(-bounds.u_low, bounds.u_high, -bounds.v_low, bounds.v_high) / (LIMIT - 1)


def test_bounds_of_a_firing_layer_are_reached():
    # Just below its threshold after one step, a neuron takes one more full step: then it fires.
    graph = single([[10]], bits=1, timesteps=4, decay_u=4096, vth=10)
    bounds = prove_bounds(graph)["out"]
    assert (bounds.v_low, bounds.v_high) == (0, 20 * 64)
    assert extremes(graph, np.ones((1, 1, 1, 1), np.int64))["out"][3] == 20 * 64
    # With timesteps to spare the threshold keeps the bound where it is.
    assert prove_bounds(graph.with_timesteps(400))["out"] == bounds


def test_a_reset_may_raise_or_lower_what_follows():
    # Only the first input: 10 stays at the threshold, then 20. Both: 13 fires at once. The largest sum is neither.
    graph = single([[10, 3]], bits=1, timesteps=2, decay_u=4096, vth=10)
    images = np.array([[1, 0], [1, 1]]).reshape(2, 1, 1, 2)
    assert extremes(graph, images)["out"][3] == 20 * 64
    assert prove_bounds(graph)["out"].v_high == (10 + 13) * 64
    # Spikes take away what the bias gathers while the current falls: 4, 3, 2, 1 fire, then 0, -1, -3, -6.
    falling = single([[-1]], bits=1, timesteps=8, decay_u=0, vth=0, bias=np.array([5]))
    assert extremes(falling, np.ones((1, 1, 1, 1), np.int64))["out"][2] == -6 * 64
    assert prove_bounds(falling)["out"].v_low == -6 * 64


def test_a_source_that_never_fires_adds_nothing():
    graph = single([[5, -5]], vth=VTH_NEVER)
    silent = replace(
        graph,
        populations=(*graph.populations, Population(name="after", shape=(1,), bias=np.array([3]), decay_v=4096)),
        projections=(*graph.projections, DenseProjection(name="x", source="out", target="after",
                                                         weight=np.array([[100]]))),
    )  # fmt: skip
    assert prove_bounds(silent)["after"].v_high == 3 * 64
    firing = replace(silent, populations=(replace(silent.populations[0], vth=1), silent.populations[1]))
    assert prove_bounds(firing)["after"].v_high == 103 * 64


def test_a_current_that_would_wrap_is_refused_and_really_wraps():
    # 4 * 255 * 127 = 129,540 steps a timestep fit in 2**17 = 131,072; 5 * 255 * 127 do not.
    fits, wraps = single([[127] * 4], bits=8, timesteps=1), single([[127] * 5], bits=8, timesteps=1)
    assert prove_bounds(fits)["out"].utilization <= 1
    assert run_reference(fits, np.full((2, 1, 1, 4), 255)).potential.tolist() == [[64 * 129540]] * 2
    with pytest.raises(QuantizationError, match=r"out: accumulates up to 1\.24 times the 24-bit limit in 1 timesteps"):
        prove_bounds(wraps)
    assert run_reference(wraps, np.full((1, 1, 1, 5), 255)).potential[0, 0] == 64 * 161925 - 2 * LIMIT < 0


def test_a_membrane_that_would_clip_is_refused_and_really_clips():
    for bias in (4095, -4096):
        graph = single([[1]], timesteps=32, bias=np.array([bias]), decay_u=4096)
        # 32 * (4095 + 15) and 32 * -4096 = -2**17: one too many each.
        with pytest.raises(QuantizationError, match="out: accumulates"):
            prove_bounds(graph)
        image = np.full((1, 1, 1, 1), 15 if bias > 0 else 0)
        assert abs(run_reference(graph, image).potential[0, 0]) == LIMIT - 1
        fewer = graph.with_timesteps(31)
        assert prove_bounds(fewer)["out"].utilization <= 1
        assert run_reference(fewer, image).potential[0, 0] == 31 * 64 * (bias + int(image[0, 0, 0, 0]))


def test_bounds_of_decays_of_each_neuron():
    # Three timesteps of 10 each: kept whole, halved, forgotten.
    graph = single([[10], [10], [10]], bits=1, timesteps=3, decay_u=4096, decay_v=np.array([0, 2048, 4096]))
    for neurons, largest in (([0, 1, 2], 30), ([1, 2], 17.5), ([2], 10)):
        kept = replace(
            graph,
            populations=(
                replace(
                    graph.output,
                    shape=(len(neurons),),
                    bias=np.zeros(len(neurons), int),
                    decay_v=np.array([0, 2048, 4096])[neurons],
                ),
            ),
            projections=(replace(graph.projections[0], weight=np.full((len(neurons), 1), 10)),),
        )
        assert prove_bounds(kept)["out"].v_high == 64 * largest


def test_bounds_of_a_signed_input_and_of_an_image_that_is_a_bias():
    signed = replace(single([[3, -5]], timesteps=1), input=QuantizedInput(
        name="image", shape=(1, 1, 2), precision=Precision(bits=8, signed=True)))  # fmt: skip
    bounds = prove_bounds(signed)["out"]
    assert (bounds.u_low, bounds.u_high) == (64 * (-128 * 3 - 127 * 5), 64 * (127 * 3 + 128 * 5))
    reached = extremes(signed, np.array([[-128, 127], [127, -128]]).reshape(2, 1, 1, 2))["out"]
    assert reached == [bounds.u_low, bounds.u_high, bounds.v_low, bounds.v_high]
    source = QuantizedInput(name="image", shape=(2,), precision=Precision(bits=16, signed=True), biases="n")
    neurons = Population(name="n", shape=(2,), bias=np.zeros(2, int))
    biased = QuantizedGraph(input=source, populations=(neurons,), projections=(), timesteps=3)
    bounds = prove_bounds(biased)["n"]
    assert (bounds.u_low, bounds.u_high) == (0, 0)
    assert (bounds.v_low, bounds.v_high) == (-3 * 64 * 2**15, 3 * 64 * (2**15 - 1))
    image = np.array([[-(2**15), 2**15 - 1], [0, 1]])
    assert extremes(biased, image)["n"] == [0, 0, bounds.v_low, bounds.v_high]
    # A fifth timestep could pass 2**23, and does.
    with pytest.raises(QuantizationError, match=r"n: accumulates up to 1\.25 times"):
        prove_bounds(biased.with_timesteps(5))
    assert run_reference(biased.with_timesteps(5), image).potential[0].tolist() == [1 - LIMIT, LIMIT - 1]


@settings(max_examples=60, deadline=None)
@given(random_graphs.graphs())
def test_a_layer_is_bound_by_what_enters_it_alone(drawn):
    graph = drawn[0]
    for population in graph.populations:
        if graph.input.biases == population.name:
            continue
        entering = [(item, value_range(graph, item.source)) for item in graph.into(population.name)]
        assert bound_layer(population, entering, graph.timesteps) == bound_population(graph, population)
    # Sources that send more, less or nothing, whatever they are called.
    weight = np.array([[3, -5]])
    synapses = DenseProjection(name="w", source="x", target="n", weight=weight)
    neuron = Population(name="n", shape=(1,), bias=np.array([2]))
    for (low, high), reached in (((0, 1), (-5, 3)), ((-2, 4), (-26, 22)), ((0, 0), (0, 0))):
        bounds = bound_layer(neuron, [(synapses, (low, high)), (synapses, (0, 0))], 1)
        assert (bounds.u_low, bounds.u_high) == (64 * reached[0], 64 * reached[1])
        assert (bounds.v_low, bounds.v_high) == (min(0, 64 * (reached[0] + 2)), max(0, 64 * (reached[1] + 2)))


def test_huge_weights_are_refused_instead_of_overflowing_the_proof():
    weight = np.full((1, 4), 2**31 - 1)
    graph = single([[1, 1, 1, 1]], bits=8, timesteps=300, decay_u=0)
    projection = replace(graph.projections[0], weight=weight, precision=Precision(bits=32, signed=True))
    for sign in (1, -1):
        huge = replace(graph, projections=(replace(projection, weight=sign * weight),))
        with pytest.raises(QuantizationError, match="out: accumulates"):
            prove_bounds(huge)
