"""One cell of a sweep: what it runs, and what was measured. A sweep's JSONL file has a row for each cell. Later
versions of Sybil still read the rows of earlier ones."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION = 1
"""The version of RunResult. A later version reads the rows of earlier ones. An earlier version refuses the rows of
later ones."""
NONE = "none"
"""The drafter's name for plain decoding."""
UNCACHED, UNCACHED_PLAIN = "uncached", "uncached-plain"
"""The drafters of uncached.py: loops over transformers' forward without a KV cache, the first with the pair's draft and
the second without a draft. They are only there to be measured."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(_Strict):
    """What one cell decodes, and how. The field names are those of `sybil.load` and `Decoder.generate`.

    drafter: a draft's name as `sybil.load` takes it ("self", "lookup", "hybrid:lookup,self", a model); "pair" for the
    pair's own draft, or the best one known where the pair has none; "none" for plain decoding; UNCACHED or
    UNCACHED_PLAIN. domain: the domain of the prompts, which are the pair's where it has that domain and the English
    ones otherwise; "all" for each domain of the pair in turn. prompts: how many prompts of the domain are decoded.
    batch: how many rows are decoded together. repeats: how many times all prompts are decoded. At temperature 0 nothing
    is drawn, so the filters are off."""

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
        """12 hex digits of SHA-256 over the canonical JSON, whose keys are sorted and which has no spaces. If a later
        version adds a field, the JSON must leave it out where it has its default. Otherwise the hashes of earlier rows
        would change."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """The cell's name in the style of the papers' tables: "AR" for plain decoding, "SD-K4" for gamma 4, "SD-auto"
        for gamma "auto". "-uncached" follows where no KV cache is kept."""
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
        """The plain decoding that this cell's speed-up is measured against: the same texts without a draft. The
        baseline of UNCACHED has no KV cache either. The baseline of plain decoding is itself."""
        drafter = UNCACHED_PLAIN if self.drafter == UNCACHED else NONE
        plain = {"drafter": drafter, "rule": "token", "gamma": "auto", "window": "constant", "draft_dtype": None}
        return self.model_copy(update=plain)


class Quantiles(_Strict):
    """A distribution of times. count: of samples. at: its quantiles at 0 %, 1 %, ..., 100 %, in milliseconds."""

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
    """The seconds that all texts together took in each phase. The phases are those of `sybil.results.Timings`."""

    prefill: Seconds
    draft: Seconds
    verify: Seconds
    sample: Seconds
    other: Seconds


class Memory(_Strict):
    """Memory in bytes. weights: of the models. prefill, decode: the peak growth above the weights while prompts were
    read, and while tokens were decoded; None where the system doesn't tell."""

    weights: Bytes
    prefill: Bytes | None = None
    decode: Bytes | None = None


class Measured(_Strict):
    """What was measured over all texts of a cell, in all repeats.

    proposed_at[i]: the number of rounds in which at least i + 1 tokens were proposed. accepted_at[i]: the number of
    rounds in which at least i + 1 tokens were accepted. accepted_in_round[n]: the number of rounds in which exactly n
    tokens were accepted. passes: the tokens per second of each repeat. text_seconds, text_tokens, text_acceptance: for
    each text its seconds, its new tokens, and accepted / proposed, or None where nothing was proposed. The texts are in
    the order of the prompts, one repeat after the other. Each row of a batch has the seconds of the whole batch."""

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
        """accepted_at / proposed_at for each place of a proposal. It is the share of the proposals of at least that
        length of which all tokens up to the place were accepted."""
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
    """The time at which the cell finished, in UTC, as ISO 8601."""
