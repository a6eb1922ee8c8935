"""What a page is made from: a report, one sample's spikes, and synthetic images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Raster:
    """The spikes of one sample.

    Parameters
    ----------
    spikes : mapping of str to array of bool, (T, neurons)
        Of each layer; some neurons only, evenly spaced, where there are many.
    neurons : mapping of str to int
        All neurons of each layer.
    sample : str
        Which sample it is.
    predicted : str
        The class that the network answers.
    label : str or None
        The true class; None where it is not known.
    """

    spikes: Mapping[str, npt.NDArray[np.bool_]]
    neurons: Mapping[str, int]
    sample: str
    predicted: str
    label: str | None


@dataclass(frozen=True, kw_only=True)
class SyntheticSheet:
    """Images made from the teacher alone, uint8 (N, C, H, W), with the class that the teacher gives to each."""

    images: npt.NDArray[np.uint8]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """Everything on a page.

    Parameters
    ----------
    title : str
        What the run is called.
    report : mapping
        The content of ``report.json``: every number on the page is one of it.
    raster : Raster or None
    synthetic : SyntheticSheet or None
    """

    title: str
    report: Mapping[str, Any]
    raster: Raster | None = None
    synthetic: SyntheticSheet | None = None
