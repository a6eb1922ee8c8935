"""The command line: it reads options, calls :mod:`stars_deploy.pipeline`, and prints."""

from __future__ import annotations

import sys

from stars_deploy.cli import checking, making, reporting, running, showing
from stars_deploy.cli.application import app

__all__ = ["app", "checking", "main", "making", "reporting", "running", "showing"]


def main() -> None:
    """Entry point of ``stars-deploy``."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    app()
