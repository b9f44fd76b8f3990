"""`sybil report`: a sweep's rows as figures that can be read, tables, and a page that needs nothing beside it.

The rows are made up (sweep_rows.py). test_report_page.py opens the page in a browser (`nox -s page`)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sweep_rows
from legible import faults
from tiny import sybil

from sybil.errors import InvalidSetting, ResultsMismatch
from sybil.reports import report, theory
from sybil.reports.page import inlined
from sybil.reports.rows import Results, read
from sybil.reports.style import Chart
from sybil.reports.tables import agreement, best, tables
from sybil.sweeping.run import VERSION, Measured, RunResult
from sybil.sweeping.summary import over_baseline

EVIL = '<script>alert("1")</script>&<b> $x_1$ \u6a21 a-long-name/Instruct-v0.2-Q4_K_M'
NAMES = {
    "speedup-gamma-temperature",
    "speedup-pair-domain",
    "speedup-gamma",
    "drafters",
    "theory",
    "throughput-batch",
    "acceptance-domain",
    "acceptance-place",
    "latency-token",
    "latency-first-token",
    "time-by-phase",
    "memory",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep_rows.write(tmp_path_factory.mktemp("sweep") / "made up.jsonl", sweep_rows.everything())


@pytest.fixture(scope="module")
def results(file: Path) -> Results:
    return read(file)


@pytest.fixture(scope="module")
def charts(results: Results) -> list[Chart]:
    return report.charts(results)


def results_of(folder: Path, rows: list[RunResult]) -> Results:
    return read(sweep_rows.write(folder / "rows.jsonl", rows))


# Rows ----------------------------------------------------------------------------------------------------------------


def test_a_cell_stands_beside_its_plain_decoding(results: Results) -> None:
    rows = {row.hash: row for row in results.rows}
    assert len(results.drafted) == 13
    assert not results.unpaired
    for cell in results.drafted:
        assert cell.plain == rows[cell.config.baseline.hash].measured
        assert cell.speed_up == over_baseline(cell.row, rows)
    assert all(cell.speed_up is None for cell in results.cells if cell.is_plain)
    assert [row.config.pair for row in results.failed] == ["opt"]


def test_a_cell_without_plain_decoding_has_no_speed_up(tmp_path: Path) -> None:
    alone = results_of(tmp_path, [sweep_rows.row(sweep_rows.cell(drafter="pair", gamma=2))])
    assert len(alone.unpaired) == 1
    assert {chart.name for chart in report.charts(alone)} <= NAMES - {"speedup-gamma", "theory", "drafters"}


def test_of_two_rows_of_a_cell_the_measured_one_counts(tmp_path: Path) -> None:
    config = sweep_rows.cell()
    for rows in (
        [sweep_rows.failed(config), sweep_rows.row(config)],
        [sweep_rows.row(config), sweep_rows.failed(config)],
    ):
        found = results_of(tmp_path, rows)
        assert (len(found.cells), len(found.failed)) == (1, 0)


def test_a_last_line_that_is_broken_off_is_left_out(tmp_path: Path, file: Path, results: Results) -> None:
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(file.read_bytes()[:-100])
    found = read(torn)
    assert found.torn
    assert found.rows == results.rows[:-1]
    assert not results.torn


def changed(**measured: object) -> RunResult:
    """A row whose numbers are at odds."""
    row = sweep_rows.row(sweep_rows.cell(drafter="pair", gamma=2))
    assert row.measured is not None
    return row.model_copy(update={"measured": Measured.model_validate(dict(row.measured) | measured)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_tokens": (1, 2)}, "lists of"),
        ({"texts": 7}, "7 texts of 4 prompts"),
        ({"emitted": 0}, "0 tokens"),
        ({"rounds": 0}, "0 rounds"),
        ({"seconds": 0.0}, "0 s"),
        ({"text_seconds": (0.0,) * 8}, "0 rounds|without tokens"),
        ({"proposed_at": (5,)}, "1 places proposed, 2 accepted"),
        ({"accepted_at": (10**6, 1)}, "more accepted"),
        ({"accepted": 10**6}, "accepted in"),
        ({"ms_per_token": {"count": 1, "at": (*range(100), 0)}}, "quantiles"),
        ({"ms_per_round": {"count": 1, "at": (-1.0,) * 101}}, "quantiles"),
    ],
)
def test_a_row_at_odds_with_itself_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ResultsMismatch, match=said):
        results_of(tmp_path, [changed(**change)])


@pytest.mark.parametrize(
    "content",
    ["", "hello\n", "[1]\n", '{"target": "gpt2"}\n', "[" * 10**5 + "\n", '{"version": 1, "hash": "x"}\n', "\xff\n"],
)
def test_what_is_no_sweeps_file_is_refused_in_a_line(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content.encode("latin-1"))
    assert sybil("report", path, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(path) in said
    assert not (tmp_path / "out").exists()


def test_a_row_of_a_later_version_is_refused(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "later.jsonl"
    path.write_text(file.read_text().replace(f'"version": {VERSION}', f'"version": {VERSION + 1}', 1))
    with pytest.raises(ResultsMismatch, match=f"version {VERSION + 1}"):
        read(path)


# The theory ----------------------------------------------------------------------------------------------------------


def test_a_prediction_is_the_formula(results: Results) -> None:
    """K 2 kept with 0.7 a token: 1 + 0.7 + 0.49 tokens for two drafted at 0.12 and one verification of three at 1.1."""
    cell = next(
        cell
        for cell in results.drafted
        if cell.config.gamma == 2 and cell.config == sweep_rows.cell(drafter="pair", gamma=2)
    )
    found = theory.predict(cell)
    assert found is not None
    assert found.formula == pytest.approx(2.19 / (2 * 0.12 + 1.1), rel=0.01)
    assert found.agrees
    assert found.reason == ""
    assert found.whole == pytest.approx(found.measured, rel=0.02)


@pytest.mark.parametrize(("phase", "reason"), [("other", theory.ROUND), ("prefill", theory.PROMPT)])
def test_a_prediction_that_is_off_says_for_what(results: Results, phase: str, reason: str) -> None:
    """The phase takes as long as all others together, in the speculating cell alone."""
    cell = results.drafted[0]
    found = cell.measured
    phases = found.phases.model_copy(update={phase: found.seconds})
    seconds = found.seconds + found.seconds - getattr(found.phases, phase)
    slower = tuple(each * seconds / found.seconds for each in found.text_seconds)
    measured = found.model_copy(update={"phases": phases, "seconds": seconds, "text_seconds": slower})
    rows = {row.hash: row for row in results.rows} | {cell.row.hash: cell.row.model_copy(update={"measured": measured})}
    speed_up = over_baseline(rows[cell.row.hash], rows)
    off = theory.predict(type(cell)(rows[cell.row.hash], measured, cell.plain, speed_up))
    assert off is not None
    assert off.off > theory.BAND
    assert off.reason == reason


def test_the_curve_predicts_the_other_gammas(results: Results) -> None:
    """Costs are linear and tokens are kept with one chance in the rows: so the survival at K 4 tells all."""
    cells = [
        cell
        for cell in results.drafted
        if cell.config.domain == "all" and cell.config.temperature == 0 and cell.config.batch == 1
    ]
    said = theory.curve(cells)
    assert len(said) == 5
    assert said[0] == 1
    for cell in cells:
        if cell.config.gamma != "auto":
            found = theory.predict(cell)
            assert found is not None
            assert said[int(cell.config.gamma)] == pytest.approx(found.formula, rel=0.01)


def test_the_share_within_the_band_is_counted(results: Results) -> None:
    asked = agreement(results)
    assert asked.cells == len(results.drafted)
    assert asked.share == asked.within / asked.cells > 0.9


# Charts --------------------------------------------------------------------------------------------------------------


def test_every_chart_is_made_of_rows_that_fill_it(charts: list[Chart]) -> None:
    assert {re.sub(r"-\d+$", "", chart.name) for chart in charts} == NAMES
    assert len({chart.name for chart in charts}) == len(charts)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([], set()),
        ([sweep_rows.cell()], {"latency-token", "latency-first-token", "time-by-phase", "memory"}),
        (
            list(sweep_rows.product(drafter=["pair"], gamma=[1, 2])),
            NAMES - {"speedup-gamma-temperature", "speedup-pair-domain", "drafters", "throughput-batch"},
        ),
    ],
    ids=["failures", "plain", "two gammas"],
)
def test_a_chart_that_rows_cannot_fill_is_not_made(
    tmp_path: Path, rows: list[sweep_rows.RunConfig], names: set[str]
) -> None:
    failed = sweep_rows.failed(sweep_rows.cell(pair="opt"))
    found = results_of(tmp_path, [failed, *map(sweep_rows.row, rows)])
    assert {chart.name for chart in report.charts(found)} == names


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_text_can_be_read(charts: list[Chart], name: str) -> None:
    for chart in (chart for chart in charts if re.sub(r"-\d+$", "", chart.name) == name):
        with chart.drawn() as figure:
            assert faults(figure) == [], chart.name
            assert round(25.4 * figure.get_figwidth()) in (89, 183)  # a paper's column, and its page


def test_long_and_hostile_names_can_be_read_too(tmp_path: Path) -> None:
    for chart in report.charts(results_of(tmp_path, sweep_rows.hostile(EVIL))):
        with chart.drawn() as figure:
            assert faults(figure) == [], chart.name


def planted(chart: Chart) -> list[tuple[str, object]]:
    """Faults, as a name and a change of the figure."""
    return [
        ("clipped", lambda figure: figure.axes[0].set_ylabel("far too long a label for this figure " * 4)),
        ("clipped", lambda figure: figure.text(0.98, 0.5, "cut at the edge")),
        ("overlap", lambda figure: figure.axes[0].set_xticks([0, 0.01, 0.02], ["none", "one", "other"])),
        ("overlap", lambda figure: figure.text(0.5, 0.97, "on the title", ha="center")),
        ("points", lambda figure: figure.axes[0].set_xlabel("small", fontsize=6)),
        ("empty", lambda figure: figure.axes[0].clear()),
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_planted_fault_of_a_figure_is_seen(charts: list[Chart], number: int) -> None:
    chart = next(chart for chart in charts if chart.name == "theory")
    kind, plant = planted(chart)[number]
    with chart.drawn() as figure:
        plant(figure)  # type: ignore[operator]
        figure.draw_without_rendering()
        assert any(fault.split(":")[0].endswith(kind) or fault.startswith(kind) for fault in faults(figure))


def test_the_axis_holds_the_whole_curve_of_the_theory(tmp_path: Path) -> None:
    """A cell of K 8 whose tokens are all kept lies far above the others."""
    rows = [sweep_rows.row(each) for each in sweep_rows.product(drafter=["lookup"], gamma=[1, 2])]
    config = sweep_rows.cell(drafter="lookup", gamma=8)
    row = sweep_rows.row(config)
    assert row.measured is not None
    rounds = row.measured.rounds
    kept = row.measured.model_copy(update={"accepted_at": (rounds,) * 8, "accepted": 8 * rounds})
    found = results_of(tmp_path, [*rows, row.model_copy(update={"measured": kept})])
    chart = next(chart for chart in report.charts(found) if chart.name == "speedup-gamma")
    highest = max(theory.curve(found.drafted))
    assert highest > 3
    with chart.drawn() as figure:
        assert figure.axes[0].get_ylim()[1] > highest


def test_the_numbers_of_a_chart_are_those_that_it_shows(charts: list[Chart], results: Results) -> None:
    chart = next(chart for chart in charts if chart.name == "speedup-gamma")
    told = list(csv.DictReader(io.StringIO(chart.render(("csv",))["csv"].decode())))
    with chart.drawn() as figure:
        drawn = [y for axes in figure.axes for y in axes.containers[0].lines[0].get_ydata()]
    assert [float(each["speed_up"]) for each in told] == pytest.approx(drawn)
    assert {each["theory"] == "" for each in told if each["gamma"] == "auto"} == {True}


def test_a_spreadsheet_takes_no_name_for_a_formula() -> None:
    chart = Chart("a", "b", "c", ("pair", "x"), (("=1+1", -2.0),), lambda: pytest.fail("nothing is drawn"))
    assert chart.render(("csv",))["csv"] == b"pair,x\n'=1+1,-2.0\n"


def test_a_chart_is_the_same_each_time_it_is_drawn(tmp_path: Path) -> None:
    found = results_of(tmp_path, [sweep_rows.row(sweep_rows.cell(drafter="pair", gamma=2))])
    chart = next(chart for chart in report.charts(found) if chart.name == "acceptance-domain")
    assert chart.render(("svg",)) == chart.render(("svg",))


# The page ------------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def outward(page: str) -> list[str]:
    """What a page might fetch, or run beside its one script."""
    found = []
    for tag, attributes in Elements(page).elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "data", "srcset") and not value.startswith("#"):
                found.append(f"{tag} {name}={value}")
            if name.startswith("on") or name == "style":
                found.append(f"{tag} {name}={value}")
            if "url(" in value and not re.fullmatch(r"url\(#[\w-]+\)", value):
                found.append(f"{tag} {name}={value}")
    scripts = [tag for tag, _ in Elements(page).elements if tag == "script"]
    return found + scripts[1:] + re.findall(r"@import|url\([^#)]*\)", page)


def repeated(page: str) -> list[str]:
    """Ids that come twice."""
    ids = [attributes["id"] for _, attributes in Elements(page).elements if "id" in attributes]
    return [each for each in set(ids) if ids.count(each) > 1]


@contextmanager
def few_charts() -> Iterator[None]:
    """Reports have three charts alone, for each takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        every = report.charts
        patch.setattr(report, "charts", lambda results: every(results)[:3])
        yield


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of rows whose every name is EVIL."""
    folder = tmp_path_factory.mktemp("page")
    with few_charts():
        made = report.write(results_of(folder, sweep_rows.hostile(EVIL)), folder / "out", (), "sybil report rows.jsonl")
    assert made == [folder / "out" / "index.html"]
    return made[0].read_text()


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(page: str) -> None:
    assert outward(page) == []
    policy = next(each["content"] for tag, each in Elements(page).elements if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "img-src" not in policy


@pytest.mark.parametrize(
    "fault",
    [
        '<img src="https://example.org/a.png">',
        '<link rel="stylesheet" href="other.css">',
        "<script>alert(1)</script>",
        '<p onclick="f()">',
        '<p style="color: red">',
        "<style>@import 'other.css'</style>",
        '<rect fill="url(https://example.org/#a)"/>',
    ],
)
def test_what_a_page_would_fetch_or_run_is_seen(page: str, fault: str) -> None:
    assert len(outward(page.replace("</main>", f"{fault}</main>"))) == 1


def test_a_hostile_name_stays_text(page: str) -> None:
    assert "<script>alert" not in page
    assert EVIL in Elements(page).text
    assert {tag for tag, _ in Elements(page).elements}.isdisjoint({"b", "iframe", "object", "img"})


def test_no_two_elements_share_an_id(page: str) -> None:
    assert page.count("<svg") == 3
    assert repeated(page) == []
    targets = {value[1:] for _, each in Elements(page).elements for name, value in each.items() if name == "href"}
    assert targets <= {each["id"] for _, each in Elements(page).elements if "id" in each}
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><g id="a" style="fill: #1a1a1a"/></svg>'
    assert (
        inlined(svg, "one", "t")
        == '<svg role="img" aria-label="t"><g id="one-a" fill="#1a1a1a" class="fill-ink" /></svg>'
    )
    assert repeated(inlined(svg, "one", "t") * 2) == ["one-a"]


def test_the_tables_have_every_cell_and_every_failure(results: Results) -> None:
    found = {table.name: table for table in tables(results)}
    assert list(found) == ["best", "cells", "theory", "failed", "environment"]
    assert len(found["cells"].rows) == len(results.cells)
    assert found["failed"].rows[0][-1] == "OutOfMemory: 12 GB are asked for and 4 GB are free"
    assert ("commit", "0123456") in found["environment"].rows
    assert all(len(row) == len(table.headings) for table in found.values() for row in table.rows)


def test_the_best_of_a_domain_has_the_largest_speed_up(results: Results) -> None:
    found = {each.domain: each for each in best(results)}
    assert set(found) == {"all", "code", "conversation"}
    for each in found.values():
        others = [
            cell.speed_up.value for cell in results.drafted if cell.speed_up and cell.config.domain == each.domain
        ]
        assert each.cell.speed_up is not None
        assert each.cell.speed_up.value == max(others)
        assert each.against == len(others)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    made = sweep_rows.product(drafter=["pair"], gamma=[2])
    rows = [*map(sweep_rows.row, made), sweep_rows.failed(sweep_rows.cell(pair="opt"))]
    with few_charts():
        yield sweep_rows.write(tmp_path / "small.jsonl", rows)


def test_the_command_writes_the_page_and_tells_the_best(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_text(small.read_text() + '{"version": 1, "ha')
    assert sybil("report", small, "--out", tmp_path / "out", "--formats", "csv") == 0
    said = capsys.readouterr()
    assert "the last line is broken off" in said.err
    assert "| stdlib, all domains | the pair's draft | 2 |" in said.out
    assert "within 15 % of what was measured in 1 of 1 cells (100%)" in said.out
    assert "1 cell failed" in said.out
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert "index.html" in written
    assert {name.split(".")[1] for name in written} == {"html", "csv"}
    assert f"sybil report {small}" in (tmp_path / "out" / "index.html").read_text()


def test_the_command_tells_json(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("report", small, "--out", tmp_path / "out", "--formats", "csv", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cells"], found["failed"], found["theory"]["share"]) == (2, 1, 1.0)
    assert found["best"][0]["drafter"] == "pair"
    assert all(Path(file).is_file() for file in found["files"])


def test_bad_options_are_refused_before_anything_is_written(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--formats", "svg,jpeg"], ["--formats", ""], ["--out", small], ["--out", "/proc/nowhere"]):
        assert sybil("report", small, *options) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["small.jsonl"]
    with pytest.raises(InvalidSetting, match="jpeg"):
        report.formats_named("svg,jpeg")


def test_a_report_that_cannot_be_written_leaves_no_half_file(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert sybil("report", small, "--out", tmp_path / "out", "--formats", "csv") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
