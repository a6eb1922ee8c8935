"""What is to be looked at: ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stars_deploy.cli.application import app
from stars_deploy.console import print_json
from stars_deploy.options import Json, Verbose, Version, reported


@app.command(epilog="Example: stars-deploy report runs/digits-stars-t4 --out page.html")
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a build.")],
    out: Annotated[Path | None, typer.Option(help="The .html to write (default DIR/report.html).")] = None,
    json: Json = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Write the page of a build: one HTML file that opens offline, with every plot, table and source."""
    with reported(json, verbose) as bars, bars.stage("page"):
        from stars_deploy.pipeline.reporting import write_report_page

        path = write_report_page(directory, out)
    if json:
        print_json({"file": str(path), "bytes": path.stat().st_size})
    else:
        print(f"written to {path}")
