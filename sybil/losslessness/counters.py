"""A server's own counters of speculation, which it gives at /metrics in Prometheus' text format."""

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
TIMEOUT = 10.0  # seconds; a verdict doesn't wait longer for counters


def counted(server: Server) -> Speculation | None:
    """The counts of vLLM or llama.cpp since the server's start, over all its clients; None where it gives none."""
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
    """The difference of two counts; None where the server was restarted between them."""
    drafted, accepted = (now.drafted or 0) - (before.drafted or 0), now.accepted - before.accepted
    return Speculation(drafted, accepted, now.source) if 0 <= accepted <= drafted else None


def parsed(text: str) -> Speculation | None:
    """The counts, summed over engines and models. None where a count is missing, or is no number."""
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
