"""The numbers of a page, in reading order, section by section: what is printed, how exactly, and where."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

HIDDEN = (
    re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL),  # code, and formulas that stand by themselves
    re.compile(r"`[^`\n]+`"),  # code, and formulas within a line
    re.compile(r"\[[^\]]*\]\(https?:[^)]*\)"),
    re.compile(r"(?<=\])\([^)]*\)"),
    re.compile(r"GTX 1650|GPT-2"),
)
"""Parts of a page whose numbers aren't checked. Formulas are read by formulas()."""
FORMULA = re.compile(r"^```math\n(.*?)^```|\$`([^`\n]+)`\$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.\-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Number:
    """A number on a page. start: its place in the page. near: the text around it."""

    text: str
    start: int
    near: str

    @property
    def value(self) -> float:
        return float(self.text.replace(",", ""))

    def is_rounded(self, exact: float) -> bool:
        """Whether the number is `exact`, rounded to as many decimals. A half may be rounded either way."""
        _, _, decimals = self.text.partition(".")
        return abs(self.value - exact) <= 0.5 * 10.0 ** -len(decimals) + 1e-9


def numbers(page: str) -> dict[str, list[Number]]:
    """The numbers by the title of their section. Numbers in titles are left out."""
    shown = page
    for hidden in (*HIDDEN, HEADING):
        shown = hidden.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), shown)
    titles = [(found.end(), found[1]) for found in HEADING.finditer(_without_code(page))]
    found: dict[str, list[Number]] = {title: [] for _, title in titles}
    for number in NUMBER.finditer(shown):
        title = [title for end, title in titles if end <= number.start()][-1]
        near = page[max(number.start() - 40, 0) : number.end() + 20].replace("\n", " ")
        found[title].append(Number(number[0], number.start(), near))
    return found


def _without_code(page: str) -> str:
    return HIDDEN[0].sub(lambda found: re.sub(r"[^\n]", " ", found[0]), page)


def wrong(page: str, exact: Mapping[str, Callable[[], Iterable[float]]]) -> list[str]:
    """The numbers that don't agree. exact: for each section, the exact values of its numbers in reading order."""
    complaints = []
    found = numbers(page)
    for title in found.keys() - exact.keys():
        complaints += [f"{title}: nothing says what {number.text} is: {number.near!r}" for number in found[title]]
    for title, computed in exact.items():
        printed, wanted = found.get(title, []), list(computed())
        for number, each in zip(printed, wanted, strict=False):
            if not number.is_rounded(each):
                complaints.append(f"{title}: {number.text} is {each:.6g}: {number.near!r}")
        if len(printed) != len(wanted):
            complaints.append(f"{title}: {len(printed)} numbers, and {len(wanted)} were computed")
    return complaints


def formulas(page: str) -> list[str]:
    """The formulas, both on lines of their own and within a line."""
    return [own or within for own, within in FORMULA.findall(page)]


def tables(page: str, title: str) -> list[list[list[str]]]:
    """The cells of the tables in a section, headings included."""
    _, _, rest = page.partition(f"# {title}\n")
    section = HEADING.split(rest, maxsplit=1)[0]
    return [
        [[cell.strip() for cell in row.strip("|\n").split("|")] for row in table.splitlines() if "---" not in row]
        for table in re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    ]
