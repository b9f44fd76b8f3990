"""The site of `asv publish`: tools/vendor_site.py makes it whole, and a headless Chromium draws every measured point.

`nox -s site` runs all of it; the tests marked `browser` look at .asv/html and .asv/results of the current directory,
and leave screenshots in .asv/screenshots.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import itertools
import json
import math
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from browsing import chromium

import vendor_site

ASV = Path(".asv")
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
DRAWN = ("track_tokens_per_second", "track_acceptance_rate")  # the tracks whose graphs are looked at
FEWEST_COLOURS = 300  # of a screenshot; asv's error page has 254, the shades of its text
LINES = 8  # that asv draws at most, unless it is told which


# tools/vendor_site.py ------------------------------------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """npm's folder with a made-up content in each file."""
    for name, _ in vendor_site.KNOWN.values():
        file = tmp_path / "modules" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content of {name}")
        (tmp_path / "modules" / name.split("/")[0] / "LICENSE.txt").write_text("a licence")
    return tmp_path / "modules"


@pytest.fixture
def published(tmp_path: Path, modules: Path) -> Path:
    """A page that asks for all that asv's does, with the hashes of the made-up contents."""
    tags = ['<script src="asv.js"></script><a href="https://elsewhere.example/">a link fetches nothing</a>']
    for end, (name, _) in vendor_site.KNOWN.items():
        digest = base64.b64encode(hashlib.sha256((modules / name).read_bytes()).digest()).decode()
        safe = f'integrity="sha256-{digest}" crossorigin="anonymous"'
        tags.append(f'<script src="https://cdn.example{end}" {safe} onerror="f()"></script>')
    site = tmp_path / "html"
    site.mkdir()
    (site / "index.html").write_text("\n".join(tags))
    return site


def test_a_site_made_whole_has_what_it_asked_for_beside_it(published: Path, modules: Path) -> None:
    said = vendor_site.make_whole(published, modules)
    page = (published / "index.html").read_text()
    assert "cdn.example" not in page
    assert "integrity" not in page
    assert '<script src="vendor/jquery.min.js" onerror="f()"></script>' in page
    assert "https://elsewhere.example/" in page
    assert (published / "vendor" / "jquery.flot.js").read_text() == "content of flot/jquery.flot.js"
    assert (published / "vendor" / "LICENSE.flot.txt").read_text() == "a licence"
    assert said[0] == "jquery.min.js: the file that asv asks for"
    assert sum("the file that asv asks for" in line for line in said) == 5


def test_a_whole_site_is_left_alone(
    published: Path, modules: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vendor_site, "install", lambda folder: modules)
    vendor_site.main(published)
    page = (published / "index.html").read_text()
    monkeypatch.setattr(vendor_site, "install", None)  # a second install would raise
    vendor_site.main(published)
    assert (published / "index.html").read_text() == page
    assert capsys.readouterr().out.endswith("fetches nothing from other sites\n")


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/jquery-4.0.0.min.js"></script>',
        "<script src='//cdn.example/jquery-4.0.0.min.js'></script>",
        '<link rel="stylesheet"\n href="http://cdn.example/jquery-4.0.0.min.js">',
    ],
)
def test_what_a_newer_asv_asks_for_is_refused_in_one_line(published: Path, modules: Path, tag: str) -> None:
    with (published / "index.html").open("a") as page:
        page.write(tag)
    before = (published / "index.html").read_text()
    with pytest.raises(SystemExit, match=r"^asv's page asks for \S*//cdn.example/jquery-4\.0\.0\.min\.js, which .*$"):
        vendor_site.make_whole(published, modules)
    assert (published / "index.html").read_text() == before


def test_a_file_of_another_content_is_refused(published: Path, modules: Path) -> None:
    (modules / "jquery/dist/jquery.min.js").write_text("another content")
    with pytest.raises(SystemExit, match=r"jquery-3\.3\.1\.min\.js shall have sha256 .* has .*"):
        vendor_site.make_whole(published, modules)


def test_without_a_site_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run: asv run && asv publish"):
        vendor_site.main(tmp_path)


def test_the_lock_file_names_hashes_and_no_hosts() -> None:
    lock = json.loads((vendor_site.PACKAGES / "package-lock.json").read_text())
    wanted = json.loads((vendor_site.PACKAGES / "package.json").read_text())["dependencies"]
    packages = {name.removeprefix("node_modules/"): each for name, each in lock["packages"].items() if name}
    assert {name: each["version"] for name, each in packages.items()} == wanted
    assert set(wanted) == {name.split("/")[0] for name, _ in vendor_site.KNOWN.values()}
    assert all(each["integrity"].startswith("sha512-") and "resolved" not in each for each in packages.values())


