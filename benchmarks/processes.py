"""Starts one worker process at a time, with the threads that it may use, and brings its figures back."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
#: Longest measurement of one system [s].
LONGEST = 1800.0
#: What the libraries of all peers read to choose their number of threads.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
#: Tells a worker which process it works for.
PARENT_VARIABLE = "STARS_BENCHMARK_PARENT"
#: Of ``prctl`` (linux/prctl.h).
_PR_SET_PDEATHSIG = 1


def ask_worker(
    peer: str, request: Mapping[str, Any], threads: int = 1, python: str = sys.executable, longest: float = LONGEST,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure `peer` in a fresh process of `python`; return its figures, or ``{"reason": ...}`` if there are none.

    `environment` adds to the variables of that process.

    The process leads a session of its own, and whatever it started is ended with it.
    """
    with tempfile.TemporaryDirectory(prefix="stars-deploy-benchmark-") as name:
        folder = Path(name)
        asked = {**request, "peer": peer, "threads": threads}
        (folder / "request.json").write_text(json.dumps(asked), encoding="utf-8")
        with open(folder / "output.log", "wb") as log:
            try:
                process = subprocess.Popen(
                    [python, str(WORKER), str(folder)],
                    env={**worker_environment(threads), **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                return {"reason": f"{python} does not start ({error.strerror})"}
            try:
                code = process.wait(longest)
            except subprocess.TimeoutExpired:
                return {"reason": f"no answer within {longest:g} s"}
            finally:
                _end_session(process)
        answer = folder / "answer.json"
        if code == 0 and answer.is_file():
            return dict(json.loads(answer.read_text(encoding="utf-8")))
        lines = (folder / "output.log").read_text(errors="replace").strip().splitlines()
        return {"reason": f"its process ended with code {code}: {lines[-1] if lines else 'no output'}"}


def end_workers_when_terminated() -> None:
    """Let SIGTERM interrupt this process as Ctrl-C does, so that it ends its workers."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def end_with_parent() -> None:
    """Let the kernel end this worker when the process that asked for it ends, however that is (on Linux)."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before it could be asked for
        os._exit(1)


def worker_environment(threads: int) -> dict[str, str]:
    """Return this process's environment with every library limited to `threads` threads."""
    threaded = dict.fromkeys(THREAD_VARIABLES, str(threads))
    return {**os.environ, **threaded, "PYTHONDONTWRITEBYTECODE": "1", PARENT_VARIABLE: str(os.getpid())}


def _end_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM where only zombies are left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
