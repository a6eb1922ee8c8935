"""The application that every command joins."""

from __future__ import annotations

import typer

from stars_deploy.options import Version

app = typer.Typer(
    name="stars-deploy", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil an ANN into a spiking student without data, quantise it to Loihi integers, verify and cost it.",
    epilog="Start with: stars-deploy build --target lava",
)  # fmt: skip


@app.callback()
def _root(version: Version = False) -> None:
    """Only here so that ``stars-deploy --version`` works without a command."""
