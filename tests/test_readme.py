"""The README's commands exist, and its claims are those of committed results."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from stars_deploy.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [line.strip() for line in README.replace("\\\n", " ").splitlines() if line.startswith("    ")]
COMMANDS = [line.split("stars-deploy ", 1)[1] for line in LINES if re.match(r"(\S*/)?stars-deploy ", line)]


def test_set_up_is_two_commands():
    setup = [line for line in LINES if line.startswith("python3 -m venv")]
    assert setup == [
        'python3 -m venv .venv && .venv/bin/pip install -e ".[lava]" && .venv/bin/stars-deploy build --target lava',
        'python3 -m venv .venv && .venv/bin/pip install -e ".[lava,test]" && .venv/bin/pytest',
    ]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_parses(line):
    name, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app).commands[name]
    context = command.make_context(name, arguments, resilient_parsing=False)
    assert context.params


def test_there_are_command_lines():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_committed_reports_hold_what_the_readme_says(name):
    report = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
    accuracy = report["accuracy"]
    for share in (accuracy["teacher"], accuracy["student"], accuracy["quantized"]):
        assert f"{100 * share:.2f} %" in README
    lava = report["verification"]["lava"]
    assert lava["passed"] and lava["mismatches"] == 0 and lava["samples"] == 16
    assert f"{lava['compared_spikes']:,}" in README


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists(), target
