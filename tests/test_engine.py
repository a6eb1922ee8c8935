"""The fast engine against the reference: every layer, potential and count, however the work is cut up."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from unittest import mock

import numpy as np
import pytest
from graph_features import features, observed_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import Traits, graphs, random_graph

from stars_deploy.engine import FastEngine, run_fast
from stars_deploy.engine.kernels import list_in_vectors, list_one_by_one
from stars_deploy.errors import ConfigError, QuantizationError, StarsDeployError
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.synops import LayerCounts, count_batch, find_active, sum_neurons, wire_up
from stars_deploy.targets.reference import run_reference

#: What shall happen in the graphs below, each in at least this share of them.
OFTEN = 0.01


def names_of(graph):
    return [population.name for population in graph.populations]


def assert_same_counts(expected, got):
    assert list(got) == list(expected)
    for name, counts in expected.items():
        for item in fields(LayerCounts):
            one, other = getattr(counts, item.name), getattr(got[name], item.name)
            assert other.tolist() == one.tolist(), (name, item.name)
            assert np.issubdtype(other.dtype, np.integer), (name, item.name)


def assert_same_run(graph, images, record, run, layers=None):
    """Compare a run with the reference's record: recorded layers, potential, counts of all layers."""
    recorded = list(record.spikes) if layers is None else list(layers)
    assert list(run.spikes) == recorded
    output = record.spikes[graph.output.name]
    np.testing.assert_array_equal(run.output_spikes, output.sum(axis=0).reshape(run.potential.shape))
    for name in recorded:
        assert run.spikes[name].dtype == bool
        assert run.spikes[name].shape == record.spikes[name].shape
        wrong = np.argwhere(run.spikes[name] != record.spikes[name])
        assert not len(wrong), f"{name}: {len(wrong)} spikes differ, first at (T, B, ...) {wrong[0]}"
    assert run.potential.dtype == np.int64
    assert run.potential.shape == record.potential.shape
    assert run.potential.tolist() == record.potential.tolist()
    assert_same_counts(count_batch(graph, wire_up(graph), record, images), run.counts)


def run_in_dirty_memory(engine, images, record):
    """Run where new arrays hold garbage: fresh memory is all zeros, and would hide what was never written."""
    empty = np.empty

    def dirty(*args, **kwargs):
        array = empty(*args, **kwargs)
        array.reshape(-1).view(np.uint8)[:] = 0xA5
        return array

    with mock.patch.object(np, "empty", dirty):
        return engine.run(images, record=record)


def assert_exact(graph, images):
    record = run_reference(graph, images)
    run = run_in_dirty_memory(FastEngine(graph, threads=1), images, names_of(graph))
    assert_same_run(graph, images, record, run)
    return record


# ---------------------------------------------------------------- random graphs


def test_fast_equals_reference_on_random_graphs():
    """On 600 graphs: each feature, wraps, clips, spikes and silence are often among them."""
    seen, examples = Counter(), []

    @settings(max_examples=600, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def check(drawn):
        graph, images = drawn
        record, found = observed_run(graph, images)
        seen.update(found)
        examples.append(graph)
        run = run_in_dirty_memory(FastEngine(graph, threads=1), images, names_of(graph))
        assert_same_run(graph, images, record, run)

    check()
    assert len(examples) >= 500
    everything = features(*random_graph(Traits(), 0)).keys() | {
        "current wraps up",
        "current wraps down",
        "current outside after its wrap",
        "membrane clips above",
        "membrane clips below",
        "at the threshold",
        "decay truncates a negative membrane",
        "decay truncates a negative current",
        "a silent population",
        "a population that fires",
        "a population between 5 % and 95 %",
    }
    rare = {"overlapping loops": 3}  # three loops, drawn at random, of which two must interlock
    missing = {name: seen[name] for name in everything if seen[name] < rare.get(name, OFTEN * len(examples))}
    assert not missing, missing
    assert seen["distinct samples"] > len(examples) / 2
    assert seen["a population between 5 % and 95 %"] > len(examples) / 2


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.sampled_from([1, 2, 3]), st.floats(6, 20), st.integers(0, 2**32 - 1))
def test_no_result_depends_on_threads_memory_or_what_is_recorded(drawn, threads, size, seed):
    """From less memory than a single sample needs to plenty, so that samples and time are sliced in every way."""
    graph, images = drawn
    record, rng = run_reference(graph, images), np.random.default_rng(seed)
    chosen = [name for name in names_of(graph) if rng.random() < 0.5]
    memory, run = int(2**size), None
    while run is None:
        try:
            run = run_in_dirty_memory(FastEngine(graph, threads=threads, memory=memory), images, tuple(chosen))
        except ConfigError as error:
            assert error.where == "memory"
            assert memory < 1 << 24
            memory = int(1.1 * memory) + 1
    assert_same_run(graph, images, record, run, chosen)


