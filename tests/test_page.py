"""The page without a browser: what it says, and what it must not do."""

import base64
import copy
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from page_reports import content_of, make_report

from stars_deploy.errors import ArtifactError
from stars_deploy.page import PageContent, Raster, render, write_page
from stars_deploy.page.content import SyntheticSheet
from stars_deploy.page.figures import make_figures
from stars_deploy.page.numbers import Numbers, display, escaped, find

NASTY = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> & <!-- \u2028'


class Page(HTMLParser):
    """Collects what a page says."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.numbers, self.figures, self._inside = [], {}, "", None
        self.words = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "data-path" in attributes:
            self.numbers.setdefault(attributes["data-path"], []).append(attributes["data-value"])
        if tag == "script" and attributes.get("id") == "figures":
            self._inside = "figures"

    def handle_endtag(self, tag):
        if tag == "script":
            self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.figures += data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture(scope="module")
def page(report):
    return Page(render(content_of(report)))


def test_every_number_is_that_of_the_report(page, report):
    assert len(page.numbers) > 300
    for path, values in page.numbers.items():
        assert set(values) == {json.dumps(find(report, path))}, path


def test_what_matters_is_there(page):
    for path in (
        "accuracy.teacher", "accuracy.student", "accuracy.quantized", "fidelity.quantized", "energy_j.total.low",
        "energy_j.dynamic.high", "energy_j.static.nominal", "latency_s.first_output.nominal", "hardware.cores",
        "sweep.rows.0.energy_total_j_high", "ann.tiers.0.energy_j.nominal", "counts.neurobench.effective_acs",
        "hardware.constants.0.nominal", "verification.netx.compared_spikes", "energy_j.by_layer.0.parts.messages",
    ):  # fmt: skip
        assert path in page.numbers, path
    words = " ".join(" ".join(page.words).split())
    for text in (
        "RCA and TAR are reconstructed from the abstract", "neurocore bound, host and I/O excluded",
        "Made from the teacher alone", "nothing was measured on one", "What is not in these numbers", "identical",
    ):  # fmt: skip
        assert text in words, text


def test_every_plot_has_its_place_and_its_data(page):
    places = {attributes["id"][5:] for tag, attributes in page.tags if attributes.get("id", "").startswith("plot-")}
    figures = json.loads(page.figures)
    assert places == set(figures) == {
        "score", "energy", "pareto", "parts", "layers", "rates", "activity", "raster", "cores", "latency",
    }  # fmt: skip
    assert all(figure["data"] for figure in figures.values())
    labelled = [attributes for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert len(labelled) == len(places) and all(attributes["aria-label"] for attributes in labelled)


def test_plots_show_the_numbers_of_the_report(page, report):
    figures, rows = json.loads(page.figures), report["sweep"]["rows"]
    assert figures["score"]["data"][0]["y"] == [100 * row["accuracy"] for row in rows]
    total = figures["energy"]["data"][0]
    assert total["y"] == [1e6 * row["energy_total_j_nominal"] for row in rows]
    tops = [value + more for value, more in zip(total["y"], total["error_y"]["array"], strict=True)]
    assert tops == pytest.approx([1e6 * row["energy_total_j_high"] for row in rows])
    stacked = [sum(trace["y"][index] for trace in figures["layers"]["data"]) for index in range(3)]
    assert stacked == pytest.approx([1e6 * layer["dynamic"] for layer in report["energy_j"]["by_layer"]])
    assert len(figures["cores"]["data"][0]["x"]) == report["hardware"]["cores"]
    best = next(trace for trace in figures["pareto"]["data"] if trace["name"] == "Pareto-best")
    assert best["customdata"] == [row["reason"] for row in rows if row["pareto"]]


def test_only_its_own_scripts_may_run(report):
    text = render(content_of(report))
    policy = re.search(r"script-src ([^;]+);", text)[1]
    bodies = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    assert policy == " ".join(f"'sha256-{digest}'" for digest in digests) and len(digests) == 2


def test_the_raster_has_a_table(page, report):
    spikes = content_of(report).raster.spikes
    shown = " ".join(" ".join(page.words).split())
    first = " ".join(str(int(fired[0].sum())) for fired in spikes.values())
    assert f"of this sample alone timestep {' '.join(spikes)} 1 {first}" in shown


def test_cores_of_any_tile_stay_within_it(report):
    crowded = copy.deepcopy(report)
    core = crowded["hardware"]["core_map"][0]
    crowded["hardware"].update(cores_per_tile=6, core_map=[{**core, "core": index} for index in range(6)])
    trace = make_figures(crowded)["cores"]["data"][0]
    assert len(set(zip(trace["x"], trace["y"], strict=True))) == 6
    for axis in ("x", "y"):
        assert all(abs(place - core[axis]) < 0.5 for place in trace[axis])


def test_a_core_says_what_it_could_hold(page, report):
    core, limits = report["hardware"]["core_map"][0], report["hardware"]["utilisation"]
    said = json.loads(page.figures)["cores"]["data"][0]["text"][0]
    assert f"{core['neurons']:,} of {limits['neurons'][1]:,.0f} neurons" in said and "on chip 0" in said
    step = core["seconds_per_step"].index(max(core["seconds_per_step"]))
    assert f"hardware.core_map.0.seconds_per_step.{step}" in page.numbers


def test_cores_of_a_tile_do_not_cover_each_other(page):
    trace = json.loads(page.figures)["cores"]["data"][0]
    places = list(zip(trace["x"], trace["y"], strict=True))
    assert len(set(places)) == len(places)


def test_the_page_asks_for_nothing(page):
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy and "unsafe-eval" not in policy
    assert "script-src 'unsafe" not in policy
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)


def test_strangers_words_stay_words(report):
    hostile = copy.deepcopy(report)
    hostile["teacher"]["spec"] = hostile["hardware"]["description"] = NASTY
    hostile["counts"]["per_layer"][0]["name"] = hostile["hardware"]["core_map"][0]["layer"] = NASTY
    hostile["sweep"]["rows"][0]["reason"] = NASTY
    raster = Raster(
        spikes={NASTY: np.ones((2, 3), bool)}, neurons={NASTY: 3}, sample=NASTY, predicted=NASTY, label=NASTY
    )
    sheet = SyntheticSheet(images=np.zeros((1, 1, 4, 4), np.uint8), classes=(NASTY,))
    clean = render(content_of(report))
    text = render(PageContent(title=NASTY, report=hostile, raster=raster, synthetic=sheet))
    # plotly.js itself holds such words: what is compared is how often.
    for dangerous in ("<script>alert", 'onerror="alert', "<img src=x"):
        assert text.count(dangerous) == clean.count(dangerous) == 0, dangerous
    found = Page(text)
    assert len([tag for tag, _ in found.tags if tag == "script"]) == 3
    assert json.loads(found.figures)["raster"]["data"][0]["name"] == html.escape(NASTY, quote=False)
    # plotly.js takes text for HTML: no tag but those that the templates of hovers write themselves.
    tags = set(re.findall(r"</?[a-z]+", json.dumps(json.loads(found.figures))))
    assert tags <= {"<br", "<extra", "</extra"}
    assert "\u2028" not in found.figures


def test_what_is_not_known_is_a_dash(report):
    bare = copy.deepcopy(report)
    bare["accuracy"].update(teacher=None, student=None, quantized=None)
    bare["evaluation"]["data"] = None
    del bare["sweep"]
    for tier in bare["ann"]["tiers"]:
        tier.update(energy_j=None, latency_s=None, accuracy=None)
    text = render(PageContent(title="bare", report=bare))
    found = Page(text)
    words = " ".join(" ".join(found.words).split())
    assert "accuracy.quantized" not in found.numbers and "fidelity.quantized" in found.numbers
    assert "no evaluation set" in words and "stars-deploy compare DIR" in words
    assert {"raster", "score", "pareto"}.isdisjoint(json.loads(found.figures))
    assert "nan" not in words.lower().split() and "None" not in words.split()


def test_fidelity_stands_in_for_the_accuracy_and_says_so(report):
    data_free = copy.deepcopy(report)
    for row in data_free["sweep"]["rows"]:
        row.update(
            accuracy=None, accuracy_low=None, accuracy_high=None, fidelity=0.5, fidelity_low=0.3, fidelity_high=0.7
        )
    found = Page(render(content_of(data_free)))
    assert json.loads(found.figures)["score"]["layout"]["yaxis"]["title"]["text"] == "fidelity [%]"
    assert "agreement with the teacher stands in" in " ".join(found.words)


def test_tables_are_open_without_javascript(page):
    tables = [attributes for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "data"]
    assert tables and all("open" in attributes for attributes in tables)


def test_a_page_is_written_whole(report, tmp_path):
    path = tmp_path / "page.html"
    write_page(content_of(report), path)
    size = path.stat().st_size
    assert 1 << 20 < size < 8 << 20
    with pytest.raises(ArtifactError, match="lacks what a page shows"):
        write_page(PageContent(title="broken", report={}), path)
    assert path.stat().st_size == size and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (0.97123, "percent", "97.12 %"), (12345.6, "count", "12,346"), (12.0, "count", "12"), (0.25, "count", "0.25"),
        (1.234e-6, "J", "1.23 µJ"), (0.0, "J", "0 J"), (2.5e-3, "s", "2.5 ms"), (3e6, "MAC", "3 MMAC"),
        (5e-15, "J", "5e-15 J"), (0.123456, "plain", "0.1235"), (65536.0, "plain", "65,536"), (9.996e-4, "s", "1 ms"),
        (0.9999, "J", "1 J"),
    ],
)  # fmt: skip
def test_numbers_as_text(value, style, text):
    assert display(value, style) == text


def test_paths():
    nested = {"a": [{"b.c": 1.5}], "flag": True, "endless": float("inf")}
    assert find(nested, "a.0." + escaped("b.c")) == 1.5
    assert find(nested, "a.1.b") is None and find(nested, "a.x") is None and find(nested, "nothing.at.all") is None
    numbers = Numbers(nested)
    assert str(numbers.number("flag")) == str(numbers.number("endless")) == str(numbers.number("none")) == "-"
    assert re.search(r'data-path="a.0.b\\.c" data-value="1.5">1.5<', str(numbers.number("a.0.b\\.c")))