# The site in a browser -----------------------------------------------------------------------------------------------


class Site:
    """A published folder: what its index lists, what was measured, and what each graph should show."""

    def __init__(self, folder: Path, results: Path) -> None:
        self.folder = folder
        self.benchmarks: dict[str, Any] = json.loads((folder / "index.json").read_text())["benchmarks"]
        self.results = [
            json.loads(file.read_text()) for file in results.glob("*/*.json") if file.name != "machine.json"
        ]

    def pretty(self, name: str) -> str:
        return self.benchmarks[name].get("pretty_name") or name.partition(".")[2]

    def values(self, name: str) -> Iterator[tuple[int, tuple[str, ...], float]]:
        """The commit's date in ms, the parameters and the number of every measurement that asv would publish."""
        for result in self.results:
            row = dict(zip(result["result_columns"], result["results"].get(name, []), strict=False))
            if row and row["result"] is not None and row["version"] == self.benchmarks[name]["version"]:
                for chosen, value in zip(itertools.product(*row["params"]), row["result"], strict=True):
                    if value is not None and math.isfinite(value):
                        yield result["date"], chosen, value

    def view(self, name: str) -> tuple[str, list[tuple[str, ...]]]:
        """The address of a graph by date, which alone has marks on its x axis, and the parameters of its lines: all
        values of the first, and of each other the first that was measured."""
        benchmark, query = self.benchmarks[name], [("x-axis-scale", "date")]
        seen = {chosen for _, chosen, _ in self.values(name)}
        every = [chosen for chosen in itertools.product(*benchmark["params"]) if chosen in seen]
        lines = [chosen for chosen in every if chosen[1:] == every[0][1:]][:LINES]
        for at, param in enumerate(benchmark["param_names"]):
            query += [(f"p-{param}", value) for value in dict.fromkeys(line[at] for line in lines)]
        return f"#{name}?{urlencode(query, quote_via=quote)}", lines

    def points(self, name: str, lines: list[tuple[str, ...]]) -> Counter[tuple[int, float]]:
        return Counter((date, value) for date, chosen, value in self.values(name) if chosen in lines)


@pytest.fixture(scope="module")
def site() -> Site:
    if not (ASV / "html" / "index.json").is_file():
        pytest.fail(f"no site in {ASV / 'html'}: run: asv run && asv publish", pytrace=False)
    return Site(ASV / "html", ASV / "results")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(*QUIET) as started:
        yield started


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's address on loopback."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def opened(browser: Any, site: Site, address: str = "") -> Iterator[tuple[Any, list[str]]]:
    """The site's page at that address, once nothing is being fetched any more, and what went wrong on it so far."""
    wrong: list[str] = []
    tried = {name for result in site.results for name in result["results"]}
    unmeasured = {f"/{quote(name)}.json" for name in site.benchmarks.keys() - tried}

    def fetch(route: Any) -> None:
        if route.request.url.startswith(home):
            route.continue_()
        else:
            wrong.append(f"leaves loopback: {route.request.url}")
            route.abort()

    def answered(response: Any) -> None:
        if response.status >= 400 and not any(name in response.url for name in unmeasured):
            wrong.append(f"{response.status}: {response.url}")

    def logged(message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):  # which `answered` has
            wrong.append(f"console: {message.text}")

    with served(site.folder) as home:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, timezone_id="UTC")
        context.route("**/*", fetch)
        page = context.new_page()
        page.on("response", answered)
        page.on("console", logged)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.goto(home + address)
        page.wait_for_load_state("networkidle")
        yield page, wrong
        context.close()


def shoot(page: Any, name: str) -> None:
    """Take the page's picture, and see that there is something on it."""
    from PIL import Image

    file = ASV / "screenshots" / f"{name}.png"
    page.screenshot(path=file)
    with Image.open(file) as picture:
        colours = picture.convert("RGB").getcolors(picture.width * picture.height)
    assert len(colours) >= FEWEST_COLOURS, f"{file} has {len(colours)} colours: is it blank?"


def drawn(page: Any) -> dict[str, Any]:
    """What flot has drawn: the points within the axes, as date and value, the pixels that are no shade of grey, as only
    lines and points are, and the unit beside the y axis."""
    page.wait_for_function("$('#main-graph').data('plot') !== undefined")
    found: dict[str, Any] = page.evaluate(
        """() => {
            const plot = $('#main-graph').data('plot'), {xaxis: x, yaxis: y} = plot.getAxes();
            const within = p => p[1] !== null && x.min <= p[0] && p[0] <= x.max && y.min <= p[1] && p[1] <= y.max;
            const marked = plot.getData().filter(line => line.points.show);
            const canvas = plot.getCanvas(), context = canvas.getContext("2d");
            const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
            let pixels = 0;
            for (let at = 0; at < bytes.length; at += 4) {
                const shades = bytes.subarray(at, at + 3);
                pixels += Math.max(...shades) - Math.min(...shades) > 60;
            }
            return {points: marked.flatMap(line => line.data.filter(within)), pixels, unit: y.options.axisLabel};
        }"""
    )
    return {**found, "points": Counter((int(date), value) for date, value in found["points"])}


