"""How a pipeline tells its caller where it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Observer:
    """Hears of every stage. This one stays silent; the command line's draws progress bars.

    Attributes
    ----------
    seconds : dict of str to float
        Wall-clock time of each finished stage [s].
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enclose a stage; its time is kept when it ends well."""
        start = time.perf_counter()
        self.started(name)
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.finished(name)

    def started(self, name: str) -> None:
        """Hear that a stage begins."""

    def advanced(self, done: int, total: int, text: str = "") -> None:
        """Hear that `done` of `total` steps of the running stage are done."""

    def finished(self, name: str) -> None:
        """Hear that a stage ended well."""

    def noted(self, text: str) -> None:
        """Hear something that the user should know."""
