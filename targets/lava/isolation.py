"""A command in a process group of its own that is gone afterwards, whatever happens.

Lava starts one operating-system process for each of its processes and does not stop them when one fails. So it runs in
a session of its own, and the whole session is signalled in a ``finally``: after success, an error, a timeout or Ctrl-C.
The worker's standard input is a pipe from us: should we be killed, it reads its end and stops the session itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import stars_deploy
from stars_deploy.errors import TargetError

#: Time to end after SIGTERM before SIGKILL [s]; shared memory is given back in it.
GRACE = 5.0
_POLL = 0.02
_LOG_TAIL = 1500
#: multiprocessing makes sockets below the temporary folder, whose paths the system limits (104 characters on macOS).
_LONGEST_FOLDER = 64

_logger = logging.getLogger(__name__)


def run_isolated(command: Sequence[str], folder: Path, timeout: float, where: str) -> None:
    """Run `command` in `folder` and wait for it; nothing that it started in its session is left when this returns.

    Its output goes to the log (debug level), not to our standard output.

    Raises
    ------
    TargetError
        Named `where`, if it fails (with the end of its output) or runs longer than `timeout` [s].
    """
    log = folder / "output.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TargetError(
                where,
                f"no answer within {timeout:g} s{_end_of(log)}",
                remedy="use fewer samples or timesteps, or a longer timeout",
            ) from None
        finally:
            stop_session(process)
    if code:
        raise TargetError(where, f"failed with exit code {code}{_end_of(log)}", remedy="run again with -v")
    _logger.debug("%s", log.read_text(errors="replace"))


def stop_session(process: subprocess.Popen[bytes]) -> None:
    """End every process of the session that `process` leads: SIGTERM first, SIGKILL for what is left after a grace."""
    try:
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 1.0)):
            if not _signalled(process.pid, number):
                break
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and _alive(process):
                time.sleep(_POLL)
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # takes the leader's exit status, so that it does not count as a member any more
    return _signalled(process.pid, 0)


def _signalled(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM where only zombies are left
        return False
    return True


def _environment(folder: Path) -> dict[str, str]:
    # The worker must find this very package, also where it is not installed, and a process for each layer should not
    # start a thread pool of its own.
    root = str(Path(stars_deploy.__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (os.environ.get("PYTHONPATH", ""), root) if part)
    environment = {**os.environ, "PYTHONPATH": path}
    environment.setdefault("OMP_NUM_THREADS", "1")
    if len(str(folder)) < _LONGEST_FOLDER:
        environment["TMPDIR"] = str(folder)  # what killed processes leave behind goes with the folder
    return environment


def _end_of(log: Path) -> str:
    text = log.read_text(errors="replace").strip()
    return f": ...{text[-_LOG_TAIL:]}" if text else ""
