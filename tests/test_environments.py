"""Environments of other tools: what is installed into them, and that one that failed is not taken for complete."""

from __future__ import annotations

from pathlib import Path

import environments
import pytest


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands that would run; none does, but a folder for packages appears as venv would make it."""
    ran = []

    def run(command, purpose):
        ran.append(command)
        if "venv" in command:
            (Path(command[-1]) / "lib" / "python3.1" / "site-packages").mkdir(parents=True)

    peers = tmp_path / "wanted"
    peers.mkdir()
    (peers / "requirements-tool.txt").write_text("tool==1\n")
    monkeypatch.setattr(environments, "PEERS", peers)
    monkeypatch.setattr(environments, "_run", run)
    return ran


def test_a_peer_is_installed_once_beside_what_is_here(tmp_path, commands):
    python = environments.make_peer_environment("tool", tmp_path / "made")
    assert [command[2] for command in commands] == ["venv", "pip"] and "--no-deps" not in commands[1]
    (link,) = python.parents[1].glob("lib/*/site-packages/*.pth")
    assert (Path(link.read_text().strip()) / "numpy").is_dir()
    assert environments.make_peer_environment("tool", tmp_path / "made") == python and len(commands) == 2


def test_other_requirements_make_another_environment(tmp_path, commands):
    first = environments.make_peer_environment("tool", tmp_path)
    (environments.PEERS / "requirements-tool-alone.txt").write_text("heavy==2\n")
    assert environments.make_peer_environment("tool", tmp_path) != first
    assert [command[2] for command in commands] == ["venv", "pip"] * 2 + ["pip"]
    assert commands[-1][-3:] == ["--no-deps", "-r", str(environments.PEERS / "requirements-tool-alone.txt")]


def test_an_environment_that_failed_is_made_again(tmp_path, commands, monkeypatch):
    works = environments._run

    def fail(command, purpose):
        works(command, purpose)
        if "pip" in command:
            raise environments.EnvironmentFailedError(f"cannot {purpose} (no network)")

    monkeypatch.setattr(environments, "_run", fail)
    with pytest.raises(environments.EnvironmentFailedError, match=r"cannot install tool \(no network\)"):
        environments.make_peer_environment("tool", tmp_path)
    monkeypatch.setattr(environments, "_run", lambda command, purpose: commands.append(command))
    environments.make_peer_environment("tool", tmp_path)
    assert "--clear" in commands[-2] and "pip" in commands[-1]
