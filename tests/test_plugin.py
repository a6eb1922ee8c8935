"""The example of a package that offers an objective and a backbone of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"


@pytest.fixture
def installed(tmp_path):
    """Return a folder with what `pip install examples/plugin` would put there, without a build."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    folder = tmp_path / "site"
    information = folder / "plugin-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['project']['name']}\nVersion: 1.0\n")
    lines = []
    for group, entries in project["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (information / "entry_points.txt").write_text("\n".join(lines))
    for module in project["tool"]["setuptools"]["py-modules"]:
        (folder / f"{module}.py").write_text((PLUGIN / f"{module}.py").read_text())
    return folder


def test_command_line_uses_what_the_package_offers(installed, tmp_path):
    assert len((PLUGIN / "dark_prototypes.py").read_text().splitlines()) < 40
    result = subprocess.run(
        [sys.executable, "-m", "stars_deploy", "build", "--target", "netx", "--backbone", "prototypes",
         "--config", str(PLUGIN / "dark.yaml"), "--steps", "40", "--limit", "20", "--no-measure-cpu", "--threads", "1",
         "--out", str(tmp_path / "out"), "--json"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert '"backbone": "prototypes"' in result.stdout
    history = (tmp_path / "out" / "distill.jsonl").read_text().splitlines()
    assert '"synthesis/dark"' in history[-1]
