"""What Lava alters of a layer: dense weights, recurrent pairs, sums beyond its integers.

That its own functions do so is shown in ``test_lava``.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, Population
from stars_deploy.targets import netx_limits
from stars_deploy.targets.netx_limits import (
    ACTIVATION_LIMIT,
    LEAKY_ACTIVATION_LIMIT,
    executed_dense,
    find_alteration,
    largest_activation,
)

WIDE = Precision(bits=24, signed=True)


def synapses(weight, target="b", source="a"):
    return DenseProjection(name="w", source=source, target=target, weight=np.array(weight), precision=WIDE)


def loop(weight):
    return synapses(weight, source="b")


def neurons(count, decay_u=4096):
    return Population(name="b", shape=(count,), decay_u=decay_u, bias=np.zeros(count, int))


def test_largest_activation_counts_one_sign_at_a_time():
    weight = [[5, -3, 4], [-8, -1, 2]]
    assert largest_activation(synapses(weight), 3) == 27
    assert largest_activation(synapses(weight)) == 9


def test_largest_activation_of_signed_payloads():
    """A negative payload turns a synapse round: 5 * -8 - 3 * 7 + 4 * -8."""
    assert largest_activation(synapses([[5, -3, 4], [-8, -1, 2]]), 7, -8) == 93
    assert largest_activation(synapses([[-10, 3]]), 3, -4) == 49


def test_largest_activation_adds_the_loop_for_each_neuron():
    forward, back = synapses([[5, 5], [1, 0]]), loop([[2, -9], [6, 3]])
    assert largest_activation(forward, 10, 0, back) == 102  # not 100 + 9 from two neurons
    assert largest_activation(synapses([[5, -5], [-1, 0]]), 1, 0, loop([[-2, -9], [-6, -3]])) == 16


def test_largest_activation_in_blocks(monkeypatch):
    weight = np.random.default_rng(0).integers(-9, 10, (7, 5))
    whole = largest_activation(synapses(weight), 3, -2)
    monkeypatch.setattr(netx_limits, "_BLOCK", 11)
    assert largest_activation(synapses(weight), 3, -2) == whole


@pytest.mark.parametrize("weight", [[[127, -128]], [[254, -256]], [[200, -3]], [[-200, -4]], [[255, 1]], [[-7, 0]]])
def test_dense_that_lava_keeps(weight):
    (executed,) = executed_dense(np.array(weight))
    assert (executed == weight).all()
    assert find_alteration(synapses(weight), neurons(1)) == ""


@pytest.mark.parametrize("weight", [[[0, 0]], [[256, 1]], [[-300, -1]], [[-300, 0]]])
def test_dense_that_lava_cannot_load(weight):
    assert executed_dense(np.array(weight)) is None
    assert "cannot load" in find_alteration(synapses(weight), neurons(1))


def test_recurrent_pairs_share_a_scale():
    """Alone, each matrix would be kept; beside one of both signs, an odd one of one sign is shifted out."""
    wide, odd = np.array([[254, -256]]), np.array([[3]])
    assert (executed_dense(wide)[0] == wide).all() and (executed_dense(odd)[0] == odd).all()
    first, second = executed_dense(wide, odd)
    assert (first == wide).all() and second.tolist() == [[0]]
    assert executed_dense(wide, 2 * odd)[1].tolist() == [[6]]
    assert executed_dense(wide, np.array([[3, -3]]))[1].tolist() == [[3, -3]]
    assert executed_dense(wide, np.array([[-256]]))[1].tolist() == [[-255]]
    assert find_alteration(synapses(wide), neurons(1), recurrent=loop(2 * odd)) == ""
    projection = synapses([[254, -256], [0, 0]])
    message = find_alteration(projection, neurons(2), recurrent=loop([[0, 0], [3, 0]]))
    assert message == "weight_rec[1, 0] = 3, which acts as 0 in Lava"


def test_recurrent_pairs_with_delays_lose_their_exponent():
    weight = np.array([[100, -2], [4, 6]])
    assert (executed_dense(weight, weight, exponent=False)[1] == 2 * weight).all()
    assert find_alteration(synapses(weight), neurons(2), recurrent=loop(weight)) == ""
    message = find_alteration(synapses(weight), neurons(2), recurrent=loop(weight), delayed=True)
    assert message == "weight[0, 0] = 100, which acts as 200 in Lava"
    assert find_alteration(synapses(weight), neurons(2), delayed=True) == ""  # DelayDense keeps its exponent
    assert find_alteration(synapses(2 * weight), neurons(2), recurrent=loop(weight), delayed=True) == ""


def test_the_row_of_an_altered_weight_is_right_in_any_block(monkeypatch):
    monkeypatch.setattr(netx_limits, "_BLOCK", 6)
    weight = np.zeros((9, 3), int)
    weight[0] = 254, -256, 2
    weight[7, 1] = 255
    assert find_alteration(synapses(weight), neurons(9)) == "weight[7, 1] = 255, which acts as 254 in Lava"


def test_the_limit_is_lower_where_any_current_leaks():
    kernel = np.full((2, 1, 1, 1), LEAKY_ACTIVATION_LIMIT // 2)
    wide = ConvProjection(name="w", source="a", target="b", weight=kernel, precision=WIDE)
    bias = np.zeros((2, 1, 1), int)
    plain = Population(name="b", shape=(2, 1, 1), bias=bias)
    leaky = Population(name="b", shape=(2, 1, 1), bias=bias, decay_u=np.array([4096, 4095]).reshape(2, 1, 1))
    assert find_alteration(wide, plain, 2) == find_alteration(wide, leaky, 2) == find_alteration(wide, plain, 3) == ""
    assert f"at most {LEAKY_ACTIVATION_LIMIT}" in find_alteration(wide, leaky, 3)
    assert f"at most {LEAKY_ACTIVATION_LIMIT}" in find_alteration(wide, leaky, 1, -3)
    assert f"at most {ACTIVATION_LIMIT}" in find_alteration(wide, plain, 64)


def test_large_matrices_take_little_more_memory():
    weight = np.zeros((1 << 11, 1 << 11), np.int64)
    weight[0, :2] = 254, -256
    projection = synapses(weight)
    tracemalloc.start()
    try:
        assert find_alteration(projection, neurons(1 << 11), 3) == ""
        assert tracemalloc.get_traced_memory()[1] < 2 * weight.nbytes + (32 << 20)
    finally:
        tracemalloc.stop()
