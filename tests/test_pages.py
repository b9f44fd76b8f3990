"""The documentation as a site: mkdocs.yml has a place for every page, and what is built asks nobody else for anything.

`nox -s docs` builds the site and runs all of it, without torch. The tests marked `built` look at build/site; those that
are marked `browser` as well open it in a headless Chromium, from the folder as it lies, and leave pictures in
build/screenshots.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import chromium

ROOT = Path(__file__).resolve().parents[1]
DOCS, SITE, PICTURES = ROOT / "docs", ROOT / "build" / "site", ROOT / "build" / "screenshots"
FETCHING = {"src", "srcset", "poster", "data"}
NOT_FETCHED = {"canonical", "next", "prev", "alternate", "author", "license"}  # links' rel that a browser only reads
ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""")
WIDTHS = (1280, 390)


# mkdocs.yml ----------------------------------------------------------------------------------------------------------


class Tags(yaml.SafeLoader):
    """YAML whose own tags (!ENV, !!python/...) are read as nothing."""


Tags.add_multi_constructor("", lambda loader, suffix, node: None)


def placed(nav: Any) -> Iterator[str]:
    """The pages of mkdocs' nav."""
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from placed(each)


def misplaced(nav: Any, there: set[str]) -> list[str]:
    """Pages without a place, with two, or that aren't there."""
    pages = list(placed(nav))
    twice = {page for page in pages if pages.count(page) > 1}
    return sorted([f"{page}: mkdocs.yml has no place for it" for page in there - {*pages}]
                  + [f"{page}: no such page in docs/" for page in {*pages} - there]
                  + [f"{page}: it has two places" for page in twice])  # fmt: skip


def test_every_page_has_its_place() -> None:
    """A page that is added to docs/ gets a line in mkdocs.yml's nav."""
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Tags)["nav"]
    assert misplaced(nav, {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}) == []


def test_a_page_without_a_place_is_seen() -> None:
    nav = [{"Start": ["index.md", {"More": "more.md"}]}, {"Twice": "more.md"}]
    assert misplaced(nav, {"index.md", "sweeping.md"}) == [
        "more.md: it has two places",
        "more.md: no such page in docs/",
        "sweeping.md: mkdocs.yml has no place for it",
    ]


# docs/reference ------------------------------------------------------------------------------------------------------


def public(source: str) -> set[str]:
    """The names that `__all__` of sybil/__init__.py has, dunders left out."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {name for name in ast.literal_eval(node.value) if not name.startswith("__")}
    return set()


def unexplained(names: set[str], pages: str) -> set[str]:
    """Those of sybil's names that no page has a `:::` line for."""
    return names - set(re.findall(r"^::: sybil\.(\w+)$", pages, re.MULTILINE))


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    names = public((ROOT / "sybil" / "__init__.py").read_text())
    assert {"load", "Decoder", "judge"} <= names
    assert unexplained(names, pages) == set()
    index = (DOCS / "reference" / "index.md").read_text()
    assert {name for name in names if f"[sybil.{name}]" not in index} == set()


def test_a_name_that_is_not_in_the_reference_is_seen() -> None:
    assert unexplained(public("__all__ = ['load', 'judge', '__version__']"), "::: sybil.load\n") == {"judge"}


# What is built -------------------------------------------------------------------------------------------------------


class Fetched(HTMLParser):
    """What a browser would fetch to show a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self._style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        self.addresses += IN_STYLE.findall(given.get("style", ""))
        self.addresses += [
            part.split()[0] for name in FETCHING & given.keys() for part in given[name].split(",") if part
        ]
        if tag in ("link", "use", "image") and not NOT_FETCHED & set(given.get("rel", "").split()):
            self.addresses += [given[name] for name in ("href", "xlink:href") if given.get(name)]

    def handle_data(self, data: str) -> None:
        if self._style:
            self.addresses += IN_STYLE.findall(data)


def from_elsewhere(name: str, text: str) -> list[str]:
    """The addresses in another site that a file of the site fetches from. name: the file's, by which it is read."""
    if name.endswith(".html"):
        found = Fetched(text).addresses
    else:
        found = IN_STYLE.findall(text) if name.endswith((".css", ".svg")) else []
    return [address for address in found if ELSEWHERE.match(address)]


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://cdn.invalid/a.js"></script>',
        "<script async src=//cdn.invalid/a.js></script>",
        '<link rel="stylesheet" href="https://fonts.invalid/css?family=Roboto">',
        '<link rel="preconnect" href="https://fonts.invalid">',
        '<img src="HTTP://badge.invalid/a.svg">',
        '<img srcset="a.png 1x, https://cdn.invalid/b.png 2x">',
        '<p style="background: url(https://cdn.invalid/a.png)">',
        "<style>@import 'https://cdn.invalid/a.css';</style>",
        '<iframe src="https://video.invalid/"></iframe>',
    ],
)
def test_a_planted_address_elsewhere_is_seen(planted: str) -> None:
    sound = (
        '<script src="assets/a.js"></script><a href="https://x.invalid/">x</a><link rel="canonical" href="https://y">'
    )
    sound += '<img src="data:image/png;base64,AAAA">'
    assert from_elsewhere("page.html", sound) == []
    assert len(from_elsewhere("page.html", sound + planted)) == 1


