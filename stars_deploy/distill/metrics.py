"""The course of a distillation while it runs: JSON lines, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stars_deploy.artifacts import written_whole
from stars_deploy.distill.distiller import Distiller
from stars_deploy.distill.preview import contact_sheet
from stars_deploy.errors import ConfigError


class MetricsFile:
    """One JSON object a round, appended as soon as the round is done, so that ``tail -f`` follows it.

    Parameters
    ----------
    path : path
    distiller : Distiller
        What it holds already, after a resume, is written first: the file of an interrupted run ends up with the same
        bytes as that of a run without interrupt.
    """

    def __init__(self, path: Path, distiller: Distiller) -> None:
        self.path = path
        unfinished = distiller.step % distiller.config.distill.steps_per_round != 0
        complete = distiller.history[:-1] if unfinished else distiller.history
        with written_whole(path) as draft:
            draft.write_text("".join(map(_line, complete)), encoding="utf-8")

    def round_done(self, distiller: Distiller) -> None:
        """Append the finished round."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(distiller.history[-1]))

    def finished(self, distiller: Distiller) -> None:
        """Leave the file as it is: it is complete."""


class TensorBoardLog:
    """Scalars by round and the newest synthetic images, for TensorBoard.

    Parameters
    ----------
    folder : path
    distiller : Distiller
        After a resume, what an earlier process logged of later steps is hidden (TensorBoard's ``purge_step``); a round
        that ends at the checkpoint was logged before it was written, and stays.

    Raises
    ------
    ConfigError
        If the package `tensorboard` is missing.
    """

    def __init__(self, folder: Path, distiller: Distiller) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--tensorboard", f"cannot be imported ({error})", "the package tensorboard",
                "pip install 'stars-deploy[tensorboard]', or leave it out: the same numbers are in distill.jsonl",
            ) from error  # fmt: skip
        if distiller.step == 0:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer: Any = SummaryWriter(str(folder), purge_step=distiller.step + 1)  # type: ignore[no-untyped-call]

    def round_done(self, distiller: Distiller) -> None:
        """Log the finished round; with images as often as gradients are measured."""
        entry = distiller.history[-1]
        for name, value in entry.items():
            self._writer.add_scalar(name, value, distiller.step)
        if any(name.startswith("gradient/") for name in entry):
            sheet = contact_sheet(distiller.pool, distiller.teacher)
            self._writer.add_image("synthetic", sheet, distiller.step, dataformats="HWC")
        self._writer.flush()

    def finished(self, distiller: Distiller) -> None:
        """Close the log."""
        self._writer.close()


def _line(entry: Mapping[str, float]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"
