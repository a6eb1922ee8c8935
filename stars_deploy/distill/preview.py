"""Contact sheets: what the synthetic images look like, class by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from stars_deploy.artifacts import written_whole
from stars_deploy.distill.distiller import Distiller
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.teacher import Teacher

#: Images of a class in its row, and classes on a sheet, at most.
COLUMNS, ROWS = 16, 20
#: Newest images of the pool that are looked through for them.
LOOKED_THROUGH = 1024
#: Least height of an image on the sheet [pixels]: smaller ones are enlarged.
SEEN = 48
#: Width of the captions and height of a line of text [pixels].
CAPTION, LINE = 130, 14


class PreviewSheets:
    """Writes a sheet into a folder as often as gradients are measured, and one at the end.

    Parameters
    ----------
    folder : path
        Made when the first sheet is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def round_done(self, distiller: Distiller) -> None:
        """Write a sheet, if this is a round of those."""
        if any(name.startswith("gradient/") for name in distiller.history[-1]):
            self._write(distiller)

    def finished(self, distiller: Distiller) -> None:
        """Write the last sheet."""
        self._write(distiller)

    def _write(self, distiller: Distiller) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet = Image.fromarray(contact_sheet(distiller.pool, distiller.teacher))
        with written_whole(self.folder / f"step-{distiller.step:06d}.png") as draft:
            sheet.save(draft, format="PNG", optimize=True)


def contact_sheet(pool: ImagePool, teacher: Teacher) -> npt.NDArray[np.uint8]:
    """Return the newest images of a pool, (H, W, 3): a row for each class that the teacher sees in them.

    Images of other than three channels are shown by their first one, in grey.
    """
    images = pool.newest(LOOKED_THROUGH).flip(0)
    answers = teacher.predict(images.float().div(255).to(teacher.device)).cpu()
    scale = max(1, -(-SEEN // images.shape[2]))
    height, width = scale * images.shape[2] + 2, scale * images.shape[3] + 2
    shown = min(teacher.classes, ROWS)
    note = _note(teacher, len(images))
    page = Image.new("RGB", (CAPTION + COLUMNS * width, shown * height + LINE + 4), "white")
    pen = ImageDraw.Draw(page)
    for row in range(shown):
        found = images[answers == row]
        pen.text((4, row * height + height // 2 - LINE), f"{teacher.labels[row]:.20}", fill="black")
        pen.text((4, row * height + height // 2), f"{len(found)} of {len(images)}", fill="gray")
        for column, image in enumerate(found[:COLUMNS]):
            picture = _enlarged(image, scale)
            page.paste(picture, (CAPTION + column * width + 1, row * height + 1))
    pen.text((4, shown * height + 2), note, fill="gray")
    return np.asarray(page, dtype=np.uint8)


def _note(teacher: Teacher, count: int) -> str:
    parts = [f"the {count} newest synthetic images, newest first, by the teacher's answer"]
    if teacher.classes > ROWS:
        parts.append(f"classes {ROWS} to {teacher.classes - 1} are not shown")
    if teacher.input.shape[0] not in (1, 3):
        parts.append(f"channel 0 of {teacher.input.shape[0]}")
    return "; ".join(parts)


def _enlarged(image: torch.Tensor, scale: int) -> Image.Image:
    channels = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    pixels = channels.permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return Image.fromarray(pixels.contiguous().numpy())
