"""The options that choose models, shared by the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from sybil.pairs import PAIRS
from sybil.pairs import pair as registered

PairOption = Annotated[str, typer.Option(help="A registered pair of target and draft.")]
TargetOption = Annotated[str | None, typer.Option(help="Target: a hub id or a folder, in place of the pair.")]
DraftOption = Annotated[str | None, typer.Option(help="Draft for --target: a hub id, a folder, or lookup.")]
GammaOption = Annotated[int, typer.Option(help="Tokens the draft proposes in a round.")]
RuleOption = Annotated[str, typer.Option(help="token, block or coupled: what keeps the output the target's.")]
WindowOption = Annotated[str, typer.Option(help="constant, heuristic or confident: how a proposal's length varies.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, float16, bfloat16, float64; auto: as stored; by device if left out."),
]
DraftDtypeOption = Annotated[
    str | None, typer.Option(help="The draft's own, int8 too; int8 on a CPU, the target's on a GPU if left out.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; the GPU, where there is one, if left out.")
]


def names(pair: str, target: str | None, draft: str | None) -> tuple[str, str | None]:
    """Target and draft as the options choose them; raises UnknownPair or InvalidSetting."""
    if target is not None and target not in PAIRS:
        return target, draft
    chosen = registered(target or pair)
    return chosen.target, draft or chosen.draft
