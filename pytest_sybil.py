"""A pytest plugin with the fixture `lossless`, which fails a test where a decoder isn't lossless.

`pip install project-sybil[pytest]` installs what it needs. It isn't a part of the package sybil, because pytest imports
the plugin in every run, and importing sybil takes seconds, since it imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sybil.judging import Report

MARKER = "lossless(**settings): what the fixture lossless gives sybil.judge(), such as alpha=1e-6 and resolution=0.2"


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker `lossless` known to pytest."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def lossless(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[..., Report]:
    """lossless(decoder, target, ...) takes the arguments of sybil.judge() and returns its report. It fails the test
    where the verdict isn't PASS. The marker `lossless` gives settings. If several markers give the same
    setting, the one nearest to the test counts."""
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
