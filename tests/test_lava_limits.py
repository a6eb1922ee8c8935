"""At the limits of 24 and 16 bits: Lava, the reference and numbers worked out by hand agree; our exporter stays off."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from stars_deploy.bounds import prove_bounds
from stars_deploy.engine import run_fast
from stars_deploy.errors import FormatError, QuantizationError
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    STATE_LIMIT,
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
)
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.lava.runs import LavaRun, execute_runs
from stars_deploy.targets.netx_reader import read_netx
from stars_deploy.targets.netx_writer import write_netx
from stars_deploy.targets.reference import run_reference

M = STATE_LIMIT
#: An activation of M >> 6 is a current of exactly M.
EDGE = M >> 6


def network(weight, *, bits=11, timesteps=1, bias=0, vth=VTH_NEVER, decay_u=0, decay_v=4096, signed=False):
    """One dense population (or a 1x1 convolution for weights of four axes) on graded spikes."""
    weight = np.array(weight)
    space = (1, 1) * (weight.ndim == 4)
    kind = ConvProjection if weight.ndim == 4 else DenseProjection
    shape = (len(weight), *space)
    bias = np.broadcast_to(np.reshape(bias, (-1, *space)), shape)
    return QuantizedGraph(
        input=QuantizedInput(name="x", shape=(weight.shape[1], *space), precision=Precision(bits=bits, signed=signed)),
        populations=(Population(name="n", shape=shape, decay_u=decay_u, decay_v=decay_v, vth=vth, bias=bias),),
        projections=(
            DenseProjection(name="w", source="x", target="n", weight=weight, precision=Precision(bits=9, signed=True))
            if kind is DenseProjection
            else ConvProjection(
                name="w", source="x", target="n", weight=weight, precision=Precision(bits=24, signed=True)
            ),
        ),
        timesteps=timesteps,
    )


def payload(activation):
    """Return the pair of pixels that 120 and 2 weigh to `activation`."""
    first = activation // 120 if activation % 120 % 2 == 0 else activation // 120 - 1
    return first, (activation - 120 * first) // 2


def around_the_wrap():
    """A current that keeps all, just below, at and above +-2**23, at once and bit by bit; the bias keeps v in range."""
    frames = [
        [EDGE - 2, 0, 0],  # u = M - 128
        [EDGE, 0, 0],  # u = M survives; the opposite neuron's -M becomes M
        [EDGE + 2, 0, 0],  # u = M + 128 becomes 128 - M
        [EDGE, 0, 2],  # M stays for a timestep, and then wraps
        [EDGE - 2, 2, 2],  # reaches M, and then wraps
        [240000, 240000, 0],  # far beyond, twice
    ]
    images = np.array([[payload(value) for value in sample] for sample in frames]).swapaxes(0, 1)
    twice = 240000 * 64 - 2 * M  # after the first wrap
    twice += 240000 * 64
    twice -= 2 * M if twice > M else 0
    currents = [M - 128, M, 128 - M, 128 - M, 128 - M, twice]
    opposite = [128 - M, M, M - 128, M - 128, M - 128, -twice]
    expected = [[u - 64, -64 + w] for u, w in zip(currents, opposite, strict=True)]
    graph = network([[120, 2], [-120, -2]], timesteps=3, bias=-1)
    return graph, images, np.clip(expected, 1 - M, M - 1)


def far_beyond_the_wrap():
    """Where no current is kept, a convolution may exceed 24 bits by far: one wrap is not enough, the membrane clips."""
    graph = network([[[[1 << 15]]], [[[-(1 << 15)]]]], bits=8, decay_u=4096, bias=[-5, 5])
    images = np.array([1, 3, 5, 7, 255]).reshape(-1, 1, 1, 1)
    currents = (images.reshape(-1, 1) << 21) * [1, -1]
    wrapped = np.where(currents > M, currents - 2 * M, np.where(currents <= -M, currents + 2 * M, currents))
    assert wrapped.max() > M
    return graph, images, np.clip(wrapped + np.array([-320, 320]), 1 - M, M - 1)


def clipping_membrane():
    """Largest and smallest bias: five timesteps clip a membrane that forgets nothing; the highest threshold fires."""
    graph = network([[1], [1], [1]], bits=1, timesteps=5, bias=[(1 << 15) - 1, -(1 << 15), 1], decay_v=0)
    return graph, np.array([[0], [1]]), np.array([[M - 1, 1 - M, 320], [M - 1, 1 - M, 320 + 64 * 15]])


def highest_threshold():
    """2**17 - 1 is the last threshold that a membrane exceeds, when it clips, and 2**17 never is."""
    bias = [(1 << 15) - 1, -(1 << 15), 1]
    graph = network([[1], [1], [1]], bits=1, timesteps=6, bias=bias, decay_v=0, vth=VTH_NEVER - 1)
    # The first neuron fires in the fifth timestep, or with the pixel's current (64, 128, ...) in the fourth.
    one = 64 * ((1 << 15) - 1)
    return graph, np.array([[0], [1]]), np.array([[one, 1 - M, 384], [2 * one + 64 * 11, 1 - M, 384 + 64 * 21]])


def image_at_its_limits():
    """An image that is the bias of the first neurons, at the ends of 16 bits."""
    shape = (3,)
    graph = QuantizedGraph(
        input=QuantizedInput(name="x", shape=shape, precision=Precision(bits=16, signed=True), biases="n"),
        populations=(Population(name="n", shape=shape, decay_v=0, vth=VTH_NEVER, bias=np.zeros(3, int)),),
        projections=(),
        timesteps=5,
    )
    images = np.array([[-(1 << 15), (1 << 15) - 1, 0], [1, -1, 1 << 14]])
    return graph, images, np.array([[1 - M, M - 1, 0], [320, -320, 5 << 20]])


CASES = [around_the_wrap, far_beyond_the_wrap, clipping_membrane, highest_threshold, image_at_its_limits]


def run_of(graph, images, path):
    write_netx(graph, path)
    return LavaRun(path=path, graph=graph, images=images)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Lava's records of all cases and of a bias that leaves 16 bits, from one worker process."""
    folder = tmp_path_factory.mktemp("limits")
    runs = [run_of(*case()[:2], folder / f"{case.__name__}.net") for case in CASES]
    records = execute_runs([*runs, overflowing_bias(folder / "bias.net")], 300, "lava")
    return dict(zip([*CASES, overflowing_bias], records, strict=True))


