"""Scales, pools and flattens become part of the projection beside them, exactly, or are refused."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.errors import GraphError
from stars_deploy.export.execution import apply_node, run_float
from stars_deploy.graph import (
    IF,
    LIF,
    BatchNorm,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Integrator,
    Linear,
    Normalize,
    Pool2d,
    Scale,
    SpikingGraph,
)
from stars_deploy.lowering.composition import LARGEST_COMPOSITION, LARGEST_MATRIX, Affine, append, matrix, prepend
from stars_deploy.lowering.passes import lower

RNG = np.random.default_rng(0)
SHAPE = (2, 6, 5)


def drawn(name):
    """A generator that depends on nothing but the name."""
    return np.random.default_rng(zlib.crc32(f"{name}c".encode()))


def conv(name="conv", shape=(3, 2, 3, 3), bias=True, **options):
    rng = drawn(name)
    return Conv2d(name=name, weight=rng.normal(0, 0.5, shape), bias=rng.normal(0, 0.3, shape[0]) * bias, **options)


def dense(name, inputs, outputs):
    rng = drawn(name)
    return Linear(name=name, weight=rng.normal(size=(outputs, inputs)), bias=rng.normal(size=outputs))


def pool(name="pool", kernel=(2, 2), stride=(2, 2), **options):
    return Pool2d(name=name, kernel=kernel, stride=stride, **options)


def lif(name, **parameters):
    return LIF(name=name, **{"tau_mem": 2e-3, "r": 2.0, "v_threshold": 0.4, **parameters})


def chained(*nodes, shape=SHAPE):
    nodes = (Input(name="image", shape=shape), *nodes)
    names = [node.name for node in nodes]
    return SpikingGraph(nodes=nodes, edges=tuple(itertools.pairwise(names)), timesteps=4)


def assert_same(graph, lowered):
    images = np.random.default_rng(1).random((3, *graph.input.shape))
    before, after = run_float(graph, images), run_float(lowered, images)
    for node in graph.nodes:
        if isinstance(node, (LIF, CubaLIF, IF)):
            spikes = before.values[node.name]
            assert 0 < spikes.mean() < 1
            np.testing.assert_array_equal(after.values[node.name].reshape(spikes.shape), spikes)
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-9, atol=1e-9)


def pairs(highest):
    return st.tuples(st.integers(1, highest), st.integers(1, highest))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_pools_before_and_after_a_convolution_compose(data):
    """Every geometry: as one convolution where that is exact, and otherwise as the matrix that it is."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    groups = data.draw(st.sampled_from([1, 2]))
    node = Conv2d(
        name="conv",
        weight=rng.normal(size=(4, 4 // groups, *data.draw(pairs(3)))),
        bias=rng.normal(size=4),
        stride=data.draw(pairs(2)),
        padding=data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=data.draw(pairs(2)),
        groups=groups,
    )
    kernel, before = data.draw(pairs(3)), data.draw(st.booleans())
    padding = tuple(data.draw(st.integers(0, size // 2)) for size in kernel)
    other = pool(kernel=kernel, stride=data.draw(pairs(3)), padding=padding, average=data.draw(st.booleans()))
    shape = (4, *data.draw(st.tuples(st.integers(2, 8), st.integers(2, 8))))
    try:
        graph = chained(*((other, node) if before else (node, other)), shape=shape)
    except GraphError:  # nothing is left of an image that small
        return
    middle, end = (graph.shapes[made.name] for made in graph.nodes[1:])
    if not before and data.draw(st.booleans()):
        node = Conv2d(**{**vars(node), "bias": rng.normal(size=middle)})
    part = Affine(node=node, entering=middle if before else shape, leaving=end if before else middle)
    joined = prepend(part, other, shape) if before else append(part, other, end)
    values = rng.normal(size=(2, *shape))
    wanted = values
    for step in (other, node) if before else (node, other):
        wanted = apply_node(step, wanted)
    made = apply_node(joined.node, values).reshape(wanted.shape)
    np.testing.assert_allclose(made, wanted, rtol=1e-9, atol=1e-9)
    whole = Affine(node=node, entering=part.entering, leaving=part.leaving)
    inputs = rng.normal(size=(2, *whole.entering))
    flat = apply_node(matrix(whole, ""), inputs)
    np.testing.assert_allclose(flat, apply_node(node, inputs).reshape(2, -1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("window", "inside", "size"),
    [
        ({"kernel": (2, 2), "stride": (2, 2)}, {}, 6),  # no padding to mix with
        ({"kernel": (3, 3), "stride": (1, 1)}, {}, 5),
        ({"kernel": (2, 2), "stride": (2, 2)}, {"padding": (1, 1)}, 6),  # it divides the size
        ({"kernel": (2, 2), "stride": (2, 2), "padding": (1, 1)}, {"padding": (1, 1)}, 6),
        ({"kernel": (2, 2), "stride": (2, 2)}, {"padding": (1, 1)}, None),  # the last row and column are left over
        ({"kernel": (3, 3), "stride": (2, 2)}, {"padding": (1, 1)}, None),  # windows overlap
    ],
)
def test_a_convolution_stays_one_where_that_is_exact(window, inside, size):
    shape = (2, 6, 6) if size else (2, 7, 7)
    graph = finished(lif("a"), pool(**window), conv(**inside), lif("b"), shape=shape)
    lowered = lower(graph)
    assert_same(graph, lowered)
    node = lowered.node("conv")
    assert isinstance(node, Conv2d) == bool(size)
    assert not size or node.weight.shape[2:] == (size, size)


def finished(*nodes, shape=SHAPE):
    """The nodes from the input to population `b`, with a readout behind them."""
    graph = chained(*nodes, shape=shape)
    fc, out = dense("fc", int(np.prod(graph.shapes["b"])), 3), Integrator(name="out", r=1e3)
    return graph.with_nodes((*graph.nodes, fc, out), (*graph.edges, ("b", "fc"), ("fc", "out")))


SPATIAL = RNG.uniform(0.5, 1.5, (3, 4, 3))
CASES = {
    "pool, scale, flatten, linear": (
        (lif("a"), pool(), Scale(name="s", scale=RNG.uniform(0.5, 1, (2, 3, 2))), Flatten(name="f"), dense("c", 12, 4),
         lif("b")), Linear, (4,)),
    "two pools": (
        (lif("a"), pool("p", (2, 2), (1, 1)), pool("q", (2, 1), (2, 1), average=True), conv(shape=(3, 2, 1, 1)),
         lif("b")), Conv2d, (3, 2, 4)),
    "pools alone": (
        (lif("a"), pool("p", (2, 2), (1, 1)), pool("q", (2, 1), (2, 1)), IF(name="b", r=300.0)), Conv2d, (2, 2, 4)),
    "average of a convolution": ((conv(), pool(average=True), lif("b")), Conv2d, (3, 2, 1)),
    "scales of channels": (
        (lif("a"), Scale(name="s", scale=np.broadcast_to([[[0.5]], [[2.0]]], SHAPE)), conv(),
         Scale(name="t", scale=np.broadcast_to(np.arange(1.0, 4).reshape(3, 1, 1), (3, 4, 3))), lif("b")),
        Conv2d, (3, 4, 3)),
    "scale of places before": (
        (lif("a"), Scale(name="s", scale=RNG.uniform(0.5, 1, SHAPE)), conv(), lif("b")), Linear, (36,)),
    "scale of places after": ((lif("a"), conv(), Scale(name="s", scale=SPATIAL), lif("b")), Linear, (36,)),
    "gains of places": ((lif("a"), conv(), lif("b", r=SPATIAL)), Linear, (36,)),
    "leaks of places": ((lif("a"), conv(), lif("b", v_leak=SPATIAL)), Conv2d, (3, 4, 3)),
    "flattened convolution": (
        (lif("a"), conv(), Flatten(name="f"), lif("b", tau_mem=1e-3 * (1 + SPATIAL.reshape(-1)))), Linear, (36,)),
    "flattened, thresholds": (
        (lif("a"), conv(), Flatten(name="f"), lif("b", v_threshold=SPATIAL.reshape(-1))), Conv2d, (3, 4, 3)),
    "flattened, scaled by channel": (
        (conv(), Flatten(name="f"), Scale(name="s", scale=np.repeat([1.0, 2.0, 3.0], 12)), lif("b")),
        Conv2d, (3, 4, 3)),
    "population to population": ((lif("a"), lif("b", r=0.9)), Conv2d, SHAPE),
    "flat population to population": ((lif("a"), Flatten(name="f"), IF(name="b", r=300.0)), Conv2d, SHAPE),
    "scale alone": (
        (lif("a"), Scale(name="s", scale=RNG.uniform(0.5, 1, SHAPE)), IF(name="b", r=500.0)), Linear, (60,)),
    "normalised, pooled": (
        (Normalize(name="n", mean=np.array([0.3, 0.6]), std=np.array([0.5, 0.2])), pool(padding=(1, 1)),
         conv(shape=(3, 2, 2, 2)), lif("b")), Conv2d, (3, 3, 2)),
    "normalised, straight into the population": (
        (Normalize(name="n", mean=np.array([0.3, 0.6]), std=np.array([0.5, 0.2])), lif("b")), Conv2d, SHAPE),
    "normalised and flattened": (
        (Normalize(name="n", mean=np.array([0.3, 0.6]), std=np.array([0.5, 0.2])), Flatten(name="f"), dense("c", 60, 4),
         lif("b")), Linear, (4,)),
    "normalised after the projection": (
        (conv(), Normalize(name="n", mean=np.array([0.3, 0.6, 1.0]), std=np.array([0.5, 0.2, 0.7])), lif("b")),
        Conv2d, (3, 4, 3)),
    "normalised after a dense layer": (
        (dense("c", 60, 3), Normalize(name="n", mean=np.array([0.3, 0.6, 1.0]), std=np.array([0.5, 0.2, 0.7])),
         lif("b")), Linear, (3,)),
    "batch norm, scale and pool": (
        (conv(), BatchNorm(name="n", gamma=RNG.normal(size=3), beta=RNG.normal(size=3), mean=RNG.normal(size=3),
                           var=RNG.uniform(0.5, 1, 3)), Scale(name="s", scale=2.0), pool(), lif("b")),
        Conv2d, (3, 2, 1)),
    "two projections, one of which is a scale": (
        (conv(), Conv2d(name="gain", weight=np.array([0.5, 2, 1]).reshape(3, 1, 1, 1), bias=np.zeros(3), groups=3),
         pool(), lif("b")), Conv2d, (3, 2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_chain_becomes_one_projection(case):
    nodes, kind, shape = CASES[case]
    graph = finished(*nodes)
    lowered = lower(graph)
    assert_same(graph, lowered)
    (name,) = lowered.sources("b")
    assert isinstance(lowered.node(name), kind) and lowered.shapes["b"] == shape
    # The projection is called as what it came from.
    wanted = [node.name for node in nodes if isinstance(node, (Conv2d, Linear))][:1]
    wanted = wanted or [node.name for node in nodes if isinstance(node, (Pool2d, Scale, Normalize))][-1:]
    assert name == (wanted[0] if wanted else f"{nodes[-2].name if len(nodes) > 1 and nodes[-2].name != 'f' else 'a'}-b")


def test_what_enters_or_leaves_a_flat_population_becomes_a_matrix():
    """`a` has a scale that no kernel has: so `to_b`, which convolves it, and `skip`, which enters `b` too, follow."""
    graph = finished(
        conv("to_a", padding=(1, 1)),
        Scale(name="s", scale=RNG.uniform(0.5, 1, (3, 6, 5))),
        lif("a"),
        conv("to_b", (2, 3, 3, 3), padding=(1, 1)),
        lif("b", v_threshold=RNG.uniform(0.3, 0.9, SHAPE)),
    )
    nodes = (*graph.nodes, conv("skip", (2, 2, 1, 1)), Delay(name="late", delay=np.full(SHAPE, 2e-3)))
    graph = graph.with_nodes(nodes, (*graph.edges, ("image", "skip"), ("skip", "b"), ("b", "late"), ("late", "b")))
    lowered = lower(graph)
    assert_same(graph, lowered)
    kinds = {node.name: type(node) for node in lowered.nodes}
    assert {kinds[name] for name in ("to_a", "to_b", "skip", "b-b")} == {Linear}
    assert lowered.shapes["a"] == (90,) and lowered.shapes["b"] == (60,)
    assert lowered.node("late").delay.shape in ((), (60,))


def test_flat_populations_flatten_all_that_follow():
    scale = Scale(name="s", scale=RNG.uniform(0.5, 1, (2, 4, 3)))
    parts = [part for name in "cd" for part in (conv(f"to_{name}", (2, 2, 1, 1)), lif(name, v_threshold=0.1))]
    graph = finished(conv("to_a", (2, 2, 3, 3)), scale, lif("a"), *parts, conv("to_b", (2, 2, 1, 1)), lif("b", r=5.0))
    lowered = lower(graph)
    assert_same(graph, lowered)
    assert {lowered.shapes[name] for name in "acdb"} == {(24,)}


@pytest.mark.parametrize(("kernel", "out", "shape"), [((5, 1), 3, (3, 2, 5)), ((5, 3), 5, (30,))])
def test_a_flat_population_of_two_convolutions_takes_their_shape_or_is_fed_by_matrices(kernel, out, shape):
    graph = finished(conv("wide", (3, 2, 5, 1)), Flatten(name="f1"), lif("b"))
    other = conv("other", (out, 2, *kernel))
    edges = (*graph.edges, ("image", "other"), ("other", "f2"), ("f2", "b"))
    graph = graph.with_nodes((*graph.nodes, other, Flatten(name="f2")), edges)
    lowered = lower(graph)
    assert_same(graph, lowered)
    assert lowered.shapes["b"] == shape
    assert {type(lowered.node(name)) for name in ("wide", "other")} == {Linear if shape == (30,) else Conv2d}


LARGE = (4, 40, 40)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            lambda: finished(conv("one"), conv("two", (2, 3, 1, 1)), lif("b")),
            "join_projections, two: follows one without a population between; allowed: a population between",
        ),
        (lambda: finished(conv("one"), conv("gain", (3, 1, 1, 1), groups=3), lif("b")), "gain: follows one"),
        (
            lambda: finished(conv("one"), conv("gain", (3, 1, 1, 1), groups=3, bias=False, padding=(1, 1)), lif("b")),
            "gain: follows one",
        ),
        (
            lambda: finished(conv("one"), conv("gain", (3, 1, 1, 1), groups=3, bias=False, stride=(2, 1)), lif("b")),
            "gain: follows one",
        ),
        (lambda: finished(conv("one"), pool(), Flatten(name="f"), dense("two", 6, 4), lif("b")), "two: follows one"),
        (lambda: finished(dense("one", 60, 4), dense("two", 4, 4), lif("b")), "two: follows one"),
        (
            lambda: finished(lif("a"), Scale(name="s", scale=RNG.random(LARGE)), conv("c", (4, 4, 1, 1)), lif("b"),
                             shape=LARGE),
            "c: would need 40960000 weights: s before it scales each place differently; allowed: at most 4194304",
        ),
        (
            lambda: finished(lif("a"), conv("c", (4, 4, 1, 1)), Scale(name="s", scale=RNG.random(LARGE)), lif("b"),
                             shape=LARGE),
            "c: would need 40960000 weights: s after it scales each place differently",
        ),
        (
            lambda: finished(lif("a"), pool(), conv("c", (4, 4, 3, 3), padding=(1, 1)), lif("b"), shape=(4, 65, 64)),
            "c: would need 16777216 weights: pool before it sees its padding together with values",
        ),
        (
            lambda: finished(lif("a"), conv("c", (4, 4, 1, 1)), pool(padding=(1, 1)), lif("b"), shape=LARGE),
            "c: would need 40960000 weights: pool after it pads what it makes",
        ),
        (
            lambda: finished(lif("a"), Delay(name="d", delay=1e-3 * RNG.integers(1, 3, LARGE)), conv("c", (4, 4, 1, 1)),
                             lif("b"), shape=LARGE),
            "c: would need 40960000 weights: d delays elements differently",
        ),
        (
            lambda: finished(dense("c", 2, 2049), lif("a"), IF(name="b"), shape=(2,)),
            "a-b: would need 4198401 weights: it leads each element to itself",
        ),
        (
            lambda: finished(conv("c"), BatchNorm(name="n", gamma=np.ones(3), beta=np.ones(3), mean=np.ones(3),
                                                  var=np.ones(3)), pool(),
                             BatchNorm(name="m", gamma=np.ones(3), beta=np.ones(3), mean=np.ones(3), var=np.ones(3)),
                             lif("b")),
            "fold_batch_norm, m: follows pool",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused(graph, message):
    with pytest.raises(GraphError, match=message):
        lower(graph())


def test_compositions_are_limited_before_they_are_made():
    """Windows of 2**16 places in front of a few weights would be 2**26 of them."""
    graph = finished(
        pool(kernel=(256, 256), stride=(1, 1)), conv("c", (32, 32, 1, 1)), IF(name="b"), shape=(32, 257, 257)
    )
    with pytest.raises(
        GraphError, match=f"c: would need {1 << 26} weights: with pool before it; .* {LARGEST_COMPOSITION}"
    ):
        lower(graph)
    graph = finished(
        conv("c", (32, 32, 1, 1)), pool(kernel=(256, 256), stride=(1, 1)), IF(name="b"), shape=(32, 257, 257)
    )
    with pytest.raises(GraphError, match=f"c: would need {1 << 26} weights: with pool after it"):
        lower(graph)
    graph = finished(pool(kernel=(64, 64), stride=(64, 64)), dense("c", 1, 1 << 12), IF(name="b"), shape=(1, 127, 127))
    with pytest.raises(GraphError, match=f"c: would need {(1 << 12) * 127**2} weights: with pool"):
        lower(graph)
    assert LARGEST_MATRIX == 1 << 22


def test_parts_are_scales_pools_normalisations_and_flattens():
    part = Affine(node=dense("c", 4, 4), entering=(4,), leaving=(4,))
    for join in (prepend, append):
        with pytest.raises(GraphError, match="d: Delay; allowed: Flatten, Scale, Normalize or Pool2d"):
            join(part, Delay(name="d", delay=1e-3), (4,))
    with pytest.raises(GraphError, match="c: a Linear; allowed: a Conv2d"):
        assert part.convolved
