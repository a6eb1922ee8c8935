"""A Lava run is stopped whatever happens: after success, an error, a timeout, Ctrl-C or the death of who asked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from stars_deploy.errors import TargetError
from stars_deploy.targets import find_target
from stars_deploy.targets.lava.isolation import run_isolated


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
        return any(file.stat().st_size > 100 for file in scratch.glob("*/0/0/layer2.bits"))

    assert wait_for(stepping, 60), "Lava did not start"
    assert len(marked(marker)) > 10
    parent.send_signal(number)
    parent.wait(20)
    assert wait_for(lambda: not marked(marker), 15)
    if number == signal.SIGINT:
        assert list(scratch.iterdir()) == []
    shutil.rmtree(scratch)