@pytest.mark.browser
def test_the_grid_lists_every_benchmark_and_draws_what_was_measured(site: Site, browser: Any) -> None:
    with opened(browser, site) as (page, wrong):
        boxes = page.locator(".benchmark-container")
        page.wait_for_function(f"$('.benchmark-container').length >= {len(site.benchmarks)}")
        for box in boxes.all():  # one is drawn when it is scrolled to
            box.scroll_into_view_if_needed()
        page.wait_for_load_state("networkidle")
        listed = {
            box.get_attribute("href"): (box.locator(".benchmark-text").inner_text(), box.locator("canvas").count() > 0)
            for box in boxes.all()
        }
        page.evaluate("window.scrollTo(0, 0)")
        shoot(page, "grid")
    measured = {name for name in site.benchmarks if any(site.values(name))}
    wanted = {f"#{name}": site.pretty(name) for name in site.benchmarks}
    assert {name: text for name, (text, _) in listed.items()} == wanted
    assert {f"#{name}" for name in measured} <= {name for name, (_, canvas) in listed.items() if canvas}
    assert wrong == []


@pytest.mark.browser
@pytest.mark.parametrize("track", DRAWN)
def test_the_graphs_show_a_point_a_commit(site: Site, browser: Any, track: str) -> None:
    names = [name for name in site.benchmarks if name.endswith(f".{track}") and any(site.values(name))]
    assert names, f"no {track} was measured"
    for name in names:
        address, lines = site.view(name)
        with opened(browser, site, address) as (page, wrong):
            found = drawn(page)
            wanted = site.points(name, lines)
            lost = len({date for date, _ in wanted} - {date for date, _ in found["points"]})
            assert not lost, f"{name}: {lost} measured commits are not drawn: are they on a branch of asv.conf.json?"
            assert found["points"] == wanted, name
            assert found["pixels"] >= 10, name
            assert found["unit"] == site.benchmarks[name]["unit"] != "unit", name
            assert page.locator("#error").is_hidden()
            shoot(page, name)
            assert wrong == [], name


@pytest.mark.browser
@pytest.mark.parametrize("name", ["summarylist", "regressions"])
def test_the_tables_can_be_sorted(site: Site, browser: Any, name: str) -> None:
    with opened(browser, site, f"#/{name}") as (page, wrong):
        header = page.locator("th:visible").first
        for way in ("asc", "desc", "asc"):
            header.click()
            if f"sorting-{way}" in (header.get_attribute("class") or ""):
                break
        page.wait_for_selector("th.sorting-asc, th.sorting-desc")
        shoot(page, name)
        assert wrong == []


@pytest.fixture
def spoilt(site: Site, tmp_path: Path) -> Site:
    """A copy to plant faults in."""
    shutil.copytree(site.folder, tmp_path / "html")
    return Site(tmp_path / "html", ASV / "results")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ('<script src="https://cdn.invalid/more.js"></script>', "leaves loopback: https://cdn.invalid/more.js"),
        ('<script src="missing.js"></script>', "404: "),
        ("<script>undefined_function()</script>", "error: undefined_function is not defined"),
        ("<script>console.error('out of order')</script>", "console: out of order"),
    ],
)
def test_a_planted_fault_of_the_page_is_noticed(spoilt: Site, browser: Any, fault: str, complaint: str) -> None:
    index = spoilt.folder / "index.html"
    index.write_text(index.read_text().replace("</head>", f"{fault}</head>"))
    with opened(browser, spoilt) as (_, wrong):
        assert len(wrong) == 1
        assert wrong[0].startswith(complaint)


@pytest.mark.browser
def test_a_point_that_is_not_drawn_is_noticed(spoilt: Site, browser: Any) -> None:
    name = next(name for name in spoilt.benchmarks if name.endswith(DRAWN[0]) and any(spoilt.values(name)))
    for file in spoilt.folder.glob(f"graphs/**/{name}.json"):
        file.write_text(json.dumps(json.loads(file.read_text())[:-1]))
    address, lines = spoilt.view(name)
    with opened(browser, spoilt, address) as (page, _):
        assert drawn(page)["points"] < spoilt.points(name, lines)
