"""The candidates that are compared with the float target: their names, and how each is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sybil.drafts import LOOKUP
from sybil.measuring.drafters import DRAFT, NONE, SELF

Family = Literal["plain", "lossless", "lenience", "typical", "threshold", "topk", "quantised"]
STRENGTHS: Mapping[Family, tuple[str, ...]] = {
    "lenience": ("0.5", "0.2", "0.05"),
    "typical": ("0.3", "0.09", "0.01"),
    "threshold": ("0.5", "0.1", "0.01"),
    "topk": ("2", "5", "20"),
}
"""The strengths of each lossy rule, as lossy.py names them. A later strength keeps more of the proposed tokens."""
PLAIN = "plain"
WHOLE = 256
"""Inputs of a block of q5_k and q4_k."""


@dataclass(frozen=True, slots=True)
class TradeoffCandidate:
    """A way to decode. drafter: as `sybil compare --drafters` names it. dtype: the storage of the target's weights.

    lossless: whether the output's distribution is the float target's. A quantised target is decoded losslessly, but it
    is another model."""

    name: str
    family: Family
    drafter: str = NONE
    rule: str = "token"
    dtype: str = "float32"

    @property
    def lossless(self) -> bool:
        return self.family in ("plain", "lossless")

    @property
    def label(self) -> str:
        """The candidate's name within its family."""
        return self.name.removeprefix(f"{self.family}:")


def candidates(draft: str | None, width: int) -> tuple[TradeoffCandidate, ...]:
    """All candidates in the order of the table, autoregressive decoding of the float target first. draft: the pair's
    own; None where it has none, and then the lossy rules judge a copy of the target. width: the target's, on which the
    possible block types depend."""
    drafters = [*([] if draft is None else [DRAFT]), SELF, LOOKUP]
    found = [TradeoffCandidate(PLAIN, "plain"), *(TradeoffCandidate(name, "lossless", name) for name in drafters)]
    for family, strengths in STRENGTHS.items():
        names = [f"{family}:{strength}" for strength in strengths]
        found += [TradeoffCandidate(name, family, drafters[0], name) for name in names]
    blocks = ("q8_0", "q5_k", "q4_k") if width % WHOLE == 0 else ("q8_0", "q5_1", "q4_0")
    return *found, *(TradeoffCandidate(each, "quantised", dtype=each) for each in blocks)
