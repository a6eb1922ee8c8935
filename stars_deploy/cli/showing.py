"""What is available here: ``targets``, ``doctor``."""

from __future__ import annotations

from typing import Any

from stars_deploy.cli.application import app
from stars_deploy.console import output, print_json
from stars_deploy.options import (
    Json,
    Verbose,
    Version,
)


@app.command(epilog="Example: stars-deploy targets --json")
def targets(json: Json = False, verbose: Verbose = False, version: Version = False) -> None:
    """Show what can be written and executed here, and why not."""
    from stars_deploy.console import table
    from stars_deploy.targets import TARGETS

    rows: list[dict[str, Any]] = []
    for name, target in TARGETS.items():
        available = target.availability()
        rows.append({"target": name, "file": target.filename, "runs_here": available.ok, "reason": available.reason,
                     "summary": target.summary})  # fmt: skip
    if json:
        print_json(rows)
        return
    body = [[row["target"], row["file"], "yes" if row["runs_here"] else "no", row["reason"] or row["summary"]]
            for row in rows]  # fmt: skip
    output().print(table("targets", ["target", "file", "runs here", ""], body))


@app.command(epilog="Example: stars-deploy doctor")
def doctor(json: Json = False, verbose: Verbose = False, version: Version = False) -> None:
    """Show versions and what is missing on this machine."""
    from stars_deploy.console import table
    from stars_deploy.provenance import DISTRIBUTIONS, versions
    from stars_deploy.targets import TARGETS

    found = versions()
    missing = {name: target.availability().reason for name, target in TARGETS.items()
               if not target.availability().ok}  # fmt: skip
    if json:
        print_json({"versions": found, "not_installed": [name for name in DISTRIBUTIONS if name not in found],
                    "cannot_run": missing})  # fmt: skip
        return
    names = ["stars-deploy", "python", "machine", *DISTRIBUTIONS]
    output().print(table("versions", ["", "version"], [[name, found.get(name, "not installed")] for name in names]))
    for name, reason in missing.items():
        output().print(f"{name} cannot run here: {reason}", markup=False)
