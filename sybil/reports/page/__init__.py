"""A report as one HTML page that needs nothing beside it: its figures, styles and script stand in it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from xml.etree import ElementTree

from sybil.reports.style import INK, PAPER, Chart, Value
from sybil.reports.tables import Table

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
CHOICES = 12
"""The most values of a column that are offered as a choice, where each comes twice on average; other columns are
filtered by typing."""
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def page(
    title: str,
    about: Sequence[str],
    tables: Sequence[Table],
    charts: Sequence[tuple[Chart, bytes]],
) -> bytes:
    """The page. about: paragraphs under the title; charts: each with its SVG. Every text is escaped, and the page's own
    policy forbids it to fetch anything."""
    style, script = (_file(name) for name in ("page.css", "page.js"))
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_digest(style)}",
            f"script-src {_digest(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    links = [(table.name, table.title) for table in tables]
    links[1:1] = [("figures", "Figures")] if charts else []
    lead, *rest = (_table(table) for table in tables)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        *(f"<p>{_prose(each)}</p>" for each in about),
        "<nav>" + " ".join(f'<a href="#{name}">{escape(said)}</a>' for name, said in links) + "</nav></header><main>",
        lead,
        '<section id="figures"><h2>Figures</h2>' if charts else "",
        *(_figure(chart, svg) for chart, svg in charts),
        "</section>" if charts else "",
        *rest,
        f"</main><script>{script}</script></body></html>",
    ]
    return "\n".join(filter(None, parts)).encode()


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """A text as a policy names what it lets in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _prose(text: str) -> str:
    """No line ends between a number and its sign."""
    return escape(text).replace(" %", "&nbsp;%")


def _figure(chart: Chart, svg: bytes) -> str:
    said = f"<figcaption><strong>{escape(chart.title)}.</strong> {_prose(chart.caption)}</figcaption>"
    drawn = inlined(svg, chart.name, chart.title)
    return f'<figure id="figure-{escape(chart.name)}"><div class="drawn">{drawn}</div>{said}</figure>'


def inlined(svg: bytes, name: str, title: str) -> str:
    """matplotlib's SVG as an element of a page: no two figures share an id, styles are attributes, since the page's
    policy allows no inline style, and letters and paper take the page's own colours."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        for declared in filter(None, element.attrib.pop("style", "").split(";")):
            attribute, _, value = declared.partition(":")
            element.set(attribute.strip(), value.strip())
        for attribute in ("fill", "stroke"):
            colours = {INK: "ink", PAPER: "paper"}
            if kind := colours.get(element.get(attribute, "").lower()):
                element.set("class", f"{element.get('class', '')} {attribute}-{kind}".strip())
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.get('id')}")
        target = element.attrib.pop(LINK, None)
        if target is not None:
            element.set("href", f"#{name}-{target.removeprefix('#')}")
        for attribute, value in element.attrib.items():
            element.set(attribute, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode")


def _table(table: Table) -> str:
    """A table whose headings sort it, with a filter below each."""
    columns = list(zip(*table.rows, strict=True))
    kinds = [_is_number(column) for column in columns]
    heads = "".join(_heading(name, kind) for name, kind in zip(table.headings, kinds, strict=True))
    filters = "".join(_filter(name, column) for name, column in zip(table.headings, columns, strict=True))
    filters = f'<tr class="filters">{filters}</tr>' if len(table.rows) > 1 else ""
    rows = "\n".join(
        "<tr>" + "".join(_field(value, kind) for value, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in table.rows
    )
    about = f"<p>{_prose(table.about)}</p>" if table.about else ""
    count = f'<p class="count" aria-live="polite">{len(table.rows)} of {len(table.rows)} rows</p>'
    return (
        f'<section id="{table.name}"><h2>{escape(table.title)}</h2>{about}<div class="wide"><table><thead>'
        f"<tr>{heads}</tr>{filters}</thead><tbody>\n{rows}\n</tbody></table></div>{count}</section>"
    )


def _is_number(column: Sequence[Value]) -> bool:
    """Whether a column has numbers; a word among them, as gamma "auto", is sorted behind them."""
    return any(isinstance(value, int | float) for value in column)


def _heading(name: str, is_number: bool) -> str:
    kind = ' class="number"' if is_number else ""
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{escape(name)}</button></th>'


def _filter(name: str, column: Sequence[Value]) -> str:
    """Few values are a choice, many are searched by typing: a part of a word, or for numbers ">2", "<=0.5"."""
    label = f'aria-label="filter by {escape(name)}"'
    values = list(dict.fromkeys(_said(value) for value in column))
    if 1 < len(values) <= min(CHOICES, len(column) // 2):
        options = "".join(f'<option value="={escape(value)}">{escape(value) or "(none)"}</option>' for value in values)
        return f'<td><select {label}><option value="">all</option>{options}</select></td>'
    return f'<td><input type="search" {label} placeholder="filter" size="6"></td>'


def _field(value: Value, is_number: bool) -> str:
    kind = ' class="number"' if is_number else ""
    return f"<td{kind}>{escape(_said(value))}</td>"


def _said(value: Value) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
