"""The page in a real headless Chromium: it renders, says nothing wrong, asks for nothing, its numbers are the report's.

Debian's chromium and chromium-driver; skipped where they are missing, unless STARS_PEERS_REQUIRED is set.
"""

import copy
import itertools
import json
import os
import shutil
import tempfile

import pytest
from page_reports import content_of, make_report

from stars_deploy.page import write_page
from stars_deploy.page.numbers import find

pytestmark = pytest.mark.slow

#: Without the background flags Chromium itself asks for things, whatever the page does.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def missing(reason):
    if os.environ.get("STARS_PEERS_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(content_of(make_report()), path)
    return path


@pytest.fixture
def browse(page):
    """A function that opens the page and returns the browser; all are closed at the end."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        missing("no chromium and chromedriver on the path")
    try:
        from selenium import webdriver as selenium
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        missing("no selenium")

    opened = []
    folder = tempfile.mkdtemp()

    def open_page(width=1200, *, dark=False, javascript=True, file=page):
        options = selenium.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={tempfile.mkdtemp(dir=folder)}", f"--window-size={width},900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = selenium.Chrome(options=options, service=Service(driver))
        opened.append(browser)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        if not javascript:
            browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        if width < 500:
            browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        browser.get(file.as_uri())
        return browser

    yield open_page
    for browser in opened:
        browser.quit()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 390])
def test_it_renders_without_complaint_or_request(browse, page, width, dark):
    browser = browse(width, dark=dark)
    plots = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => [p.id, p.querySelectorAll('svg').length,"
        " p.querySelectorAll('.trace, .points, .bars').length, p.getBoundingClientRect().width])"
    )
    assert len(plots) == 10
    for name, pictures, traces, wide in plots:
        assert pictures and traces and 200 < wide <= width, (name, pictures, traces, wide)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # Chromium's own first page asks for its parts before ours is opened.
    urls = [params["request"]["url"] for params in asked if params["documentURL"] == page.as_uri()]
    assert [url for url in urls if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    overflow = browser.execute_script("return document.scrollingElement.scrollWidth - window.innerWidth")
    assert overflow <= 0


def test_its_numbers_are_those_of_the_report(browse):
    shown = browse().execute_script(
        "return [...document.querySelectorAll('[data-path]')]"
        ".map(n => [n.dataset.path, n.dataset.value, n.textContent])"
    )
    report = make_report()
    assert len(shown) > 300
    for path, value, text in shown:
        assert json.loads(value) == find(report, path) and text.strip(), path


def test_plots_follow_the_colours_of_the_page(browse):
    ink = "return getComputedStyle(document.querySelector('#plot-energy .xtick text')).fill"
    paper = "return getComputedStyle(document.body).backgroundColor"
    browser = browse()
    light = browser.execute_script(ink), browser.execute_script(paper)
    scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    dark = browser.execute_script(ink), browser.execute_script(paper)
    assert light[0] != dark[0] and light[1] != dark[1]


def test_buttons_recolour_the_core_map(browse):
    browser = browse()
    colours = "return [...document.querySelectorAll('#plot-cores .point')].map(p => getComputedStyle(p).fill)"
    before = browser.execute_script(colours)
    browser.execute_script(
        "document.querySelectorAll('#plot-cores .updatemenu-button')[1].dispatchEvent(new MouseEvent('click'))"
    )
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    assert before and browser.execute_script(colours) != before
    assert browser.get_log("browser") == []


def test_a_finger_on_a_plot_scrolls_the_page(browse):
    browser = browse(390)
    browser.execute_script("document.getElementById('plot-energy').scrollIntoView({block: 'center'})")
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    before = browser.execute_script("return window.scrollY")

    def touch(kind, *places):
        points = [{"x": 195, "y": y} for y in places]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 450)
    for y in range(440, 240, -10):
        touch("touchMove", y)
        browser.execute_async_script("setTimeout(arguments[0], 16)")
    touch("touchEnd")
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    assert browser.execute_script("return window.scrollY") - before > 100


def test_names_become_no_links(browse, tmp_path):
    hostile, link = copy.deepcopy(make_report()), '<a href="https://example.org/">layer</a>'
    for layer in (*hostile["counts"]["per_layer"], *hostile["energy_j"]["by_layer"]):
        layer["name"] = link
    for core in hostile["hardware"]["core_map"]:
        core["layer"] = link
    file = tmp_path / "hostile.html"
    write_page(content_of(hostile), file)
    browser = browse(file=file)
    assert browser.execute_script("return document.querySelectorAll('a').length") == 0
    assert link in browser.execute_script("return document.querySelector('#plot-rates .xtick text').textContent")


def test_cores_of_many_chips_stay_apart_at_phone_width(browse, tmp_path):
    many = copy.deepcopy(make_report())
    core, columns = many["hardware"]["core_map"][0], many["hardware"]["mesh"][0]
    places = [(x, y) for y in range(4) for x in range(4 * columns) for _ in range(many["hardware"]["cores_per_tile"])]
    many["hardware"].update(
        chips=4, core_map=[{**core, "core": index, "x": x, "y": y} for index, (x, y) in enumerate(places)]
    )
    file = tmp_path / "many.html"
    write_page(content_of(many), file)
    boxes = browse(390, file=file).execute_script(
        "return [...document.querySelectorAll('#plot-cores .point')].map(p => p.getBoundingClientRect())"
        ".map(b => [b.left, b.right, b.top])"
    )
    highest = min(top for _, _, top in boxes)
    row = sorted((left, right) for left, right, top in boxes if top - highest < 1)
    assert len(row) == 8 * columns and all(one[1] <= other[0] for one, other in itertools.pairwise(row))


def test_error_bars_and_buttons_can_be_read_in_the_dark(browse):
    browser = browse(dark=True)
    ink = browser.execute_script("return getComputedStyle(document.body).color")
    bars = browser.execute_script(
        "return [...document.querySelectorAll('#plot-parts path.yerror')].map(p => getComputedStyle(p).stroke)"
    )
    assert bars and set(bars) == {ink}
    x, y = browser.execute_script(
        "const button = document.querySelectorAll('#plot-cores .updatemenu-button')[1];"
        "button.scrollIntoView({block: 'center'}); const at = button.getBoundingClientRect();"
        "return [at.x + at.width / 2, at.y + at.height / 2]"
    )
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    hovered = browser.execute_script(
        "return getComputedStyle(document.querySelector('.updatemenu-button:hover rect')).fill"
    )
    assert max(int(part) for part in hovered[4:-1].split(",")) < 100


def test_printed_tables_are_not_cut(browse):
    browser = browse(718)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
    )
    assert wide == 0


def test_its_tables_are_there_without_javascript(browse):
    browser = browse(javascript=False)
    tree = browser.execute_cdp_cmd("DOMSnapshot.captureSnapshot", {"computedStyles": []})
    texts = [tree["strings"][index] for index in tree["documents"][0]["layout"]["text"] if index >= 0]
    shown = " ".join(texts)
    assert "limit of a core" in shown and "Effective_ACs" in shown and "within-tile spike" in shown
    closed = browse().execute_script("return document.querySelectorAll('details.data[open]').length")
    assert closed == 0  # with JavaScript the plots show the same
