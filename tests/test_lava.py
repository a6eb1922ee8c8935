"""The Lava target: Lava itself against the reference, what it says where it cannot run, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from stars_deploy.errors import FormatError, QuantizationError, TargetError
from stars_deploy.precision import Precision
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.targets import find_target
from stars_deploy.targets import lava as lava_target
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.lava import LavaTarget
from stars_deploy.targets.lava.runs import LavaRun, execute_runs
from stars_deploy.targets.netx_limits import executed_dense
from stars_deploy.targets.reference import run_reference
from stars_deploy.verification import check_verified, verify_target


def asymmetric(make_chain):
    """Everything differs between x and y; per-neuron bias; one convolution in groups, one dilated."""
    layers = [
        {"channels": 4, "kernel": (3, 2), "stride": (2, 1), "padding": (1, 2)},
        {"channels": 6, "kernel": (2, 3), "padding": (0, 1), "groups": 2, "dilation": (1, 2)},
        {"channels": 5, "kernel": (1, 2), "stride": (1, 2)},
    ]
    return make_chain(11, layers, shape=(2, 9, 6), bits=8, timesteps=4)


def leaking(make_chain):
    """Currents that leak instead of ending, T that is not a power of two."""
    layers = [{"channels": 3, "padding": (1, 1), "stride": (2, 2)}]
    return make_chain(5, layers, shape=(1, 6, 7), timesteps=5, decay_u=1234, decay_v=77)


def saturated(_make_chain):
    """Dense on the image; weights, biases and decays at their limits, so that currents wrap and potentials clip."""
    rng = np.random.default_rng(3)
    first = rng.integers(-256, 255, (12, 4))
    first[0], first[1] = 254, -256
    second = rng.integers(-20, 21, (12, 12))
    populations = (
        Population(
            name="wrapping", shape=(12,), decay_u=0, decay_v=0, vth=2**16, bias=rng.integers(-(2**15), 2**15, 12)
        ),
        Population(name="firing", shape=(12,), decay_u=4095, decay_v=4096, vth=0, bias=np.arange(12) - 6),
        Population(name="out", shape=(4,), decay_u=1, decay_v=1, bias=np.array([2**15 - 1, -(2**15), 0, 1])),
    )
    weights = {"wrapping": first, "firing": second, "out": np.array([[127, -128] * 6, [1] * 12, [-7] * 12, [0, 3] * 6])}
    sources = ["image", "wrapping", "firing"]
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=(1, 2, 2)),
        populations=populations,
        projections=tuple(
            DenseProjection(
                name=f"{target}.w",
                source=source,
                target=target,
                weight=weight,
                precision=Precision(bits=9, signed=True),
            )
            for source, (target, weight) in zip(sources, weights.items(), strict=True)
        ),
        timesteps=6,
    )


@pytest.fixture(scope="module")
def executed(make_chain, make_images, tmp_path_factory):
    """``executed[build]``: graph, images and Lava's record, all from one worker process."""
    folder, cases = tmp_path_factory.mktemp("lava"), []
    for build in (asymmetric, leaking, saturated):
        graph, path = build(make_chain), folder / f"{build.__name__}.net"
        find_target("lava").write(graph, path)
        cases.append((build, graph, make_images(graph, 16, seed=1), path))
    runs = [LavaTarget().run_of(path, images, graph.timesteps) for _, graph, images, path in cases]
    records = execute_runs(runs, 300, "lava")
    return {build: (graph, images, got) for (build, graph, images, _), got in zip(cases, records, strict=True)}


@pytest.mark.lava
@pytest.mark.parametrize("build", [asymmetric, leaking, saturated])
def test_lava_equals_reference(build, executed):
    graph, images, got = executed[build]
    expected = run_reference(graph, images)
    for population in graph.populations[:-1]:  # a silent or saturated layer would show nothing
        assert 0.02 < expected.spikes[population.name].mean() < 0.98, population.name
    assert list(got.spikes) == [population.name for population in graph.populations]
    comparison = compare_records(expected, got)
    assert comparison.first is None, str(comparison.first)
    assert comparison.mismatches == 0
    assert comparison.compared_spikes == 16 * graph.timesteps * sum(p.size for p in graph.populations)
    if build is asymmetric:  # what Lava runs is the file, and a difference is named
        changed = replace(graph.populations[1], decay_v=0)
        other = replace(graph, populations=(graph.populations[0], changed, *graph.populations[2:]))
        assert compare_records(run_reference(other, images), got).first.layer == "conv1"


