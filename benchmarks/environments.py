"""SpikingJelly's own environment: it needs a newer Python than Lava and another torch than some users have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = "spikingjelly>=2.0.0,<3"
#: SpikingJelly 2.0's own floor.
OLDEST = (3, 11)
#: Longest installation [s]: torch is large.
LONGEST = 3600.0


class EnvironmentFailedError(Exception):
    """An environment that cannot be made or used; the message says why."""


def make_environment(folder: Path) -> str:
    """Make a virtual environment with SpikingJelly in `folder` and return its Python; one that has it is kept.

    pip is used as it is configured: a ``PIP_CONSTRAINT`` applies here too.

    Raises
    ------
    EnvironmentFailedError
        If there is no Python of at least 3.11, or it cannot be installed.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if python.is_file() and _succeeds([str(python), "-c", "import spikingjelly"]):
        return str(python)
    base = find_python()
    _run([base, "-m", "venv", str(folder)], "make an environment")
    _run([str(python), "-m", "pip", "install", "--quiet", PACKAGE], f"install {PACKAGE}")
    return str(python)


def find_python() -> str:
    """Return a Python that SpikingJelly runs on: this one, or one on the path.

    Raises
    ------
    EnvironmentFailedError
        If there is none.
    """
    names = [sys.executable, *(f"python3.{minor}" for minor in (13, 12, 11)), "python3"]
    test = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    for name in names:
        found = shutil.which(name)
        if found and _succeeds([found, "-c", test]):
            return found
    raise EnvironmentFailedError(f"SpikingJelly needs Python {OLDEST[0]}.{OLDEST[1]} or newer, and none is on the path")


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: list[str], purpose: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailedError(f"cannot {purpose} ({error})") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise EnvironmentFailedError(f"cannot {purpose} ({lines[-1] if lines else f'exit code {done.returncode}'})")
