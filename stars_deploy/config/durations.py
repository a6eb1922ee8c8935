"""Durations as people write them: ``90``, ``90s``, ``10m``, ``1.5h``."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(given: Any) -> Any:
    """Return the seconds that a text such as ``10m`` means; anything but a text as it is, for pydantic to judge.

    Raises
    ------
    ValueError
        If a text is not a duration.
    """
    if not isinstance(given, str):
        return given
    match = _FORM.fullmatch(given)
    if match is None:
        raise ValueError("a duration is a number of seconds, or a number with s, m or h, such as 10m")
    return float(match[1]) * _SECONDS[match[2]]


#: A duration [s], greater than 0.
Seconds = Annotated[float, BeforeValidator(seconds_of), Field(gt=0, lt=math.inf)]