def assert_same_neurons(expected, got):
    assert list(got.sent) == list(expected.sent) and list(got.active) == list(expected.active)
    for kind in ("sent", "active"):
        for name, counts in getattr(expected, kind).items():
            assert getattr(got, kind)[name].shape == counts.shape
            assert getattr(got, kind)[name].tolist() == counts.tolist(), (kind, name)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.sampled_from([1, 2, 3]), st.floats(6, 20), st.integers(0, 2**32 - 1))
def test_each_neuron_is_counted_however_the_work_is_cut_up(drawn, threads, size, seed):
    """Sums of every neuron, and which were active of what is recorded, in any budget that suffices."""
    graph, images = drawn
    record, rng = run_reference(graph, images), np.random.default_rng(seed)
    chosen = tuple(name for name in names_of(graph) if rng.random() < 0.5)
    busy = find_active(graph, wire_up(graph), record, images)
    memory, run = int(2**size), None
    while run is None:
        try:
            engine = FastEngine(graph, threads=threads, memory=memory)
            run = engine.run(images, record=chosen, activity=True, per_neuron=True)
        except ConfigError as error:
            assert error.where == "memory"
            assert memory < 1 << 24
            memory = int(1.1 * memory) + 1
    assert_same_run(graph, images, record, run, chosen)
    assert_same_neurons(sum_neurons(graph, record, images, busy), run.sums)
    assert tuple(run.active) == tuple(run.spikes)
    for name, marks in run.active.items():
        assert marks.dtype == bool
        np.testing.assert_array_equal(marks, busy[name], err_msg=name)
    plain = engine.run(images, record=chosen)  # the same engine, counting less
    assert plain.sums is None and plain.active == {}
    assert_same_run(graph, images, record, plain, chosen)
    again = engine.run(images, per_neuron=True)
    assert_same_neurons(run.sums, again.sums)


