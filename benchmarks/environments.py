"""Environments of other tools, each made once and kept: nothing of them is imported by stars-deploy.

SpikingJelly needs a newer Python than Lava and another torch than some users have. The peers of the tests
(``tests/peers/requirements-*.txt``) run beside what is installed here: torch is large, and need not come twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = "spikingjelly>=2.0.0,<3"
#: SpikingJelly 2.0's own floor.
OLDEST = (3, 11)
#: Longest installation [s]: torch is large.
LONGEST = 3600.0
#: What each peer needs, and what runs in it.
PEERS = Path(__file__).resolve().parents[1] / "tests" / "peers"


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


def make_peer_environment(tool: str, folder: Path) -> Path:
    """Make an environment for a peer of the tests in `folder` and return its Python; one that is complete is kept.

    ``requirements-TOOL.txt`` is installed with what it asks for, ``requirements-TOOL-alone.txt``, where there is one,
    without. numpy, torch and whatever else fits are those of the Python that runs this.

    Raises
    ------
    EnvironmentFailedError
        If it cannot be installed.
    """
    requirements = PEERS / f"requirements-{tool}.txt"
    alone = PEERS / f"requirements-{tool}-alone.txt"
    wanted = "".join(file.read_text(encoding="utf-8") for file in (requirements, alone) if file.exists())
    here = _site_packages()
    digest = hashlib.sha256(f"{wanted}{sys.version}{here}".encode()).hexdigest()[:12]
    environment = folder / f"{tool}-{digest}"
    python = environment / "bin" / "python"
    if (environment / "ready").exists():
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(environment)], "make an environment")
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "stars_deploy_packages.pth").write_text(f"{here}\n", encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*install, "-r", str(requirements)], f"install {tool}")
    if alone.exists():
        _run([*install, "--no-deps", "-r", str(alone)], f"install {tool}")
    (environment / "ready").touch()
    return python


def _site_packages() -> Path:
    """Return the folder that numpy was installed in here: all of stars-deploy's own packages are there."""
    found = importlib.util.find_spec("numpy")
    if found is None or found.origin is None:
        raise EnvironmentFailedError("numpy is not installed here")
    return Path(found.origin).parents[1]


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
