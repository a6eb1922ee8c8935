"""From content to one HTML file with everything in it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from stars_deploy.artifacts import written_whole
from stars_deploy.comparison import scored_by
from stars_deploy.errors import ArtifactError
from stars_deploy.page.content import PageContent
from stars_deploy.page.figures import PARTS, make_figures, make_raster
from stars_deploy.page.images import MOST, data_uri
from stars_deploy.page.numbers import Numbers, escaped

#: What a browser would take for the end of a script, or of a line of one.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render(content: PageContent) -> str:
    """Return the page as HTML.

    Everything that a report says is escaped, in the text as in the data of the plots; the page allows itself no request
    (Content-Security-Policy), runs no script but its own two, and its tables are there without JavaScript.

    Raises
    ------
    ArtifactError
        If the report lacks what every page shows.
    """
    try:
        return _render(content)
    except (AttributeError, IndexError, KeyError, TypeError, UndefinedError, ValueError) as error:
        got = f"lacks what a page shows, or holds something else there ({type(error).__name__}: {error})"
        raise ArtifactError("report", got, "the report.json of a finished build", "build again") from error


def _render(content: PageContent) -> str:
    report = content.report
    numbers = Numbers(report)
    figures = make_figures(report)
    if content.raster is not None:
        figures["raster"] = make_raster(content.raster.spikes)
    rows = report.get("sweep", {}).get("rows", [])
    plotly, script = get_plotlyjs().replace("\r\n", "\n"), _asset("page.js")
    environment = Environment(
        loader=PackageLoader("stars_deploy.page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html").render(
        title=content.title,
        report=report,
        figures=figures,
        rows=rows,
        measure=scored_by(rows) if rows else "accuracy",
        parts=PARTS,
        raster=content.raster,
        images=_images(content),
        made=0 if content.synthetic is None else len(content.synthetic.images),
        n=numbers.number,
        interval=numbers.interval,
        corners=numbers.corners,
        key=escaped,
        style=Markup(_asset("style.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        allowed=Markup(" ".join(_digest(text) for text in (plotly, script))),
        data=Markup(_json(figures)),
    )


def write_page(content: PageContent, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all.

    Raises
    ------
    ArtifactError
        If the file cannot be written.
    """
    text = render(content)
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _digest(script: str) -> str:
    """Return what a Content-Security-Policy calls a script by."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") + "'"


def _asset(name: str) -> str:
    return (resources.files("stars_deploy.page") / "templates" / name).read_text(encoding="utf-8")


def _json(figures: dict[str, Any]) -> str:
    text = json.dumps(figures, ensure_ascii=False, allow_nan=False)
    return "".join(_UNSAFE.get(character, character) for character in text)


def _images(content: PageContent) -> list[tuple[str, str]]:
    sheet = content.synthetic
    if sheet is None:
        return []
    return [(data_uri(image), name) for image, name in zip(sheet.images[:MOST], sheet.classes, strict=False)]
