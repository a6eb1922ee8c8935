"""What the terminal shows: progress on stderr, tables on stdout, nothing but JSON with ``--json``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from stars_deploy.errors import StarsDeployError
from stars_deploy.progress import Observer

LOG = Console(stderr=True, highlight=False)


def output() -> Console:
    """Return the console for results; a pipe gets full lines, not ones folded at 80 columns."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(highlight=False, width=width)


class ProgressBars(Observer):
    """An observer that draws one bar a stage on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=LOG,
        )
        self._task: TaskID | None = None

    @contextmanager
    def shown(self) -> Iterator[ProgressBars]:
        """Draw while the block runs; wherever it ends, the terminal is left in order."""
        with self._progress:
            yield self

    def started(self, name: str) -> None:
        """Add the stage's bar."""
        self._task = self._progress.add_task(name, total=1, text="")

    def advanced(self, done: int, total: int, text: str = "") -> None:
        """Move the running stage's bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, text=text)

    def finished(self, name: str) -> None:
        """Fill the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=1, total=1)

    def noted(self, text: str) -> None:
        """Print a remark above the bars."""
        self._progress.console.print(f"note: {text}", markup=False)


def print_json(content: Any) -> None:
    """Print a result as JSON, the only thing on stdout."""
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def print_error(error: StarsDeployError, as_json: bool) -> None:
    """Say what is wrong on stderr, and with ``--json`` on stdout as well."""
    LOG.print("error: ", style="bold red", end="", markup=False)
    LOG.print(f"{error.where}: {error.got}", markup=False, soft_wrap=True)
    if error.allowed:
        LOG.print(f"  allowed: {error.allowed}", markup=False, soft_wrap=True)
    if error.remedy:
        LOG.print(f"  what to do: {error.remedy}", markup=False, soft_wrap=True)
    if as_json:
        print_json(
            {
                "error": {
                    "kind": type(error).__name__,
                    "where": error.where,
                    "got": str(error.got),
                    "allowed": error.allowed,
                    "remedy": error.remedy,
                    "exit_code": error.exit_code,
                }
            }
        )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """Return a table, its first column to the left and the others to the right."""
    result = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        result.add_row(*row)
    return result


def percent(share: float | None) -> str:
    """Return a share as percent, or a dash where it is not known."""
    return "-" if share is None else f"{100 * share:.2f} %"


def engineering(value: float, unit: str) -> str:
    """Return a quantity with an SI prefix, three significant digits."""
    for factor, prefix in ((1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"0 {unit}"


def interval(values: Mapping[str, float], unit: str) -> str:
    """Return nominal with its low and high."""
    low, high = engineering(values["low"], unit), engineering(values["high"], unit)
    return f"{engineering(values['nominal'], unit)} ({low} .. {high})"
