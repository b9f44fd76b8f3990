"""One cell of a sweep: what is run, and what was measured. Rows of a JSONL file, which later versions still read."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION = 1
"""Of RunResult. A later version reads the rows of earlier ones; an earlier version refuses those of later ones."""
NONE = "none"
"""The drafter of plain decoding."""
UNCACHED, UNCACHED_PLAIN = "uncached", "uncached-plain"
"""The drafters of uncached.py: loops over transformers' forward that keep no keys and values, with the pair's draft and
without one. They are measured, and used for nothing else."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(_Strict):
    """What one cell decodes, and how. The field names are those of `sybil.load` and `Decoder.generate`.

    drafter: a draft's name as `sybil.load` takes it ("self", "lookup", "hybrid:lookup,self", a model), "pair" for the
    pair's own draft, or the best one known where it has none, "none" for plain decoding, UNCACHED, UNCACHED_PLAIN;
    domain: of the pair's prompts, or else of the English ones, "all" for each of the pair's in turn; prompts: how many
    texts of the domain; batch: rows decoded together; repeats: passes over the prompts. At temperature 0 the filters
    are off, for nothing is drawn."""

    pair: str
    drafter: str = NONE
    rule: str = "token"
    gamma: int | Literal["auto"] = "auto"
    window: str = "constant"
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Count = 0
    top_p: Share = 1.0
    min_p: Share = 0.0
    domain: str = "all"
    batch: Annotated[int, Field(ge=1)] = 1
    seed: Count = 0
    dtype: str | None = None
    draft_dtype: str | None = None
    device: str = "cpu"
    prompts: Annotated[int, Field(ge=1)] = 6
    new_tokens: Annotated[int, Field(ge=1)] = 48
    repeats: Annotated[int, Field(ge=1)] = 1

    @property
    def hash(self) -> str:
        """12 hex digits of SHA-256 over the canonical JSON: keys sorted, no spaces. Fields of later versions must be
        left out of the JSON where they have their defaults, so that the hashes of earlier rows stay."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """As the papers' tables say it: "AR" for plain decoding, "SD-K4" for gamma 4, "SD-auto"; "-uncached" follows
        where no cache is kept."""
        if self.plain:
            return "AR" if self.drafter == NONE else "AR-uncached"
        drafted = f"SD-K{self.gamma}" if self.gamma != "auto" else "SD-auto"
        return f"{drafted}-uncached" if self.drafter == UNCACHED else drafted

    @property
    def plain(self) -> bool:
        """Whether nothing is drafted."""
        return self.drafter in (NONE, UNCACHED_PLAIN)

    @property
    def baseline(self) -> RunConfig:
        """The plain decoding that this cell's speed-up is measured against: the same texts without a draft, and for
        UNCACHED without a cache too. That of plain decoding is itself."""
        drafter = UNCACHED_PLAIN if self.drafter == UNCACHED else NONE
        plain = {"drafter": drafter, "rule": "token", "gamma": "auto", "window": "constant", "draft_dtype": None}
        return self.model_copy(update=plain)


class Quantiles(_Strict):
    """A distribution: how many samples, and its quantiles at 0 %, 1 %, ..., 100 % (milliseconds)."""

    count: Count
    at: Annotated[tuple[float, ...], Field(min_length=101, max_length=101)]

    @property
    def p50(self) -> float:
        return self.at[50]

    @property
    def p95(self) -> float:
        return self.at[95]

    @property
    def p99(self) -> float:
        return self.at[99]


class Phases(_Strict):
    """Seconds of all texts by phase, as `sybil.results.Timings` has them."""

    prefill: Seconds
    draft: Seconds
    verify: Seconds
    sample: Seconds
    other: Seconds


class Memory(_Strict):
    """Bytes: the weights, and the peak growth above them while prompts were read and while tokens were decoded; None
    where the system doesn't tell."""

    weights: Bytes
    prefill: Bytes | None = None
    decode: Bytes | None = None


class Measured(_Strict):
    """What a cell's texts came to, all repeats together.

    proposed_at[i]: rounds in which at least i + 1 tokens were proposed; accepted_at[i]: in which at least i + 1 were
    accepted: their quotient is the survival of place i. accepted_in_round[n]: rounds in which exactly n were.
    text_seconds: of each text; text_tokens: its new tokens; text_acceptance: accepted / proposed of each, None where
    nothing was proposed, texts in the order of the prompts, repeats behind each other. A batch of rows shares its
    seconds: each row has the batch's. tokens_per_second of each repeat is in passes."""

    texts: Count
    emitted: Count
    rounds: Count
    proposed: Count
    accepted: Count
    accepted_in_round: tuple[Count, ...]
    proposed_at: tuple[Count, ...]
    accepted_at: tuple[Count, ...]
    seconds: Seconds
    passes: tuple[float, ...]
    phases: Phases
    ms_per_token: Quantiles
    ms_per_round: Quantiles
    ms_to_first_token: Quantiles
    text_seconds: tuple[float, ...]
    text_tokens: tuple[Count, ...]
    text_acceptance: tuple[Share | None, ...]
    memory: Memory
    joules: float | None = None
    lossless: bool = True

    @property
    def tokens_per_second(self) -> float:
        return self.emitted / self.seconds if self.seconds else 0.0

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted / self.proposed if self.proposed else None

    @property
    def tokens_per_round(self) -> float:
        return self.emitted / self.rounds if self.rounds else 0.0

    @property
    def survival(self) -> tuple[float, ...]:
        """The share of proposals of that length that were kept up to each place."""
        return tuple(kept / asked for kept, asked in zip(self.accepted_at, self.proposed_at, strict=True) if asked)


class RunResult(_Strict):
    """A row of a sweep's file: a cell that was measured, or one that failed, with its error in one line."""

    version: int = VERSION
    hash: str
    label: str
    config: RunConfig
    measured: Measured | None = None
    error: str | None = None
    environment: dict[str, str | int]
    finished: str
    """When, in UTC: ISO 8601."""