def least_memory(graph, images, chosen=(), most=1 << 20):
    """Return the smallest budget [bytes] that the engine accepts for one thread, found by bisection."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        try:
            FastEngine(graph, threads=1, memory=middle).run(images, record=tuple(chosen))
        except StarsDeployError:
            low = middle
        else:
            high = middle
    return high


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(batch=st.integers(2, 9)), st.integers(0, 2**32 - 1))
def test_samples_do_not_know_of_each_other(drawn, seed):
    """Another order, a part of the batch, a sample twice: each sample's results stay its own."""
    graph, images = drawn
    axis = 1 if graph.input.over_time(images) else 0
    batch = images.shape[axis]
    engine = FastEngine(graph, threads=1)
    whole = engine.run(images, record=names_of(graph))
    order = np.random.default_rng(seed).permutation(batch)
    for chosen in (order, order[: batch // 2], np.concatenate([order, order[:1]]), order[:1]):
        part = engine.run(np.take(images, chosen, axis), record=names_of(graph))
        assert part.potential.tolist() == whole.potential[chosen].tolist()
        for name, spikes in whole.spikes.items():
            np.testing.assert_array_equal(part.spikes[name], spikes[:, chosen])


# ---------------------------------------------------------------- how arrays lie in memory


def layouts(images):
    """Yield the same images in other types and memory layouts."""
    yield "fortran", np.asfortranarray(images)
    wide = np.zeros((*images.shape[:-1], 2 * images.shape[-1]), images.dtype)
    wide[..., ::2] = images
    yield "every other", wide[..., ::2]
    yield "backward", images[..., ::-1].copy()[..., ::-1]
    first_last = np.moveaxis(np.moveaxis(images, 0, -1).copy(), -1, 0)
    yield "samples last", first_last
    for dtype in (np.uint8, np.int16, np.int32, np.uint32, np.uint64):
        yield dtype.__name__, images.astype(dtype)
    yield "big endian", images.astype(">i4")
    frozen = images.copy()
    frozen.setflags(write=False)
    yield "read only", frozen


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_images_may_lie_in_memory_as_they_like(frames, flat, biased):
    kept = Traits(batch=4, populations=4, residuals=2, loops=1, frames=frames, flat_input=flat, biased_by_image=biased)
    graph, images = random_graph(kept, 11)
    if biased:
        images = np.abs(images) % 256 * (np.abs(images) % 3 > 0)  # so that every type can hold them
        graph = replace(graph, populations=(replace(graph.populations[0], vth=200), *graph.populations[1:]))
    record, engine = run_reference(graph, images), FastEngine(graph, threads=1)
    for name, same in layouts(images):
        assert np.array_equal(same, images), name
        assert_same_run(graph, images, record, engine.run(same, record=names_of(graph)))


def test_an_image_held_for_all_samples_and_steps_needs_no_copy():
    """Arrays of stride 0, as np.broadcast_to makes them."""
    graph, images = random_graph(Traits(batch=3, populations=3, frames=True), 5)
    for axis in (0, 1):
        same = np.broadcast_to(images.take([1], axis), images.shape)
        assert_same_run(
            graph, same, run_reference(graph, same), FastEngine(graph, threads=1).run(same, record=names_of(graph))
        )


def test_images_and_graphs_are_left_as_they_were():
    graph, images = random_graph(Traits(batch=3, populations=3, loops=2, biases="limit"), 5)
    before = images.copy()
    engine = FastEngine(graph, threads=1)
    first, again = engine.run(images, record=names_of(graph)), engine.run(images, record=names_of(graph))
    assert np.array_equal(images, before)
    assert first.potential.tolist() == again.potential.tolist()  # nothing is left of the run before
    assert all(np.array_equal(first.spikes[name], again.spikes[name]) for name in first.spikes)


# ---------------------------------------------------------------- layers of other sizes


def wide_conv(channels, per_group, out_per_group, groups=1, size=(5, 4), payload=(8, False), **options):
    """One convolution and a readout behind it, of given widths."""
    rng = np.random.default_rng(channels)
    shape = (per_group * groups, *size)
    kernel = options.pop("kernel", (3, 2))
    first = ConvProjection(
        name="c",
        source="image",
        target="n",
        weight=rng.integers(-9, 10, (out_per_group * groups, per_group, *kernel)),
        groups=groups,
        **options,
    )
    made = first.output_shape(shape)
    hidden = Population(name="n", shape=made, vth=300, bias=rng.integers(-90, 200, made), decay_v=1000)
    again = ConvProjection(
        name="d", source="n", target="m", weight=rng.integers(-9, 10, (channels, made[0], 2, 2)), padding=(1, 0)
    )
    second = again.output_shape(made)
    middle = Population(name="m", shape=second, vth=60, bias=rng.integers(-20, 40, second), decay_v=500)
    last = DenseProjection(
        name="e", source="m", target="out", weight=rng.integers(-99, 100, (70, int(np.prod(second))))
    )
    precision = Precision(bits=payload[0], signed=payload[1])
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=shape, precision=precision),
        populations=(hidden, middle, Population(name="out", shape=(70,), bias=np.arange(70))),
        projections=(first, again, last),
        timesteps=3,
    )


@pytest.mark.parametrize(
    "graph",
    [
        wide_conv(1, 1, 15),
        wide_conv(16, 3, 16, padding=(1, 1)),
        wide_conv(17, 2, 17, groups=2),
        wide_conv(64, 1, 64, payload=(1, False)),
        wide_conv(65, 2, 65, groups=3, stride=(2, 1)),
        wide_conv(130, 3, 129, kernel=(1, 3), dilation=(1, 2), padding=(0, 2)),
        wide_conv(33, 1, 1, groups=40, payload=(8, True)),
        wide_conv(5, 1, 3, size=(1, 40), kernel=(1, 5), padding=(1, 3), stride=(1, 2)),
    ],
    ids=["15", "16", "17 x 2", "64", "65 x 3", "129", "depthwise 40", "one line"],
)
def test_layers_of_many_widths(graph):
    """Around the numbers of lanes that vector kernels work in."""
    precision = graph.input.precision
    images = np.random.default_rng(1).integers(precision.low, precision.high + 1, (5, *graph.input.shape))
    images[1], images[2] = 0, precision.high
    record = assert_exact(graph, images)
    assert all(0.01 < record.spikes[name].mean() < 0.99 for name in ("n", "m"))


