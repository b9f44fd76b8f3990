"""HTTP headers that a user gives for a server. They are checked before they are sent, and never shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sybil.errors import InvalidSetting, one_line

NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OURS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "transfer-encoding"}
LEAST_SECRET = 4  # letters; a shorter value is no secret, and hiding it could hide half of a message


def parsed(lines: Iterable[str]) -> dict[str, str]:
    """The headers in lines such as "X-Team: mine", by name. Raises InvalidSetting, whose message shows no value."""
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, colon, value = (part.strip(" \t") for part in line.partition(":"))
        if not colon or not NAME.fullmatch(name):
            raise InvalidSetting(f"header {number} has no name before a colon: give it as 'Name: value'")
        if not value or not all(" " <= letter <= "~" for letter in value):
            raise InvalidSetting(
                f"header {name} is empty, or holds a line end or a letter outside ASCII: give it as 'Name: value'"
            )
        if name.lower() in OURS:
            raise InvalidSetting(f"header {name} is set by what is sent: leave it out")
        if name.lower() in map(str.lower, headers):
            raise InvalidSetting(f"header {one_line(name, 60)} is given twice: give it once")
        headers[name] = value
    return headers


def secrets(headers: dict[str, str]) -> dict[str, str]:
    """The texts in headers that no message may show, the longest first, each with the name that replaces it."""
    hidden = {part: name for name, value in headers.items() for part in (value, value.rpartition(" ")[2])}
    return {part: hidden[part] for part in sorted(hidden, key=len, reverse=True) if len(part) >= LEAST_SECRET}