def test_a_planted_font_of_a_stylesheet_is_seen() -> None:
    assert from_elsewhere("a.css", "a { mask: url(data:image/svg+xml;utf8,<svg/>) } b { src: url('../f.woff2') }") == []
    assert from_elsewhere("a.css", "@font-face { src: url(https://fonts.invalid/f.woff2) }")


@pytest.fixture(scope="module")
def site() -> Path:
    if not (SITE / "index.html").is_file():
        pytest.fail(f"no site in {SITE}: run `nox -s docs`, or mkdocs build --strict", pytrace=False)
    return SITE


@pytest.mark.built
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    read = [file for file in site.rglob("*") if file.suffix in (".html", ".css", ".svg")]
    assert len([file for file in read if file.suffix == ".html"]) > len(list(DOCS.rglob("*.md"))) - 1
    found = {str(file.relative_to(site)): from_elsewhere(file.name, file.read_text()) for file in read}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}


@pytest.mark.built
def test_every_formula_is_drawn(site: Path) -> None:
    """As many as docs/theory.md has, and no code that was meant as one is left."""
    source, page = (DOCS / "theory.md").read_text(), (site / "theory.html").read_text()
    written = len(re.findall(r"\$`[^`]+`\$", source)) + source.count("```math")
    assert page.count("<math ") == written > 100
    assert "mathml-" not in page
    assert "$<code>" not in page


@pytest.mark.built
def test_the_hooks() -> None:
    from mkdocs.exceptions import PluginError

    from tools.docs.hooks import led_out, mathml

    assert "<mi>min</mi>" in mathml(r"\min(1, x)", "inline")
    with pytest.raises(PluginError, match="nosuchcommand"):
        mathml(r"\nosuchcommand{x}", "inline")
    text = "[a](../noxfile.py) [`b`](models.md) [c](../models.md#d)"
    assert led_out(text, "guides/gate.md") == "[a](../noxfile.py) [`b`](models.md) [c](../models.md#d)"
    assert led_out("[the sessions](../noxfile.py#L1)", "gating.md") == "the sessions (`noxfile.py`)"


@pytest.mark.built
def test_links_out_lead_to_the_repository_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.docs.hooks import led_out

    monkeypatch.setenv("SYBIL_REPOSITORY", "https://host.invalid/o/r/tree/abc/")
    assert (
        led_out("[a](../../noxfile.py#L1)", "guides/gate.md") == "[a](https://host.invalid/o/r/tree/abc/noxfile.py#L1)"
    )


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@contextmanager
def opened(browser: Any, width: int) -> Iterator[tuple[Any, list[str]]]:
    """A page of that width, and what goes wrong on it: errors, and whatever it fetches that isn't a file here."""
    wrong: list[str] = []

    def asked(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            wrong.append(f"leaves this machine: {request.url}")

    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    page.on("request", asked)
    page.on("requestfailed", lambda request: wrong.append(f"not there: {request.url}"))
    page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    yield page, wrong
    context.close()


def too_wide(page: Any) -> list[str]:
    """What sticks out of the window, where anything does: tables and formulas have to scroll by themselves."""
    found: list[str] = page.evaluate(
        """() => document.scrollingElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("article *")]
            .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
            .slice(0, 3).map(each => each.outerHTML.slice(0, 120))"""
    )
    return found


@pytest.mark.built
@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_whole(site: Path, browser: Any, width: int) -> None:
    PICTURES.mkdir(exist_ok=True)
    with opened(browser, width) as (page, wrong):
        for file in sorted(site.rglob("*.html")):
            if file.name == "404.html":  # its addresses are those of a server
                continue
            page.goto(file.as_uri())
            name = str(file.relative_to(site).with_suffix(""))
            wrong += [f"{name} at {width}: {each} is too wide" for each in too_wide(page)]
            assert page.locator("article h1").count() == 1, name
            page.screenshot(path=PICTURES / f"{name.replace('/', '-')}-{width}.png")
        assert wrong == []


@pytest.mark.built
@pytest.mark.browser
def test_the_search_finds_without_a_server(site: Path, browser: Any) -> None:
    with opened(browser, 1280) as (page, wrong):
        page.goto((site / "index.html").as_uri())
        query = page.locator("[data-md-component=search-query]")
        query.click()  # with which the index is read
        page.locator(".md-search-result__meta", has_text="Type to start searching").wait_for(state="attached")
        query.press_sequentially("automaton")
        page.wait_for_selector(".md-search-result__item a")
        found = [link.get_attribute("href") for link in page.locator(".md-search-result__item a").all()]
        assert any("drafting.html" in link for link in found)
        assert wrong == []


@pytest.mark.built
@pytest.mark.browser
@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ('<script src="https://cdn.invalid/more.js"></script>', "leaves this machine: https://cdn.invalid/more.js"),
        ('<script src="missing.js"></script>', "not there: "),
        ("<script>undefined_function()</script>", "error: undefined_function is not defined"),
        ('<article><p style="width: 5000px">wide</p></article>', "too wide"),
    ],
)
def test_a_planted_fault_of_a_page_is_noticed(browser: Any, tmp_path: Path, fault: str, complaint: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><title>x</title><body>{fault}</body>")
    with opened(browser, 390) as (page, wrong):
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")
        wrong += [f"{each} is too wide" for each in too_wide(page)]
    assert any(complaint in each for each in wrong), wrong