def overflowing_bias(path):
    """A file that says 40000 where 16 bits hold 40000 - 2**16 at most."""
    graph = network([[1]], bits=1, timesteps=2, bias=40000 - (1 << 16), decay_v=0)
    run = run_of(graph, np.array([[0], [1]]), path)
    with h5py.File(path, "r+") as file:
        file["layer/1/bias"][:] = 40000
    return run


@pytest.mark.lava
@pytest.mark.parametrize("case", CASES)
def test_lava_at_the_limits(case, answers):
    graph, images, potentials = case()
    comparison = compare_records(run_reference(graph, images), answers[case])
    assert comparison.mismatches == 0, str(comparison.first)
    assert answers[case].potential.tolist() == potentials.tolist()


@pytest.mark.parametrize("case", CASES)
def test_ours_at_the_limits(case):
    graph, images, potentials = case()
    reference = run_reference(graph, images)
    assert reference.potential.tolist() == potentials.tolist()
    comparison = compare_records(reference, run_fast(graph, images))
    assert comparison.mismatches == 0, str(comparison.first)


def test_highest_threshold_fires_where_the_membrane_clips():
    graph, images, _ = highest_threshold()
    spikes = run_reference(graph, images).spikes["n"]
    assert spikes.sum(axis=(0, 1)).tolist() == [2, 0, 0]
    assert spikes[4, 0, 0] and spikes[3, 1, 0]
    graph, images, _ = clipping_membrane()
    assert not run_reference(graph, images).spikes["n"].any()


@pytest.mark.lava
def test_bias_past_its_range_wraps_in_lava(answers, tmp_path):
    """Lava makes 40000 into -25536 in silence: the reader refuses the file."""
    run = overflowing_bias(tmp_path / "m.net")
    expected = run_reference(run.graph, run.images)
    assert expected.potential.tolist() == [[-25536 * 128], [-25536 * 128 + 3 * 64]]
    assert compare_records(expected, answers[overflowing_bias]).mismatches == 0
    with pytest.raises(FormatError, match=r"n\.bias.*40000"):
        read_netx(run.path)


@pytest.mark.parametrize("value", [-(1 << 15) - 1, 1 << 15])
def test_nothing_past_16_bits_is_made(value):
    with pytest.raises(QuantizationError, match=f"n.bias: .*{value}"):
        network([[1]], bias=value)
    graph, images, _ = image_at_its_limits()
    with pytest.raises(QuantizationError, match=f"x: .*{value}"):
        run_reference(graph, np.full_like(images, value))


# ---------------------------------------------------------------- what the exporter proves


@pytest.mark.parametrize("case", CASES)
def test_bounds_pass_excludes_the_limits(case):
    with pytest.raises(QuantizationError, match=r"n: accumulates up to .* times the 24-bit limit"):
        prove_bounds(case()[0])


@pytest.mark.parametrize(
    ("graph", "images"),
    [
        (network([[127]], bits=10, timesteps=2, decay_u=4096), [1023]),
        (network([[1]], bits=1, timesteps=4, bias=(1 << 15) - 2, decay_u=4096, decay_v=0), [1]),
        (network([[1]], bits=1, timesteps=3, bias=-(1 << 15), decay_u=4096, decay_v=0), [0]),
    ],
)
def test_bounds_pass_allows_what_stays_just_below(graph, images):
    bounds = prove_bounds(graph)["n"]
    reached = int(run_reference(graph, np.array([images])).potential[0, 0])
    assert reached in (bounds.v_low, bounds.v_high) and 0.7 < bounds.utilization <= 1
    with pytest.raises(QuantizationError, match="24-bit limit"):
        prove_bounds(
            network(
                graph.projections[0].weight * (2 if graph.timesteps == 2 else 1),
                bits=graph.input.precision.bits,
                timesteps=graph.timesteps + 2,
                bias=graph.populations[0].bias,
                decay_u=4096,
                decay_v=graph.populations[0].decay_v,
            )
        )