@pytest.mark.lava
def test_single_timestep_and_binary_image(make_images, tmp_path):
    """T = 1 resets at every step; an image of one bit takes Lava's path for spikes that carry no payload."""
    weight = np.random.default_rng(0).integers(-50, 51, (5, 6))
    graph = QuantizedGraph(
        input=QuantizedInput(name="x", shape=(6,), precision=Precision(bits=1, signed=False)),
        populations=(Population(name="n", shape=(5,), vth=20, bias=np.arange(5)),),
        projections=(DenseProjection(name="w", source="x", target="n", weight=weight),),
        timesteps=1,
    )
    images = make_images(graph, 8)
    find_target("lava").write(graph, tmp_path / "m.net")
    verification = verify_target(graph, "lava", tmp_path / "m.net", images)
    assert verification.passed and verification.compared_spikes == 40 and verification.seconds > 0
    check_verified([verification])


LAVAS_FUNCTIONS = """
import contextlib, io, json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from lava.lib.dl.netx.utils import optimize_weight_bits
from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights
results = []
for weights, shifted_back in json.load(sys.stdin):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            stored, bits, exponent, _ = optimize_weight_bits(np.hstack(weights))
        kept = []
        for part in np.split(stored, [len(weights[0][0])], axis=1)[:len(weights)]:
            mode = determine_sign_mode(part)
            part = truncate_weights(clip_weights(part, mode, num_bits=8), mode, bits)
            kept.append((part / 2.0 ** -exponent if shifted_back else part).tolist())
        results.append(kept if exponent <= 0 else None)
    except OverflowError:
        results.append(None)
print()
json.dump(results, sys.stdout)
"""


@pytest.mark.lava
def test_dense_limits_are_those_of_lavas_own_functions():
    """`executed_dense` against the functions that Lava's NetX and Dense process call, on edge cases and at random.

    Pairs of matrices are recurrent layers; with delays NetX does not tell the processes to shift back.
    """
    rng = np.random.default_rng(0)
    edges = [-300, -257, -256, -255, -200, -129, -128, -127, -64, -3, -1, 0, 1, 3, 64, 127, 128, 254, 255, 256, 300]
    single = [[[low, high]] for low in edges for high in edges if low <= high]
    single += [
        (rng.integers(-h, h + 1, (2, 4)) << rng.integers(0, 4)).tolist() for h in (2, 9, 40, 127) for _ in range(25)
    ]
    single += [(-abs(rng.integers(-h, 1, (2, 4)))).tolist() for h in (2, 9, 40, 127, 256) for _ in range(10)]
    cases = [([weight], True) for weight in single]
    for _ in range(300):
        pair = [rng.integers(*np.sort(rng.choice(edges, 2, replace=False)), (2, width)) for width in (3, 2)]
        cases.append(([(weight << rng.integers(0, 2)).tolist() for weight in pair], bool(rng.integers(2))))
    done = subprocess.run(
        [sys.executable, "-c", LAVAS_FUNCTIONS], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])  # after Lava's chatter
    altered, kept = Counter(), Counter()
    for (weights, shifted_back), lava in zip(cases, theirs, strict=True):
        arrays = [np.array(weight) for weight in weights]
        ours = executed_dense(*arrays, exponent=shifted_back)
        if ours is None or lava is None:
            assert ours is None and lava is None, (weights, ours, lava)
            continue
        got = [weight.tolist() for weight in ours]
        assert got == lava, (weights, shifted_back, got, lava)
        (kept if got == weights else altered)[len(weights), shifted_back] += 1
    assert min(altered[1, True], altered[2, True], altered[2, False]) > 20, altered
    assert kept[1, True] > 100 and min(kept[2, True], kept[2, False]) > 5, kept


@pytest.mark.lava
def test_failure_inside_lava_is_reported(small_chain, tmp_path, make_images):
    """Lava's own message reaches the user (here: it does not find the file that it is given)."""
    run = LavaRun(path=tmp_path / "no-such-file.net", graph=small_chain, images=make_images(small_chain, 2))
    with pytest.raises(TargetError, match=r"(?s)lava: failed with exit code 1: .*no-such-file"):
        execute_runs([run], 120, "lava")


# ---------------------------------------------------------------- not available, or not fitting


def test_unavailable_on_newer_python(monkeypatch, small_chain, make_images, tmp_path):
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    available = LavaTarget().availability()
    assert not available.ok
    assert available.reason.startswith("this is Python 3.12, and Lava needs Python 3.10")
    assert 'pip install "stars-deploy[lava]"' in available.reason
    with pytest.raises(TargetError, match=r"lava: cannot run here; what to do: this is Python 3\.12"):
        LavaTarget().execute(tmp_path / "m.net", make_images(small_chain, 1), 4)


