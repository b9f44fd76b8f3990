"""What the site needs that a Markdown page on GitHub doesn't: mkdocs calls these functions while it builds.

GitHub's mathematics (a code span between dollars, a fence named math) becomes MathML, which a browser draws by itself.
A link from docs/ to another file of the repository leads there where SYBIL_REPOSITORY holds the repository's address
(https://github.com/OWNER/NAME/tree/COMMIT); elsewhere the file's path stands in its place.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

DISPLAYED = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
WRITTEN = re.compile(r"\$`([^`]+)`\$")
LEAVING = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s]*)\)")
KEPT = re.compile(r"<p>mathml-(\d+)-kept</p>|mathml-(\d+)-kept")
NAMED = re.compile(r"<mo>(min|max|lim|log|exp|tanh)</mo>")  # names of functions, which would get an operator's spaces
NOT_CORE = '<mspace width="negativethinmathspace" />'  # a width that browsers don't know


def mathml(source: str, display: str) -> str:
    """The formula as MathML. display: inline or block. Raises PluginError if something in it can't be converted."""
    made = NAMED.sub(r"<mi>\1</mi>", convert(source.strip(), display=display)).replace(NOT_CORE, "")
    if "\\" in made:
        raise PluginError(f"this formula can't be made MathML of: {source.strip()}")
    return f'<div class="formula">{made}</div>' if display == "block" else made


def led_out(text: str, page: str) -> str:
    """The page's text, with its links to files outside docs/ turned into links to the repository. page: its path under
    docs/."""
    repository = os.environ.get("SYBIL_REPOSITORY", "").rstrip("/")

    def changed(link: re.Match[str]) -> str:
        shown, address = link.groups()
        name, _, anchor = address.partition("#")
        file = os.path.normpath(PurePosixPath("docs", page).parent / name)
        if file == "docs" or file.startswith("docs/"):
            return link[0]
        if repository:
            return f"[{shown}]({repository}/{file}{'#' if anchor else ''}{anchor})"
        plain = shown.strip("`")
        return f"`{file}`" if plain == file else f"{shown} (`{file}`)"

    return LEAVING.sub(changed, text)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace each formula by a word that Markdown leaves alone, and turn links to files outside docs/."""
    formulas: list[str] = page.meta.setdefault("formulas", [])

    def kept(source: str, display: str) -> str:
        formulas.append(mathml(source, display))
        return f"mathml-{len(formulas) - 1}-kept"

    text = DISPLAYED.sub(lambda found: f"\n{kept(found[1], 'block')}\n", markdown)
    parts = FENCED.split(text)  # every second part is code
    for place in range(0, len(parts), 2):
        parts[place] = WRITTEN.sub(lambda found: kept(found[1], "inline"), parts[place])
        parts[place] = led_out(parts[place], page.file.src_uri)
    return "".join(parts)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Put the formulas back."""
    formulas = page.meta.get("formulas", [])
    return KEPT.sub(lambda found: formulas[int(found[1] or found[2])], html)
