"""Whether speculation happened: by the decoder's own counts, or else by the places of its tokens in their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

PLACES = "the places of its tokens"
UNKNOWN = "speculation unknown: the decoder tells neither the places of its tokens nor how many it drafted"


@dataclass(frozen=True, slots=True)
class Speculation:
    """The tokens that a decoder drafted and accepted, by its own counts. drafted is None if only places are known;
    accepted is then the number of tokens that follow another one in their block. source: what gave the counts."""

    drafted: int | None
    accepted: int
    source: str = ""

    def __add__(self, other: Speculation) -> Speculation:
        known = self.drafted is not None and other.drafted is not None
        drafted = (self.drafted or 0) + (other.drafted or 0) if known else None
        return replace(self, drafted=drafted, accepted=self.accepted + other.accepted)

    @property
    def observed(self) -> bool:
        """Whether any token was drafted and accepted."""
        return self.accepted > 0

    @property
    def told(self) -> str:
        """The counts in a line, for a report."""
        said = f" (by {self.source})" if self.source else ""
        if self.drafted == 0:
            return f"speculation not observed: the decoder counts no drafted token{said}"
        if self.drafted is None and not self.accepted:
            return f"speculation not observed: each token came in a block of its own{said}"
        if self.drafted is None:
            return f"speculation: {self.accepted} tokens came in a block behind others{said}"
        if not self.accepted:
            return f"speculation not observed: of {self.drafted} drafted tokens the decoder accepted none{said}"
        share = self.accepted / self.drafted
        return f"speculation: {self.drafted} tokens drafted, {self.accepted} ({share:.0%}) accepted{said}"

    def as_dict(self) -> dict[str, Any]:
        """The counts as a dict for JSON."""
        return {**asdict(self), "observed": self.observed}


@dataclass(slots=True)
class Seen:
    """What a decoder's answers, taken together, show of speculation."""

    counts: Speculation | None = None
    behind: int | None = None

    def add(self, places: Sequence[int] | None, counts: Speculation | None) -> None:
        """Add what one answer shows."""
        if counts is not None:
            self.counts = counts + (self.counts or Speculation(0, 0))
        if places:
            self.behind = (self.behind or 0) + sum(place > 0 for place in places)

    def of(self, subject: object) -> Speculation | None:
        """The speculation by the answers' counts, or else the subject's own, or else places; None without any."""
        told: Speculation | None = self.counts or getattr(subject, "speculation", None)
        if told is None and self.behind is not None:
            return Speculation(None, self.behind, PLACES)
        return told
