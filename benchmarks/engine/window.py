"""The bars of gamma="auto": beside every fixed gamma, by kind of prompt, and with a draft that is of no use."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.engine.bars import CPU, Bar, Result, Tick
from benchmarks.engine.drafts import interleaved, quartiles
from sybil.drafting import DraftModel
from sybil.drafting.window import AUTO
from sybil.loading import load, read
from sybil.measuring import prompts as texts
from sybil.measuring.contenders import Contender, SybilContender
from sybil.measuring.drafters import DRAFT, NONE, SELF, Drafters
from sybil.measuring.timing import Interval
from sybil.measuring.workload import RandomModel
from sybil.models import Model
from sybil.pairs import PAIRS, SMOLLM2, STDLIB
from sybil.transfer import integers

GAMMAS = (1, 2, 3, 4, 5, 6, 8)
OF_BEST, OF_PLAIN = 0.95, 0.96
"""OF_BEST: the share of the best fixed gamma's speed that auto must reach on each domain. OF_PLAIN: the share of plain
decoding's speed that it must reach with a draft that is of no use."""
USELESS, USELESS_TOKENS = "useless", 128
DRAFTERS = {STDLIB: (DRAFT, SELF, USELESS), SMOLLM2: (SELF, USELESS)}
SMALL = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 352,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def window(pair: str, drafter: str, count: int, tokens: int, tick: Tick) -> Result:
    """Plain decoding, gamma auto and fixed gammas over `count` prompts of a pair. All of them run a prompt before the
    next prompt begins. The useless draft runs at gamma auto only."""
    decoder = load(pair, dtype="float32", device=CPU)
    checkpoint = read(PAIRS[pair].source)
    if drafter == USELESS:
        drafted, tokens, gammas = (
            decoder.with_draft(DraftModel(_useless(pair, decoder.target.vocab_size))),
            USELESS_TOKENS,
            (),
        )
    else:
        drafted, gammas = Drafters(decoder, checkpoint, torch.float32).by(drafter), GAMMAS
    contenders: dict[str, Contender] = {NONE: SybilContender(decoder.without_draft(), eos_token_id=[])}
    for gamma in (AUTO, *gammas):
        contenders[str(gamma)] = SybilContender(drafted, gamma=gamma, eos_token_id=[])
    chosen = texts.spread(texts.load(shipped=PAIRS[pair].prompts), count)
    rows = interleaved(contenders, [integers(texts.encode(each, decoder)) for each in chosen], tokens, tick)
    seconds = {name: [row.seconds for row in group] for name, group in rows.items()}
    result = Result(samples={**seconds, "kinds": [each.domain for each in chosen]})
    for kind in dict.fromkeys(each.domain for each in chosen):
        places = [place for place, each in enumerate(chosen) if each.domain == kind]
        took = {name: [times[place] for place in places] for name, times in seconds.items()}
        what = f"{pair}, {drafter}, {kind}: auto over"
        asked = OF_PLAIN if drafter == USELESS else None
        result.bars.append(Bar(f"{what} plain", quartiles(took[NONE], took[AUTO]), at_least=asked))
        if gammas:
            best = min((str(gamma) for gamma in gammas), key=lambda name: sum(took[name]))
            found = replace(quartiles(took[best], took[AUTO]), value=sum(took[best]) / sum(took[AUTO]))
            over = sum(took[NONE]) / sum(took[best])
            result.bars.append(Bar(f"{what} the best, {best} ({over:.2f} of plain)", found, at_least=OF_BEST))
    same = sum(row.tokens == plain.tokens for row, plain in zip(rows[AUTO], rows[NONE], strict=True)) / len(chosen)
    result.bars.append(
        Bar(f"{pair}, {drafter}: texts that are plain decoding's", Interval(same, same, same), at_least=1.0)
    )
    return result


def _useless(pair: str, vocab_size: int) -> Model:
    """A model with random weights, in the shape of the pair's own draft, or in a small shape if the pair has none."""
    named = PAIRS[pair].draft
    config = read(named).config if named else {**SMALL, "vocab_size": vocab_size}
    return RandomModel(USELESS, config).build(torch.float32, CPU)
