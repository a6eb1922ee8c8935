"""Images as data that a page holds itself."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

#: Images on a page, at most.
MOST = 40


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """Return one image (C, H, W) of 1 or 3 channels as a PNG in a data URI; of other channels the first is shown."""
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
