"""Every planted fault is seen by the checks that are named for it, and the library as it is by none.

`pytest tests/faults -s` prints the table, which docs/quality.md holds too.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase

import pytest

from faults.checks import CHECKS
from faults.faults import FAULTS, Fault
from sybil.errors import CacheOutOfStep

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def sees(name: str, seed: int = 0) -> bool:
    """Whether a check fails. A crash counts: its test fails too. The loop's own alarm does not: that is `guard`'s."""
    try:
        CHECKS[name](seed)
    except CacheOutOfStep:
        return False
    except Exception:
        return True
    return False


def table() -> list[str]:
    """The faults in order and what catches each, as rows of a page."""
    faults = sorted(FAULTS, key=lambda fault: (fault.number[0] == "S", int(digits(fault.number)), fault.number))
    return [f"| {each.number} | {each.name} | {each.seen or '—'} | {', '.join(each.caught_by)} |" for each in faults]


def digits(number: str) -> str:
    return "".join(filter(str.isdigit, number))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CHECKS)
def test_the_library_as_it_is_passes(name: str, seed: int) -> None:
    CHECKS[name](seed)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number} {fault.name}")
def test_a_planted_fault_is_seen(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.plant(monkeypatch)
    assert fault.caught_by
    assert [name for name in fault.caught_by if not sees(name)] == []


def test_every_fault_is_there_and_every_check_sees_one() -> None:
    numbers = {fault.number.rstrip(ascii_lowercase) for fault in FAULTS}
    assert numbers == {*map(str, range(1, 28)), "S1", "S2", "S3", "S4"}
    assert {name for fault in FAULTS for name in fault.caught_by} == CHECKS.keys()


def test_the_page_holds_the_table() -> None:
    rows = table()
    print("\n".join(["", *rows]))  # noqa: T201 - the table is what this test is asked for
    assert [line for line in PAGE.read_text().splitlines() if line in rows] == rows
