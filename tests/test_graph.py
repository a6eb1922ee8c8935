"""The float graph: named nodes and edges with a time grid, checked when made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stars_deploy.errors import GraphError
from stars_deploy.graph import (
    LI,
    LIF,
    BatchNorm,
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
    convolved_size,
)


def conv(name="conv", out=3, **fields):
    return Conv2d(**{"name": name, "weight": np.ones((out, 2, 3, 3)), "bias": np.zeros(out), **fields})


def linear(name="fc", inputs=12, outputs=5):
    return Linear(name=name, weight=np.ones((outputs, inputs)), bias=np.zeros(outputs))


def pool(**fields):
    return Pool2d(**{"name": "pool", "kernel": (2, 2), "stride": (2, 1), **fields})


def delay(seconds, name="delay"):
    return Delay(name=name, delay=seconds)


SOURCE = Input(name="in", shape=(2, 4, 4))


def chain(*nodes, **fields):
    nodes = (SOURCE, *nodes)
    names = [node.name for node in nodes]
    return SpikingGraph(nodes=nodes, edges=tuple(itertools.pairwise(names)), **fields)


def test_shapes_follow_the_nodes():
    norm = Normalize(name="norm", mean=np.zeros(2), std=np.ones(2))
    batch = BatchNorm(name="bn", gamma=np.ones(3), beta=np.zeros(3), mean=np.zeros(3), var=np.ones(3))
    graph = chain(norm, conv(), batch, LIF(name="lif", tau_mem=1e-3), linear(), Integrator(name="out"))
    assert dict(graph.shapes) == {
        "in": (2, 4, 4),
        "norm": (2, 4, 4),
        "conv": (3, 2, 2),
        "bn": (3, 2, 2),
        "lif": (3, 2, 2),
        "fc": (5,),
        "out": (5,),
    }
    assert graph.input is SOURCE
    assert graph.sources("bn") == ("conv",) and graph.targets("bn") == ("lif",)
    assert graph.node("fc").name == "fc"
    with pytest.raises(TypeError):
        graph.shapes["in"] = (1,)
    with pytest.raises(GraphError, match="node: nothing"):
        graph.node("nothing")


def test_order_puts_sources_first_and_residual_sums_are_allowed():
    one, two, neurons = linear("one", 32, 4), linear("two", 32, 4), Integrator(name="sum")
    nodes = (neurons, two, one, SOURCE)
    edges = (("in", "one"), ("in", "two"), ("one", "sum"), ("two", "sum"))
    graph = SpikingGraph(nodes=nodes, edges=edges)
    assert [node.name for node in graph.ordered()] == ["in", "two", "one", "sum"]
    assert graph.sources("sum") == ("one", "two")
    smaller = graph.with_nodes((neurons, one, SOURCE), (("in", "one"), ("one", "sum")))
    assert smaller.dt == graph.dt and len(smaller.nodes) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chain(conv(), conv()), "unique names"),
        (lambda: SpikingGraph(nodes=(SOURCE,), edges=(("in", "x"),)), r"unknown nodes \['x'\]"),
        (lambda: chain(conv(), dt=0.0), "dt 0.0 s"),
        (lambda: chain(conv(), timesteps=0), "0 timesteps"),
        (lambda: SpikingGraph(nodes=(conv(),), edges=()), "no single Input"),
        (lambda: chain(Input(name="second", shape=(1, 1, 1))), "no single Input"),
        (lambda: SpikingGraph(nodes=(SOURCE, conv()), edges=()), "conv: is not fed by the input"),
        (
            lambda: SpikingGraph(nodes=(SOURCE, conv()), edges=(("in", "conv"), ("in", "conv"))),
            "edges: in -> conv twice; allowed: each edge once",
        ),
        (
            lambda: SpikingGraph(nodes=(SOURCE, delay(1e-3)), edges=(("in", "delay"), ("delay", "in"))),
            r"in: is fed by \('delay',\)",
        ),
        (lambda: chain(conv(), dt=float("inf")), "dt inf s"),
        (
            lambda: SpikingGraph(
                nodes=(SOURCE, linear("a", 32, 2), linear("b", 32, 3), Integrator(name="n")),
                edges=(("in", "a"), ("in", "b"), ("a", "n"), ("b", "n")),
            ),
            r"n: inputs of shapes \[\(2,\), \(3,\)\]",
        ),
        (
            lambda: SpikingGraph(nodes=(SOURCE, linear("a", 2, 2), linear("b", 2, 2)), edges=(("a", "b"), ("b", "a"))),
            r"a loop without a delay through \['a', 'b'\]; .* Delay of at least dt = 0.001 s",
        ),
        (lambda: chain(conv(groups=2)), "groups 2"),
        (lambda: chain(conv(bias=np.zeros(4))), r"conv\.bias: shape \(4,\)"),
        (lambda: chain(conv(bias=np.zeros((3, 4, 4)))), r"conv\.bias"),
        (lambda: chain(conv(dilation=(2, 2))), "leaves nothing"),
        (lambda: chain(linear(inputs=31)), "fc: weight .* for 32 inputs"),
        (
            lambda: chain(Linear(name="fc", weight=np.ones((5, 32)), bias=np.zeros(4))),
            r"fc\.bias: shape \(4,\); allowed: \(5,\)",
        ),
        (
            lambda: chain(Linear(name="fc", weight=np.ones((0, 32)), bias=np.zeros(0))),
            r"fc: shape \(0,\); allowed: 1 to",
        ),
        (lambda: chain(pool(kernel=(5, 1))), r"pool: kernel \(5, 1\) leaves nothing of \(4, 4\)"),
        (lambda: chain(linear(inputs=32), pool()), r"pool: input \(5,\), kernel"),
        (lambda: chain(pool(padding=(1 << 14, 1 << 14))), r"pool\.padding: .* makes 21"),
        (lambda: chain(conv(padding=(1 << 26, 0))), r"conv\.padding: .* makes 1073741856 values"),
        (
            lambda: chain(Scale(name="scale", scale=np.ones((2, 4, 3)))),
            r"scale\.scale: shape \(2, 4, 3\); allowed: one",
        ),
        (lambda: chain(delay(np.full(3, 1e-3))), r"delay\.delay: shape \(3,\); allowed: one value, or \(2, 4, 4\)"),
        (lambda: chain(LIF(name="lif", tau_mem=np.arange(1, 33.0))), r"lif\.tau_mem: shape \(32,\)"),
        (lambda: chain(delay(1.5e-3)), r"delay\.delay: 0.0015 s; allowed: whole multiples of dt = 0.001 s"),
        (lambda: chain(Normalize(name="norm", mean=np.zeros(3), std=np.ones(3))), "norm: 3 channels"),
        (
            lambda: chain(BatchNorm(name="bn", gamma=np.ones(1), beta=np.ones(1), mean=np.ones(1), var=np.ones(1))),
            "bn: 1 channels; allowed: 2",
        ),
    ],
)
def test_graph_refuses(make, message):
    with pytest.raises(GraphError, match=message):
        make()


def test_convolved_size_counts_positions():
    for size in range(1, 9):
        for kernel in range(1, 4):
            for stride in range(1, 4):
                for padding in range(3):
                    for dilation in range(1, 3):
                        last = size + 2 * padding - dilation * (kernel - 1)
                        positions = len(range(0, last, stride)) if last > 0 else 0
                        assert max(convolved_size(size, kernel, stride, padding, dilation), 0) == positions


def test_shapes_of_pools_flattens_scales_and_delays():
    graph = chain(
        pool(padding=(1, 0)), Scale(name="s", scale=2.0), delay(1e-3), Flatten(name="f"), LI(name="li", tau_mem=1)
    )
    assert dict(graph.shapes) == {"in": (2, 4, 4), "pool": (2, 3, 3), "s": (2, 3, 3), "delay": (2, 3, 3), "f": (18,),
                                  "li": (18,)}  # fmt: skip


def loop(seconds, before=(), after=()):
    """In -> fc -> lif -> (before) -> delay -> (after) -> rec -> lif, and lif -> out."""
    lif = LIF(name="lif", tau_mem=1)
    parts = (*after, delay(seconds), *before)
    nodes = (linear("rec", 5, 5), *parts, lif, linear("fc", 32, 5), SOURCE, linear("out", 5, 2))
    back = ["lif", *(node.name for node in before), "delay", *(node.name for node in after), "rec", "lif"]
    edges = (*itertools.pairwise(back), ("in", "fc"), ("fc", "lif"), ("lif", "out"))
    return SpikingGraph(nodes=nodes, edges=edges)


def test_a_loop_passes_a_delay_of_at_least_a_timestep():
    graph = loop(2e-3, after=(Scale(name="scale", scale=0.5),))
    assert graph.shapes["delay"] == graph.shapes["scale"] == graph.shapes["rec"] == (5,)
    order = [node.name for node in graph.ordered()]
    assert order.index("rec") < order.index("lif") and order[-1] == "out"
    # Some elements without delay are a loop within the timestep.
    for seconds in (0.0, [0, 1e-3, 1e-3, 1e-3, 1e-3]):
        with pytest.raises(GraphError, match=r"a loop without a delay through \['delay', 'lif', 'out', 'rec'\]"):
            loop(np.array(seconds))
    assert loop(np.array([1, 2, 3, 4, 1]) * 1e-3).delay_steps("delay").tolist() == [1, 2, 3, 4, 1]


def test_shapes_in_a_loop_have_to_agree():
    with pytest.raises(GraphError, match=r"lif: inputs of shapes \[\(4,\), \(5,\)\]"):
        nodes = (SOURCE, linear("fc", 32, 5), LIF(name="lif", tau_mem=1), delay(1e-3), linear("rec", 5, 4))
        edges = (("in", "fc"), ("fc", "lif"), ("lif", "delay"), ("delay", "rec"), ("rec", "lif"))
        SpikingGraph(nodes=nodes, edges=edges)
    with pytest.raises(GraphError, match="a: is not fed by the input"):
        nodes = (SOURCE, conv(), Scale(name="a", scale=1.0), delay(1e-3))
        SpikingGraph(nodes=nodes, edges=(("in", "conv"), ("a", "delay"), ("delay", "a")))


def test_delays_are_whole_timesteps_within_a_millionth():
    graph = chain(delay(np.float32([3e-3] * 32).reshape(2, 4, 4)))
    assert (graph.delay_steps("delay") == 3).all() and graph.delay_steps("delay").shape == (2, 4, 4)
    assert chain(delay(1e-3 * (1e6 + 0.9)), dt=1e-3).delay_steps("delay") == 1000001  # a millionth of a long delay
    with pytest.raises(GraphError, match=r"delay\.delay: 0.00100001 s"):
        chain(delay(np.linspace(1e-3, 1.00001e-3, 32).reshape(2, 4, 4)))
    with pytest.raises(GraphError, match="in: Input; allowed: a Delay"):
        graph.delay_steps("in")


def test_the_output_is_what_feeds_nothing_or_the_last_population_of_a_loop():
    assert chain(linear(inputs=32), Integrator(name="out")).output.name == "out"
    with pytest.raises(GraphError, match=r"graph: ends in conv \(Conv2d\); allowed: one end, a LIF, .* or Integrator"):
        assert chain(conv()).output
    with pytest.raises(GraphError, match=r"graph: ends in lif \(LIF\), conv \(Conv2d\)"):
        nodes = (SOURCE, LIF(name="lif", tau_mem=1), conv())
        assert SpikingGraph(nodes=nodes, edges=(("in", "lif"), ("in", "conv"))).output
    nodes = (SOURCE, LIF(name="one", tau_mem=1), LIF(name="two", tau_mem=1), delay(1e-3))
    edges = (("in", "one"), ("one", "two"), ("two", "delay"), ("delay", "one"))
    assert SpikingGraph(nodes=nodes, edges=edges).output.name == "two"
    with pytest.raises(GraphError, match="graph: ends in no population"):
        edges = (("in", "delay"), ("delay", "a"), ("a", "delay"))
        assert SpikingGraph(nodes=(SOURCE, delay(1e-3), Scale(name="a", scale=1.0)), edges=edges).output


def test_what_feeds_nothing_comes_last_in_the_order():
    """`out` is ready before `late`, which reaches it through a delay only."""
    nodes = (SOURCE, LIF(name="out", tau_mem=1), *(LIF(name=name, tau_mem=1) for name in ("a", "late")), delay(1e-3))
    edges = (("in", "out"), ("in", "a"), ("a", "late"), ("late", "delay"), ("delay", "out"))
    assert [node.name for node in SpikingGraph(nodes=nodes, edges=edges).ordered()][-2:] == ["late", "out"]


def test_long_chains_are_ordered_in_linear_time():
    names = ["in", *(f"s{index}" for index in range(20000))]
    nodes = (SOURCE, *(Flatten(name=name) for name in names[1:]))
    graph = SpikingGraph(nodes=nodes[::-1], edges=tuple(itertools.pairwise(names)))
    assert [node.name for node in graph.ordered()] == names
