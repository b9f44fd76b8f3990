"""`sybil report`'s page in a headless Chromium, opened as a file: it sorts, filters, and fetches nothing.

`nox -s page` runs these; pictures of the page stay in sybil-page/."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sweep_rows
from browsing import chromium

from sybil.reports import report
from sybil.reports.rows import read

pytestmark = pytest.mark.browser

PICTURES = Path("sybil-page")
EVIL = '<script>document.title = "evil"</script>'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("--disable-gpu") as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of made-up rows, with a hostile pair among them."""
    folder = tmp_path_factory.mktemp("report")
    rows = [*sweep_rows.everything(), *sweep_rows.hostile(EVIL)]
    results = read(sweep_rows.write(folder / "made up.jsonl", rows))
    return report.write(results, folder / "out", (), "sybil report 'made up.jsonl'")[0]


@contextmanager
def opened(browser: Any, file: Path, width: int = 1280, scheme: str = "light") -> Iterator[tuple[Any, list[str]]]:
    """The page, and what went wrong on it so far: requests of anything but itself, errors, what its policy refused."""
    wrong: list[str] = []

    def asked(request: Any) -> None:
        if request.url.split("#")[0] != file.as_uri():
            wrong.append(f"fetches {request.url}")

    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.on("request", asked)
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.goto(file.as_uri())
    yield page, wrong
    context.close()


def column(page: Any, heading: str) -> list[str]:
    """The texts of a column of the table of cells, of the rows that are shown."""
    headings = page.locator("#cells th").all_inner_texts()
    place = [each.strip(" ▲▼") for each in headings].index(heading)
    return [row.locator("td").nth(place).inner_text() for row in page.locator("#cells tbody tr:visible").all()]


def test_a_click_on_a_heading_sorts(browser: Any, file: Path) -> None:
    with opened(browser, file) as (page, wrong):
        before = column(page, "tokens/s")
        heading = page.locator("#cells th button", has_text="tokens/s")
        heading.click()
        rising = column(page, "tokens/s")
        heading.click()
        falling = column(page, "tokens/s")
        assert wrong == []
    assert rising != before
    assert rising == sorted(before, key=float)
    assert falling == sorted(before, key=float, reverse=True)


def test_words_come_behind_numbers_and_empty_fields_last(browser: Any, file: Path) -> None:
    with opened(browser, file) as (page, _):
        heading = page.locator("#cells th button", has_text="K").first
        for _ in range(2):
            heading.click()
            values = column(page, "K")
            filled = [value for value in values if value]
            assert values == filled + [""] * (len(values) - len(filled))
            assert set(filled) > {"auto"}
        assert filled[0] == "auto" or float(filled[0]) == 4


def test_a_choice_and_typing_filter(browser: Any, file: Path) -> None:
    with opened(browser, file) as (page, wrong):
        every = column(page, "domain")
        page.locator('#cells [aria-label="filter by domain"]').select_option("=code")
        assert column(page, "domain") == [each for each in every if each == "code"] != every
        said = page.locator("#cells .count").inner_text()
        assert said == f"{every.count('code')} of {len(every)} rows"
        page.locator('#cells [aria-label="filter by domain"]').select_option("")
        page.locator('#cells [aria-label="filter by tokens/s"]').fill(">= 300")
        fast = column(page, "tokens/s")
        assert 0 < len(fast) < len(every)
        assert all(float(each) >= 300 for each in fast)
        page.locator('#cells [aria-label="filter by tokens/s"]').fill("no such number")
        assert column(page, "tokens/s") == []
        assert wrong == []


def test_a_hostile_name_is_text(browser: Any, file: Path) -> None:
    with opened(browser, file) as (page, wrong):
        assert EVIL in column(page, "pair")
        assert page.title() == "Sweep made up"
        assert wrong == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_the_page_fits_its_window(browser: Any, file: Path, width: int, scheme: str) -> None:
    with opened(browser, file, width, scheme) as (page, wrong):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper, ink = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
        assert (paper, ink)[scheme == "dark"] in ("rgb(255, 255, 255)", "rgb(230, 231, 234)")
        letters = page.locator("figure svg .fill-ink, figure svg text").first
        assert letters.evaluate("each => getComputedStyle(each).fill") == ink
        PICTURES.mkdir(exist_ok=True)
        page.screenshot(path=PICTURES / f"{width}-{scheme}.png", full_page=True)
        assert wrong == []


@pytest.mark.parametrize(
    "fault", ['<img src="https://example.invalid/a.png">', "<script>alert(1)</script>", '<p style="color: red">']
)
def test_what_the_policy_forbids_is_refused(browser: Any, file: Path, tmp_path: Path, fault: str) -> None:
    spoilt = tmp_path / "index.html"
    spoilt.write_text(file.read_text().replace("</main>", f"{fault}</main>"))
    with opened(browser, spoilt) as (_, wrong):
        assert wrong  # a picture's request is told, too, though it never leaves
        assert "Content Security Policy" in wrong[0]
