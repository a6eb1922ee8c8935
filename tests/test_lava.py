"""Lava itself against the reference, and nothing left running whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stars_deploy.errors import FormatError, QuantizationError, TargetError
from stars_deploy.precision import Precision
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.targets import find_target
from stars_deploy.targets import lava as lava_target
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.lava import LavaTarget
from stars_deploy.targets.lava.isolation import run_isolated
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


@pytest.mark.lava
@pytest.mark.parametrize("build", [asymmetric, leaking, saturated])
def test_lava_equals_reference(build, make_chain, make_images, tmp_path):
    graph, path = build(make_chain), tmp_path / "model.net"
    images = make_images(graph, 16, seed=1)
    find_target("lava").write(graph, path)
    expected = run_reference(graph, images)
    for population in graph.populations[:-1]:  # a silent or saturated layer would show nothing
        assert 0.02 < expected.spikes[population.name].mean() < 0.98, population.name
    got = find_target("lava").execute(path, images, graph.timesteps)
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
    """T = 1 resets at every step; a one-bit image keeps Lava's graded path."""
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


@pytest.mark.lava
def test_dense_limits_are_those_of_lavas_own_functions():
    """`executed_dense` against the functions that Lava's NetX and Dense process call, on edge cases and at random."""
    code = """
import contextlib, io, json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from lava.lib.dl.netx.utils import optimize_weight_bits
from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights
results = []
for weight in json.load(sys.stdin):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            stored, bits, exponent, _ = optimize_weight_bits(np.array(weight))
        mode = determine_sign_mode(stored)
        kept = truncate_weights(clip_weights(stored, mode, num_bits=8), mode, bits)
        results.append((kept / 2.0 ** -exponent).tolist() if exponent <= 0 else None)
    except OverflowError:
        results.append(None)
print()
json.dump(results, sys.stdout)
"""
    rng = np.random.default_rng(0)
    edges = [-300, -257, -256, -255, -200, -129, -128, -127, -64, -3, -1, 0, 1, 3, 64, 127, 128, 254, 255, 256, 300]
    cases = [[[low, high]] for low in edges for high in edges if low <= high]
    cases += [
        (rng.integers(-h, h + 1, (2, 4)) << rng.integers(0, 4)).tolist() for h in (2, 9, 40, 127) for _ in range(25)
    ]
    cases += [(-abs(rng.integers(-h, 1, (2, 4)))).tolist() for h in (2, 9, 40, 127, 256) for _ in range(10)]
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])  # after Lava's chatter
    altered = 0
    for weight, lava in zip(cases, theirs, strict=True):
        ours = executed_dense(np.array(weight))
        if ours is None or lava is None:
            assert ours is None and lava is None, (weight, ours, lava)
        else:
            assert ours.tolist() == lava, (weight, ours, lava)
            altered += ours.tolist() != weight
    assert 20 < altered < len(cases) - 100


# ---------------------------------------------------------------- nothing is left running


def marked(marker):
    """Ids of the running processes whose environment holds `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


@pytest.fixture
def marker(monkeypatch):
    if not Path("/proc/self/environ").exists():
        pytest.skip("no /proc here")
    value = f"stars-deploy-test-{uuid.uuid4()}"
    monkeypatch.setenv("STARS_DEPLOY_TEST_MARKER", value)
    yield value
    for process in set(marked(value)) - {os.getpid()}:  # only what this test started
        os.kill(process, signal.SIGKILL)


#: A worker that starts two children, one of which ignores SIGTERM, and then does `end`.
WORKER = """
import subprocess, sys, time
ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)
child.stdout.readline()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
open("started", "w").close()
print("hello from the worker", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("raise ValueError('broken halfway')", "lava: failed with exit code 1: .*broken halfway"),
        ("time.sleep(99)", "lava: no answer within 1.5 s: ...hello from the worker; what to do: use fewer samples"),
        ("pass", None),
    ],
    ids=["failure", "timeout", "success"],
)
def test_session_is_stopped(tmp_path, marker, monkeypatch, capfd, end, message):
    monkeypatch.setattr("stars_deploy.targets.lava.isolation.GRACE", 0.3)
    command = [sys.executable, "-c", WORKER.format(end=end)]
    if message is None:
        run_isolated(command, tmp_path, 30, "lava")
    else:
        with pytest.raises(TargetError, match=f"(?s){message}"):
            run_isolated(command, tmp_path, 1.5, "lava")
    assert (tmp_path / "started").exists()
    assert wait_for(lambda: set(marked(marker)) <= {os.getpid()}, 5)
    assert capfd.readouterr() == ("", "")  # standard output belongs to --json


PARENT = """
import sys
from pathlib import Path
from stars_deploy.targets.lava import isolation
isolation.GRACE = 0.3
isolation.run_isolated([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]), 60, "lava")
"""


def test_session_is_stopped_on_interrupt(tmp_path, marker):
    worker = WORKER.format(end="time.sleep(99)")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, worker, str(tmp_path)], stderr=subprocess.PIPE)
    assert wait_for((tmp_path / "started").exists, 30)
    assert len(marked(marker)) == 4
    parent.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in parent.communicate(timeout=20)[1]
    assert wait_for(lambda: not marked(marker), 5)


LAVA_RUN = """
import sys
from pathlib import Path
import numpy as np
from stars_deploy.targets import find_target
images = np.ones((20000, 2, 8, 5), int)
find_target("lava").execute(Path(sys.argv[1]), images, 4)
"""


@pytest.mark.lava
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_lava_is_stopped_when_interrupted(small_chain, tmp_path, marker, number):
    """Ctrl-C, or the death of the process that asked: Lava's own processes (one a layer and more) all end."""
    path = tmp_path / "model.net"
    find_target("lava").write(small_chain, path)
    scratch = Path(tempfile.mkdtemp(prefix="sd-"))  # short: sockets are made in it
    environment = {**os.environ, "TMPDIR": str(scratch)}
    parent = subprocess.Popen([sys.executable, "-c", LAVA_RUN, path], stderr=subprocess.DEVNULL, env=environment)

    def stepping():
        return any(file.stat().st_size > 100 for file in scratch.glob("*/layer2.bits"))

    assert wait_for(stepping, 60), "Lava did not start"
    assert len(marked(marker)) > 10
    parent.send_signal(number)
    parent.wait(20)
    assert wait_for(lambda: not marked(marker), 15)
    if number == signal.SIGINT:
        assert list(scratch.iterdir()) == []
    shutil.rmtree(scratch)


@pytest.mark.lava
def test_failure_inside_lava_is_reported(small_chain, tmp_path, make_images, monkeypatch):
    """Lava's own message reaches the user (here: it finds no network in the file that it is given)."""
    path = tmp_path / "model.net"
    find_target("lava").write(small_chain, path)
    monkeypatch.setattr(lava_target.json, "dumps", lambda request: json_without_net(request))
    with pytest.raises(TargetError, match=r"(?s)lava: failed with exit code 1: .*no-such-file"):
        LavaTarget(timeout=120).execute(path, make_images(small_chain, 2), 4)


def json_without_net(request):
    return json.JSONEncoder().encode({**request, "net": "no-such-file.net"})


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
