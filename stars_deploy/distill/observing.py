"""Who is told how a distillation goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stars_deploy.distill.distiller import Distiller


class DistillObserver(Protocol):
    """Told of every finished round, and of the end."""

    def round_done(self, distiller: Distiller) -> None:
        """Take note of a finished round: ``distiller.history[-1]`` is complete."""

    def finished(self, distiller: Distiller) -> None:
        """Take note of the end: the student is frozen, in eval mode."""
