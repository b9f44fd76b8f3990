"""One text of one candidate as a row of a JSONL file, and the rows of an earlier run to be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sybil.measuring.files import resumed

Mode = Literal["greedy", "sampled"]
GREEDY: Mode = "greedy"
SAMPLED: Mode = "sampled"
Count = Annotated[int, Field(ge=0, le=1 << 31)]
Nats = Annotated[float, Field(ge=-1e9, le=1e9)]


class _StrictRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Trade(_StrictRow):
    """What rows must share to be comparable. prompts: their digest. seed: the n-th prompt, from 0, is decoded with
    seed + n."""

    target: str
    draft: str | None
    max_new_tokens: Annotated[int, Field(ge=1)]
    prompts: str
    device: str
    seed: int = 0

    def seed_of(self, number: int) -> int:
        """The seed for the prompt of that number."""
        return (self.seed + number) % 2**63


class Said(_StrictRow):
    """What the float target says of a sampled text, by losslessness/evidence.py: sums over `judged` tokens.

    log_prob: of the tokens; entropy: of the distributions that they were to be drawn from, both in nats; variance: of
    log_prob under those distributions."""

    judged: Annotated[int, Field(ge=1, le=1 << 31)]
    log_prob: Nats
    entropy: Nats
    variance: Annotated[float, Field(ge=0, le=1e12)]


class TradeoffRow(_StrictRow):
    """said: of a sampled text; None of a greedy one. proposed, accepted: None without a draft."""

    trade: Trade
    candidate: str
    mode: Mode
    prompt: str
    domain: str
    prompt_tokens: Count
    tokens: Annotated[list[Count], Field(min_length=1)]
    seconds: Annotated[float, Field(gt=0, le=1e9)]
    rounds: Annotated[int, Field(ge=1)]
    proposed: Count | None = None
    accepted: Count | None = None
    said: Said | None = None
    environment: dict[str, str | int]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.said is not None) != (self.mode == SAMPLED):
            raise ValueError("a sampled text, and no other, has what the target says of it")
        return self

    @property
    def key(self) -> tuple[str, str, str]:
        return self.prompt, self.candidate, self.mode

    @property
    def ms_per_token(self) -> float:
        return 1e3 * self.seconds / len(self.tokens)


def read(path: Path, trade: Trade) -> list[TradeoffRow]:
    """The rows of a run to be resumed, as resumed() reads them; raises ResultsMismatch."""

    def row_of(line: str) -> tuple[TradeoffRow, dict[str, object]] | None:
        try:
            row = TradeoffRow.model_validate_json(line)
        except ValidationError:
            return None
        return row, row.trade.model_dump()

    rows = resumed(path, "tradeoff", trade.model_dump(), row_of)
    return list({row.key: row for row in rows}.values())