def boundary(weight, image, bits=24, **dynamics):
    """One neuron on a few pixels, in which one sum reaches exactly what a number type can hold."""
    weight = np.asarray(weight).reshape(1, -1)
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=(weight.size,), precision=Precision(bits=bits, signed=True)),
        populations=(
            Population(**{"name": "n", "shape": (1,), "bias": np.array([0]), "vth": 2**16, **dynamics}),
            Population(name="out", shape=(1,), bias=np.array([3])),
        ),
        projections=(
            DenseProjection(
                name="w", source="image", target="n", weight=weight, precision=Precision(bits=32, signed=True)
            ),
            DenseProjection(name="x", source="n", target="out", weight=np.array([[100]])),
        ),
        timesteps=3,
    ), np.asarray(image).reshape(-1, weight.size)


@pytest.mark.parametrize("decays", [{}, {"decay_u": 3, "decay_v": 4095}, {"decay_u": 0}, {"decay_u": np.array([4095])}])
@pytest.mark.parametrize(
    ("weight", "bits"),
    [
        ([2**17], 2),  # 2**23 after the shift
        ([2**17 + 1, 2**17], 2),
        ([2**18 - 1, 2**18], 2),
        ([2**23 - 1], 2),
        ([2**24, 1], 2),  # past what float32 holds exactly
        ([2**24, 1, -(2**24)], 2),  # a small sum of large terms
        ([2**25 + 1, 5, -(2**25)], 3),
        ([2**31 - 1, 2**30, 9, 1 - 2**31, -(2**30)], 2),
        ([2**16 - 1, 1, 3], 9),
        ([2**25 - 1, 2**25, 7], 2),  # past int32 after the shift
        ([2**31 - 1], 2),
        ([2**31 - 1, 2**31 - 1], 8),
        ([127, -128, 3], 24),
        ([2**15 - 1, -(2**15)], 24),
    ],
)
def test_sums_at_the_edges_of_number_types(weight, bits, decays):
    high, low = 2 ** (bits - 1) - 1, -(2 ** (bits - 1))
    rng = np.random.default_rng(7)
    image = [[high] * len(weight), [low] * len(weight), [0] * len(weight), [1] + [0] * (len(weight) - 1)]
    image += [[1] * len(weight), *rng.integers(low, high + 1, (5, len(weight))).tolist()]
    for sign in (1, -1):
        assert_exact(*boundary(sign * np.asarray(weight), image, bits, **decays))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("features", [255, 256, 257, 32767 // 128, 600])
def test_sums_of_many_spikes(sign, features):
    """Sums of spikes around +-2**15, the edge of a 16-bit accumulator."""
    ones = Population(name="n", shape=(features,), bias=np.full(features, 5), vth=0)
    weight = np.full((2, features), sign * 127 - (sign < 0))
    weight[1, ::2] = 0
    graph = QuantizedGraph(
        input=QuantizedInput(name="image", shape=(1,), precision=Precision(bits=8, signed=True)),
        populations=(ones, Population(name="out", shape=(2,), bias=np.zeros(2, int), vth=30000)),
        projections=(
            DenseProjection(name="a", source="image", target="n", weight=np.arange(features)[:, None] % 100),
            DenseProjection(name="b", source="n", target="out", weight=weight),
        ),
        timesteps=3,
    )
    assert_exact(graph, np.array([[1], [-1], [0], [127]]))


# ---------------------------------------------------------------- time


def chain(timesteps, delays, loop=0, **dynamics):
    """A chain of small dense layers, one delay each, with a loop from the last to the first where asked for."""
    rng = np.random.default_rng(timesteps)
    names, projections, populations = ["image"], [], []
    for index, delay in enumerate(delays):
        name = f"p{index}"
        weight = rng.integers(-60, 90, (4, 4))
        projections.append(DenseProjection(name=name, source=names[-1], target=name, weight=weight, delay=delay))
        state = {"decay_u": 700, "decay_v": 900, "vth": 60, "bias": rng.integers(-20, 30, 4), **dynamics}
        populations.append(Population(name=name, shape=(4,), **state))
        names.append(name)
    if loop:
        weight = rng.integers(-90, 60, (4, 4))
        projections.append(DenseProjection(name="back", source=names[-1], target="p0", weight=weight, delay=loop))
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=(4,), precision=Precision(bits=2, signed=True)),
        populations=tuple(populations),
        projections=tuple(projections),
        timesteps=timesteps,
    )


