"""Paths between populations: each gets a projection of its own, named, with its bias once; delays go first."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from random_float_graphs import find_float_difference

from stars_deploy.errors import GraphError
from stars_deploy.export.execution import run_float
from stars_deploy.graph import (
    IF,
    LIF,
    Conv2d,
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
from stars_deploy.lowering.chains import MOST_COPIES, chains_of, fresh_name, require_one_end, separate_paths
from stars_deploy.lowering.delays import move_delays
from stars_deploy.lowering.passes import canonicalize, lower

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 2, 4, 4))


def image():
    return Input(name="image", shape=(2, 4, 4))


def drawn(name):
    """A generator that depends on nothing but the name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def conv(name, out=2, size=3, bias=True, inputs=2):
    rng = drawn(name)
    weight = rng.normal(size=(out, inputs, size, size))
    return Conv2d(name=name, weight=weight, bias=rng.normal(size=out) * bias, padding=(size // 2, size // 2))


def dense(name, inputs, outputs, bias=True):
    rng = drawn(name)
    return Linear(name=name, weight=rng.normal(size=(outputs, inputs)), bias=rng.normal(size=outputs) * bias)


def lif(name):
    return LIF(name=name, tau_mem=2e-3, r=2.0)


def made(*parts, edges=(), timesteps=5):
    """A graph of chains, each a tuple of nodes or names; a node is given once and then by its name."""
    nodes, links = [], list(edges)
    for part in parts:
        names = [item if isinstance(item, str) else item.name for item in part]
        nodes.extend(item for item in part if not isinstance(item, str))
        links.extend(itertools.pairwise(names))
    return SpikingGraph(nodes=tuple(nodes), edges=tuple(links), timesteps=timesteps)


def assert_same(graph, other, names, images=IMAGES):
    before, after = run_float(graph, images), run_float(other, images)
    for name in names:
        spikes = before.values[name]
        assert 0 < spikes.mean() < 1
        np.testing.assert_array_equal(after.values[name].reshape(spikes.shape), spikes)
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-9, atol=1e-9)


def residual():
    """A sum that is projected, and a projection that feeds two."""
    return made(
        (image(), conv("first"), lif("a"), conv("shared"), lif("b"), conv("last"), lif("d"), dense("fc", 32, 3),
         Integrator(name="out", r=1e3)),
        ("shared", lif("c"), "last"),
        ("a", "last"),
    )  # fmt: skip


def test_a_projection_of_a_sum_becomes_one_for_each_source_with_the_bias_once():
    graph = residual()
    lowered = lower(graph)
    assert_same(graph, lowered, "abcd")
    assert [node.name for node in lowered.nodes] == [
        "image", "first", "a", "shared", "b", "last", "last.1", "last.2", "d", "fc", "out", "shared.1", "c",
    ]  # fmt: skip
    assert [lowered.sources(name) for name in ("last", "last.1", "last.2")] == [("b",), ("c",), ("a",)]
    biases = [lowered.node(name).bias for name in ("last", "last.1", "last.2")]
    assert np.array_equal(biases[0], graph.node("last").bias) and not np.any(biases[1:])
    # `shared` feeds two populations, each of which needs its bias.
    assert lowered.node("shared.1").bias.all()
    assert lowered.node("shared").weight is lowered.node("shared.1").weight  # no copy of the weights


def test_sums_of_sums_are_one_path_each():
    """Scales that sum before a projection, and a normalisation whose mean is taken once for each projection."""
    first, second = (Scale(name=name, scale=drawn(name).uniform(0.5, 1, (2, 4, 4))) for name in ("s1", "s2"))
    norm = Normalize(name="norm", mean=np.array([0.3, 0.5]), std=np.array([0.5, 2.0]))
    graph = made(
        (image(), norm, first, Scale(name="sum", scale=0.7), dense("fc", 32, 4), lif("a"), dense("fc2", 4, 3),
         Integrator(name="out", r=1e3)),
        ("norm", second, "sum"),
    )  # fmt: skip
    lowered = lower(graph)
    assert_same(graph, lowered, "a")
    assert [lowered.sources(name) for name in ("fc", "fc.1")] == [("image",), ("image",)]


def test_the_mean_of_a_sum_is_subtracted_once():
    norm = Normalize(name="norm", mean=np.array([0.3, 0.5]), std=np.array([0.5, 2.0]))
    graph = made(
        (
            image(),
            conv("first"),
            lif("a"),
            norm,
            dense("fc", 32, 4),
            lif("b"),
            dense("fc2", 4, 3),
            Integrator(name="out"),
        ),
        ("image", "norm"),
    )
    assert_same(graph, lower(graph), "ab")


def test_names_of_copies_are_new():
    taken = made(
        (image(), conv("last"), lif("a"), dense("last.1", 32, 3), Integrator(name="out")), ("last", lif("b"), "last.1"),
    )  # fmt: skip
    names = [node.name for node in separate_paths(taken).nodes]
    assert names == ["image", "last", "a", "last.1", "last.1.1", "out", "last.2", "b"]
    known = {"a", "a.1"}
    assert [fresh_name("a", known), fresh_name("b", known), fresh_name("b", known)] == ["a.2", "b", "b.1"]
    assert known == {"a", "a.1", "a.2", "b", "b.1"}


def test_what_leads_elsewhere_is_refused_by_name():
    chain = (image(), conv("first"), lif("a"), dense("fc", 32, 3), Integrator(name="out"))
    assert require_one_end(made(chain)) is not None
    with pytest.raises(GraphError, match=r"require_one_end, graph: ends in out \(Integrator\), b \(LIF\)"):
        lower(made(chain, ("first", lif("b"))))
    with pytest.raises(GraphError, match=r"graph: ends in out \(Integrator\), unused \(Conv2d\)"):
        lower(made(chain, ("a", conv("unused"))))
    # A loop has no end, but may lead nowhere.
    loop = made(chain, ("first", lif("b"), Delay(name="delay", delay=1e-3), "b"))
    with pytest.raises(
        GraphError, match=r"require_one_end, b: leads nowhere; allowed: a path to out; what .*: remove it"
    ):
        lower(loop)


def test_the_output_may_be_in_a_loop():
    graph = made(
        (image(), dense("in", 32, 5), lif("a"), dense("fc", 5, 5), lif("out"), Delay(name="delay", delay=1e-3),
         dense("back", 5, 5, bias=False), "a"),
    )  # fmt: skip
    lowered = lower(graph)
    assert lowered.output.name == graph.output.name == "out"
    assert_same(graph, lowered, ("a", "out"))


def test_a_loop_of_values_without_a_population_is_refused():
    graph = made(
        (image(), Scale(name="sum", scale=0.5), lif("a"), dense("fc", 32, 3), Integrator(name="out")),
        ("sum", Delay(name="delay", delay=1e-3), "sum"),
    )
    with pytest.raises(
        GraphError, match="separate_paths, edges: a loop without a population through delay, sum; allowed"
    ):
        lower(graph)


def test_paths_are_counted_before_they_are_followed():
    """Each stage of two scales doubles the paths: 2**40 of them are refused at once."""
    nodes, edges, last = [image()], [], ("image",)
    for stage in range(40):
        pair = [Scale(name=f"s{stage}{side}", scale=1.0) for side in "ab"]
        nodes.extend(pair)
        edges.extend((one, other.name) for one in last for other in pair)
        last = tuple(node.name for node in pair)
    nodes.extend([lif("a"), dense("fc", 32, 3), Integrator(name="out")])
    edges.extend([*((one, "a") for one in last), ("a", "fc"), ("fc", "out")])
    graph = SpikingGraph(nodes=tuple(nodes), edges=tuple(edges))
    message = f"edges: {40 * 2**40 + 1} nodes on all paths between populations; allowed: at most {MOST_COPIES}"
    with pytest.raises(GraphError, match=message):
        separate_paths(graph)


def test_long_chains_are_lowered_in_linear_time():
    """A hostile file: thousands of nodes between two populations, delays among them, and thousands of populations."""
    parts = [Scale(name=f"s{n}", scale=1.0) if n % 2 else delays(n % 4 / 2, f"d{n}") for n in range(8000)]
    graph = made((image(), lif("a"), *parts, lif("b"), dense("fc", 32, 3), Integrator(name="out")))
    lowered = lower(graph)
    assert [node.name for node in lowered.nodes] == ["image", "image-a", "a", "d0", "s7999", "b", "fc", "out"]
    assert lowered.delay_steps("d0") == 2000
    many = made((image(), *(IF(name=f"i{n}", r=2.0) for n in range(2000))))
    assert len(lower(many).nodes) == 4001
    assert len(canonicalize(many).nodes) == 4001


def test_chains_are_what_lies_between_populations():
    chains = chains_of(separate_paths(residual()))
    found = [(chain.source, [node.name for node in chain.nodes], chain.target) for chain in chains]
    assert found[:4] == [
        ("image", ["first"], "a"),
        ("a", ["shared"], "b"),
        ("b", ["last"], "d"),
        ("c", ["last.1"], "d"),
    ]
    separated = separate_paths(residual())
    assert find_float_difference(separate_paths(separated), separated) == ""


def delayed(*nodes, last="fc", features=32):
    """Spikes of `a`, through `nodes`, to `b`."""
    return made(
        (image(), conv("first"), lif("a"), *nodes, lif("b"), dense(last, features, 3), Integrator(name="out", r=1e3))
    )


def delays(values, name="delay"):
    return Delay(name=name, delay=np.asarray(values) * 1e-3)


UNEVEN = RNG.integers(0, 3, (2, 4, 4))


@pytest.mark.parametrize(
    ("graph", "steps"),
    [
        (delayed(delays(1), conv("c"), features=32), 1),
        (delayed(conv("c", bias=False), delays(2), features=32), 2),
        (delayed(delays(1), Pool2d(name="p", kernel=(2, 2), stride=(2, 2)), delays(2, "d2"), features=8), 3),
        (delayed(delays(1), Scale(name="s", scale=0.5), delays(UNEVEN, "d2"), dense("c", 32, 4), features=4),
         UNEVEN + 1),
        (delayed(Flatten(name="f"), delays(UNEVEN.reshape(-1)), dense("c", 32, 4), features=4), UNEVEN),
        (delayed(delays(UNEVEN), dense("c", 32, 4, bias=False), delays(1, "d2"), features=4), UNEVEN + 1),
        (delayed(Normalize(name="n", mean=np.zeros(2), std=np.array([0.5, 2])), delays(UNEVEN), dense("c", 32, 4),
                 features=4), UNEVEN),
        (delayed(delays(UNEVEN), conv("c"), features=32), UNEVEN),  # a matrix, as no kernel has such delays
        (delayed(delays(UNEVEN), features=32), UNEVEN),
    ],
)  # fmt: skip
def test_delays_move_to_the_population_that_they_delay(graph, steps):
    lowered = lower(graph)
    found = [node for node in lowered.nodes if isinstance(node, Delay)]
    assert len(found) == 1 and lowered.sources(found[0].name) == ("a",)
    np.testing.assert_array_equal(lowered.delay_steps(found[0].name), steps)
    assert_same(graph, lowered, "ab")


def test_a_delay_of_nothing_goes():
    direct = made(
        (image(), conv("first"), lif("a"), dense("c", 32, 32), Scale(name="s", scale=1.0), IF(name="b", r=300.0),
         dense("fc", 32, 3), Integrator(name="out", r=1e3)),
        (image().name, delays(0), conv("other"), "a"),
    )  # fmt: skip
    lowered = lower(direct)
    assert not any(isinstance(node, Delay) for node in lowered.nodes)
    assert_same(direct, lowered, "ab")
    # Beside an edge that it doubles, it still is a path of its own.
    twice = made((image(), lif("a"), dense("fc", 32, 3), Integrator(name="out", r=1e3)), ("image", delays(0), "a"))
    assert_same(twice, lower(twice), "a", 0.7 * IMAGES)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            delayed(conv("c"), delays(2)),
            "move_delays, delay: delays the bias of c, which would begin late; allowed: no bias in c",
        ),
        (
            delayed(Normalize(name="n", mean=np.ones(2), std=np.ones(2)), delays(1), dense("c", 32, 4), features=4),
            "delay: delays the mean of n",
        ),
        (
            delayed(conv("c", bias=False), delays(UNEVEN)),
            r"delay: differs between elements \(0.0 to 0.002 s\) after c; allowed: one delay for all, or .* before c",
        ),
        (
            delayed(Pool2d(name="p", kernel=(1, 1), stride=(1, 1)), delays(UNEVEN)),
            r"delay: differs between elements \(0.0 to 0.002 s\) after p",
        ),
        (delayed(dense("c", 32, 3, bias=False), delays([0, 1, 0]), features=3), "delay: differs between .* after c"),
    ],
)  # fmt: skip
def test_delays_that_cannot_move_are_refused(graph, message):
    with pytest.raises(GraphError, match=message):
        lower(graph)


def test_a_delay_of_nothing_passes_everything():
    graph = delayed(conv("c"), delays(0))
    assert_same(graph, move_delays(separate_paths(graph)), "ab")
