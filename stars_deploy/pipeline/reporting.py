"""``report.html`` of a build: its report, one sample's spikes and its synthetic images, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.data import EvaluationSet
from stars_deploy.engine import FastEngine
from stars_deploy.errors import ArtifactError, StarsDeployError
from stars_deploy.page import PageContent, Raster, write_page
from stars_deploy.page.content import SyntheticSheet
from stars_deploy.pipeline.directory import PAGE, REPORT, RunDirectory, as_pixels
from stars_deploy.pipeline.models import Model, evaluation_set, open_model
from stars_deploy.report import SCHEMA_VERSION

#: Neurons of a layer in the raster, at most.
MOST_NEURONS = 96


def write_report_page(place: str | Path, out: str | Path | None = None, *, data: EvaluationSet | None = None) -> Path:
    """Write the page of a finished build and return its path.

    Parameters
    ----------
    place : path
        The run directory.
    out : path, optional
        By default ``report.html`` in it; the manifest is made anew then.
    data : EvaluationSet, optional
        Where the caller has it; else that of the build is opened, if it is there.

    Raises
    ------
    ArtifactError
        If the folder holds no report, or one of an older version.
    """
    directory = RunDirectory(Path(place))
    report = _report(directory)
    model = open_model(directory.path)
    path = directory.file(PAGE) if out is None else Path(out)
    content = PageContent(
        title=directory.path.resolve().name,
        report=report,
        raster=_raster(model, _evaluated(model) if data is None else data),
        synthetic=_synthetic(directory, report["teacher"]["labels"]),
    )
    write_page(content, path)
    if out is None:
        directory.seal()
    return path


def _report(directory: RunDirectory) -> dict[str, Any]:
    file = directory.file(REPORT)
    if not file.is_file():
        raise ArtifactError(
            str(directory.path), f"holds no {REPORT}", "the folder of a finished build",
            "build first, or finish it with `stars-deploy build --resume`",
        )  # fmt: skip
    report = directory.report()
    if not isinstance(report, dict) or report.get("schema") != SCHEMA_VERSION:
        found = report.get("schema") if isinstance(report, dict) else None
        raise ArtifactError(str(file), f"schema {found}", f"schema {SCHEMA_VERSION}", "build again")
    return report


def _evaluated(model: Model) -> EvaluationSet | None:
    """Return the evaluation set of the build; a page is made without where it is not there any more."""
    try:
        return evaluation_set(model, None, None, None)
    except StarsDeployError:
        return None


def _raster(model: Model, data: EvaluationSet | None) -> Raster:
    """Return the spikes of the first image: of the evaluation set, else of the held-out synthetic ones."""
    graph = model.graph
    label: str | None = None
    image: npt.NDArray[Any]
    if data is not None:
        image, sample = data.images[:1], f"first image of {data.name}"
        label = _name(graph.labels, int(data.labels[0])) if data.labels is not None else None
    else:
        if model.directory is None:
            raise ArtifactError(str(model.file), "comes without images", "the folder of a build")
        image, sample = as_pixels(model.directory.images().held_out[:1]), "first held-out synthetic image"
    names = [population.name for population in graph.populations]
    run = FastEngine(graph, threads=1).run(graph.input.quantize(image), record=names)
    spikes, neurons = {}, {}
    for name in names:
        fired = run.spikes[name][:, 0].reshape(graph.timesteps, -1)
        neurons[name] = fired.shape[1]
        chosen = np.unique(np.linspace(0, fired.shape[1] - 1, min(MOST_NEURONS, fired.shape[1])).round().astype(int))
        spikes[name] = fired[:, chosen]
    return Raster(
        spikes=spikes, neurons=neurons, sample=sample, predicted=_name(graph.labels, int(run.classes()[0])), label=label
    )


def _synthetic(directory: RunDirectory, labels: Sequence[str]) -> SyntheticSheet:
    images = directory.images()
    return SyntheticSheet(
        images=images.held_out, classes=tuple(_name(labels, int(number)) for number in images.teacher_classes)
    )


def _name(labels: Sequence[str], number: int) -> str:
    return str(labels[number]) if number < len(labels) else str(number)