def memories(graph, images):
    """Budgets from the least that works upward, each a little larger."""
    least = least_memory(graph, images, names_of(graph))
    return sorted({int(least * factor) for factor in (1, 1.05, 1.2, 1.5, 2, 3, 5, 8, 20)})


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("loop", [0, 1, 4])
@pytest.mark.parametrize("delays", [(0, 0), (1, 0, 3), (7, 2), (0, 41), (np.arange(16).reshape(4, 4) % 6 + 1, 2)])
def test_slices_of_time_keep_what_is_in_flight(delays, loop, frames):
    """Long runs in little memory: state, delayed spikes and delayed frames cross from slice to slice."""
    graph = chain(40, delays, loop, reset_interval=17, reset_offset=3)
    shape = (40, 3, 4) if frames else (3, 4)
    images = np.random.default_rng(len(delays)).integers(-2, 2, shape)
    record = run_reference(graph, images)
    assert 0.02 < record.spikes[graph.output.name].mean() < 0.98
    for memory in memories(graph, images):
        run = run_in_dirty_memory(FastEngine(graph, threads=1, memory=memory), images, names_of(graph))
        assert_same_run(graph, images, record, run)


def test_a_budget_that_is_too_small_says_so():
    graph, images = random_graph(Traits(batch=3, populations=3, timesteps=6, flat_input=True), 2)
    least = least_memory(graph, images)
    assert FastEngine(graph, threads=1, memory=least).run(images).potential.shape == (3, graph.output.size)
    for memory in (1, least // 2, least - 1):
        with pytest.raises(ConfigError, match="memory") as caught:
            FastEngine(graph, threads=1, memory=memory).run(images)
        assert caught.value.remedy


def test_what_is_needed_does_not_grow_with_the_batch():
    # But for the answer of each sample: potential and spikes of every output neuron.
    graph, images = random_graph(Traits(batch=2, populations=3, timesteps=6, flat_input=True), 2)
    many = np.concatenate([images] * 50)
    assert least_memory(graph, many) <= least_memory(graph, images) + 100 * graph.output.size * 16
    memory = 2 * least_memory(graph, images) + 100 * graph.output.size * 16
    record = run_reference(graph, many)
    run = FastEngine(graph, threads=2, memory=memory).run(many)
    assert_same_run(graph, many, record, run, ())


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("budget", [1.0, 5.0])
@pytest.mark.parametrize("per_neuron", [False, True])
def test_a_run_stays_within_its_budget(budget, threads, frames, per_neuron):
    """Of what NumPy and Python allocate; the images and the network's tables are there before."""
    graph = wide_conv(2, 2, 2, size=(40, 40), kernel=(1, 1)).with_timesteps(8)
    images = np.random.default_rng(0).integers(0, 256, (12, *graph.input.shape))
    if frames:
        images = np.stack([np.roll(images, step, axis=-1) for step in range(8)])
    one = images[:, :1] if frames else images[:1]
    memory = int(threads * budget * least_memory(graph, one)) + 16 * 12 * graph.output.size
    neurons = int(np.prod(graph.input.shape)) + 2 * sum(population.size for population in graph.populations)
    memory += (threads + (threads > 1)) * 8 * graph.timesteps * neurons * per_neuron
    engine = FastEngine(graph, threads=threads, memory=memory)
    engine.run(one)  # compiles
    tracemalloc.start()
    try:
        engine.run(images, per_neuron=per_neuron)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= memory + (64 << 10)  # some objects of Python's own


# ---------------------------------------------------------------- interface


@pytest.fixture(scope="module")
def small():
    return random_graph(Traits(batch=3, populations=3), 4)


def test_nothing_is_recorded_unless_asked_for(small):
    graph, images = small
    record = run_reference(graph, images)
    assert_same_run(graph, images, record, FastEngine(graph).run(images), ())
    assert_same_run(graph, images, record, FastEngine(graph).run(images, record=("p1",)), ("p1",))
    assert_same_run(graph, images, record, FastEngine(graph).run(images, record=names_of(graph)))


def test_run_fast_returns_what_the_reference_returns(small):
    graph, images = small
    expected = run_reference(graph, images)
    for got in (run_fast(graph, images), run_fast(graph, images, threads=2)):
        assert type(got) is type(expected)
        assert list(got.spikes) == list(expected.spikes)
        assert all(np.array_equal(got.spikes[name], expected.spikes[name]) for name in expected.spikes)
        assert got.potential.tolist() == expected.potential.tolist()
        assert got.classes().tolist() == expected.classes().tolist()


def test_one_engine_serves_many_threads(small):
    graph, images = small
    engine = FastEngine(graph, threads=2)
    batches = [np.roll(images, shift, axis=0) // (1 + shift) for shift in range(6)]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda batch: engine.run(batch, record=names_of(graph)), batches))
    for batch, run in zip(batches, runs, strict=True):
        assert_same_run(graph, batch, run_reference(graph, batch), run)


@pytest.mark.parametrize("option", [{"threads": 0}, {"threads": -1}, {"memory": 0}, {"memory": -5}])
def test_refuses_options(small, option):
    with pytest.raises(ConfigError, match=next(iter(option))) as caught:
        FastEngine(small[0], **option)
    assert str(next(iter(option.values()))) in str(caught.value)


def test_refuses_layers_that_are_not_there(small):
    graph, images = small
    for name in ("p9", "image", "p1.weight"):
        with pytest.raises(ConfigError, match=f"{name}.*allowed.*p1.*p3"):
            FastEngine(graph).run(images, record=("p1", name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[0], "image: images of shape"),
        (lambda images: images[None, None], "image: images of shape"),
        (lambda images: images[..., :-1], "image: images of shape"),
        (lambda images: np.stack([images] * 3), "image: 3 frames; allowed: 4, one for each timestep"),
        (lambda images: images.astype(float), "image: images of dtype float64; allowed: integers"),
        (lambda images: images > 0, "image: images of dtype bool"),
        (lambda images: images - 1, "image: values from -1"),
        (lambda images: images + 200, "image: values from .*allowed: 0 to 255"),
    ],
    ids=["no samples", "axes", "shape", "frames", "floats", "bool", "negative", "large"],
)
def test_refuses_images_that_do_not_fit(small, change, message):
    graph, images = small
    images = np.where(np.arange(images.size).reshape(images.shape) == 3, 0, images)  # a zero, so that -1 is outside
    for run in (FastEngine(graph).run, lambda wrong: run_fast(graph, wrong)):
        with pytest.raises(QuantizationError, match=message):
            run(change(images))


def test_an_empty_batch_gives_empty_results(small):
    graph, images = small
    run, expected = FastEngine(graph).run(images[:0], record=names_of(graph)), run_reference(graph, images[:0])
    assert run.potential.shape == expected.potential.shape == (0, graph.output.size)
    assert all(run.spikes[name].shape == expected.spikes[name].shape for name in expected.spikes)
    assert all(not counts.spikes.any() for counts in run.counts.values())


def test_other_timesteps_of_the_same_network(small):
    graph, images = small
    for timesteps in (1, 2, 9):
        assert_exact(graph.with_timesteps(timesteps), images)


def test_a_population_that_only_the_image_biases():
    """No projection at all."""
    source = QuantizedInput(name="image", shape=(2, 2, 2), precision=Precision(bits=16, signed=True), biases="n")
    neurons = Population(name="n", shape=(2, 2, 2), bias=np.zeros((2, 2, 2), int), vth=900, decay_v=77)
    graph = QuantizedGraph(input=source, populations=(neurons,), projections=(), timesteps=5)
    images = np.random.default_rng(0).integers(-(2**11), 2**11, (4, 2, 2, 2))
    images[1, 0] = [[2**15 - 1, -(2**15)], [0, 900]]
    record = assert_exact(graph, images)
    assert 0.1 < record.spikes["n"].mean() < 0.9
    assert_exact(replace(graph, timesteps=4), np.random.default_rng(1).integers(-999, 999, (4, 3, 2, 2, 2)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("width", [1, 3, 5, 16, 20, 40])
@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_both_ways_to_list_spikes_agree(kind, width, groups):
    """Which of them runs depends on the processor."""
    random = np.random.default_rng(width)
    pixels, channels = 7, width * groups
    frame = np.zeros(pixels * channels + 16, kind)
    frame[:-16] = random.integers(0, 2, pixels * channels) * random.integers(1, 100, pixels * channels)
    frame[-16:] = 1  # behind the frame: read in vectors, never listed
    for first in range(0, channels, width):
        expected = np.flatnonzero(frame[:-16].reshape(pixels, channels)[:, first : first + width])
        for listing in (list_in_vectors, list_one_by_one):
            rows, ends = np.zeros(len(frame), np.int32), np.zeros(pixels + 1, np.int64)
            listing(frame, pixels, channels, first, width, rows, ends)
            assert rows[: ends[-1]].tolist() == expected.tolist()
            assert [int((expected < pixel * width).sum()) for pixel in range(pixels + 1)] == ends.tolist()
