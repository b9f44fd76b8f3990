"""A server's own counters of speculation, which it shows at /metrics in Prometheus' text format."""

from __future__ import annotations

import math
import re

from sybil.errors import EndpointFailed
from sybil.losslessness.speculation import Speculation
from sybil.servers.transport import Server

LINE = re.compile(
    r"^(?P<name>\w+:spec_decode_num_(?P<kind>draft|accepted)_tokens(?:_total)?)(?:\{[^}\n]*\})? (?P<value>\S+)",
    re.MULTILINE | re.ASCII,
)
LARGEST = 2.0**53
TIMEOUT = 10.0  # seconds: no verdict waits for counters


def counted(server: Server) -> Speculation | None:
    """vLLM's or llama.cpp's counts since the server began, for all who ask it; None where it shows none."""
    try:
        text = (
            server.begin(f"{server.root}/metrics", timeout=min(TIMEOUT, server.timeout))
            .content()
            .decode(errors="replace")
        )
    except EndpointFailed:
        return None
    return parsed(text)


def since(before: Speculation, now: Speculation) -> Speculation | None:
    """What came between two counts; None where the server began anew."""
    drafted, accepted = (now.drafted or 0) - (before.drafted or 0), now.accepted - before.accepted
    return Speculation(drafted, accepted, now.source) if 0 <= accepted <= drafted else None


def parsed(text: str) -> Speculation | None:
    """The sums over what is counted apart (engines, models); None where not both counts are there, or one is none."""
    sums: dict[str, float] = {}
    for line in LINE.finditer(text):
        try:
            value = float(line["value"])
        except ValueError:
            return None
        if not (math.isfinite(value) and 0 <= value <= LARGEST):
            return None
        sums[line["kind"]] = sums.get(line["kind"], 0.0) + value
    if sums.keys() != {"draft", "accepted"} or sums["accepted"] > sums["draft"]:
        return None
    return Speculation(int(sums["draft"]), int(sums["accepted"]), "its counters at /metrics, of all who asked it")