def test_unavailable_without_lava(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(lava_target.importlib.util, "find_spec", lambda _: None)
    assert LavaTarget().availability().reason.startswith("lava-dl is not installed in this Python 3.10 environment")


def test_unavailable_without_process_groups(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    monkeypatch.delattr(os, "killpg")
    assert "process groups" in LavaTarget().availability().reason


@pytest.mark.lava
def test_refuses_before_lava_starts(small_chain, make_images, tmp_path):
    path = tmp_path / "model.net"
    find_target("lava").write(small_chain, path)
    with pytest.raises(QuantizationError, match="image"):
        find_target("lava").execute(path, make_images(small_chain, 2)[:, :1], 4)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(FormatError, match="not a readable NetX file"):
        find_target("lava").execute(path, make_images(small_chain, 2), 4)


def looping(delay=0, loop=True):
    """Two neurons on two bits, one synapse with a delay, and a loop."""
    weight = np.array([[3, -2], [1, 5]])
    forward = DenseProjection(name="w", source="x", target="n", weight=weight, delay=np.array([[0, delay], [0, 0]]))
    back = DenseProjection(name="r", source="n", target="n", weight=weight, delay=1)
    return QuantizedGraph(
        input=QuantizedInput(name="x", shape=(2,), precision=Precision(bits=1, signed=False)),
        populations=(Population(name="n", shape=(2,), vth=2, bias=np.zeros(2, int)),),
        projections=(forward, back) if loop else (forward,),
        timesteps=3,
    )


@pytest.mark.parametrize(("graph", "name"), [(looping(), "r"), (looping(delay=2, loop=False), "w")])
def test_refuses_synchronous_time_where_spikes_stay_in_flight(graph, name, make_images, tmp_path):
    path, images = tmp_path / "m.net", make_images(graph, 2)
    find_target("lava").write(graph, path)
    for timing in (None, "synchronous"):
        with pytest.raises(TargetError, match=f"{name}: a loop or delay, and Lava's reset .*what to do: .*pipelined"):
            LavaTarget(timing=timing).run_of(path, images, 3)
    run = LavaTarget(timing="pipelined").run_of(path, images, 3)
    assert run.pipelined and min(int(np.max(item.delay)) for item in run.graph.projections) > 0
    assert run.request("0")["fresh"] and run.request("0")["lag"] == 0


def test_timing_is_synchronous_where_the_file_allows_it(make_images, tmp_path):
    graph = looping(loop=False)
    path, images = tmp_path / "m.net", make_images(graph, 2)
    find_target("lava").write(graph, path)
    run = LavaTarget().run_of(path, images, 3)
    request = run.request("0")
    assert not run.pipelined and not request["fresh"]
    assert (request["lag"], request["reset_interval"], request["reset_offset"]) == (1, 3, 1)
    request = LavaTarget(timing="pipelined", reset_interval=2, reset_offset=5).run_of(path, images, 3).request("0")
    assert (request["lag"], request["reset_interval"], request["reset_offset"]) == (0, 2, 5)


@pytest.mark.parametrize(("bits", "signed", "told"), [(1, False, 0), (1, True, 1), (2, False, 2), (24, True, 24)])
def test_lava_is_told_the_bits_of_a_payload(tmp_path, bits, signed, told):
    """With 0 it takes whatever is not 0 for a spike, -1 included."""
    graph = looping(loop=False)
    graph = replace(graph, input=replace(graph.input, precision=Precision(bits=bits, signed=signed)))
    run = LavaRun(path=tmp_path, graph=graph, images=np.zeros((1, 2), int))
    assert run.request("0")["message_bits"] == told


def test_run_refuses_resets_in_synchronous_time_and_images_that_do_not_fit(make_images, tmp_path):
    graph = looping(loop=False)
    images = make_images(graph, 2)
    with pytest.raises(TargetError, match=r"reset_interval: 2; allowed: 0 in synchronous time"):
        LavaRun(path=tmp_path, graph=graph, images=images, reset_interval=2)
    with pytest.raises(QuantizationError, match="x: images of shape"):
        LavaRun(path=tmp_path, graph=graph, images=images[:, :1])
    with pytest.raises(QuantizationError, match="x: 2 frames"):
        LavaRun(path=tmp_path, graph=graph, images=np.stack([images, images]))
