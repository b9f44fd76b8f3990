"""The judge in pytest: a test that asks for the fixture `lossless` fails where a decoder isn't.

`pip install project-sybil[pytest]` brings it. It stands beside the package and not in it, because pytest imports it in
every run, and importing sybil takes torch's seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sybil.judging import Report

MARKER = "lossless(**settings): what the fixture lossless gives sybil.judge(), such as alpha=1e-6 and resolution=0.2"


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def lossless(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[..., Report]:
    """lossless(decoder, target, ...) takes what sybil.judge() takes, gives its report, and fails the test where the
    verdict isn't PASS. The marker of the same name gives settings, the one nearest to the test first."""
    marked: dict[str, Any] = {}
    for mark in request.node.iter_markers("lossless"):
        if mark.args:
            raise pytest.UsageError(f"the marker lossless has {mark.args[0]!r}: name it, as in lossless(alpha=1e-6)")
        marked = {**mark.kwargs, **marked}

    def judged(decoder: Any, target: Any, *more: Any, **settings: Any) -> Report:
        __tracebackhide__ = True
        import sybil

        report = sybil.judge(decoder, target, *more, **{**marked, **settings})
        record_property("lossless", report.verdict)
        request.node.add_report_section("call", "lossless", str(report))
        if report.verdict != "PASS":
            pytest.fail(str(report), pytrace=False)
        return report

    return judged
