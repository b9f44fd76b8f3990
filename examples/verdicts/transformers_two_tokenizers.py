"""transformers' assisted sampling with two tokenizers: the draft's probabilities are handed over under other tokens.

What happens: `AssistantToTargetTranslator` prunes the assistant's head to the tokens that both vocabularies have. It
lists these tokens in the order in which the assistant's `get_vocab()` is iterated. That is not the order of the ids,
and it differs from process to process. The pruned head's columns stand in that order. `get_target_logits` writes the
columns to the target's ids in the order of the assistant's ids. So q(x) is another token's probability, and
min(1, p / q) is wrong. Greedy decoding takes another way through the code and is right.

What would mend it: one order for both, for instance by sorting `target_to_assistant_input_ids.values()`.

Run: python examples/verdicts/transformers_two_tokenizers.py       (seconds; transformers and torch are all it needs)
"""

from __future__ import annotations

import string

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.generation.candidate_generator import AssistantToTargetTranslator

SHARED = string.ascii_lowercase
TARGET = {token: number for number, token in enumerate(SHARED)}
ASSISTANT = {**TARGET, "the draft's alone": len(SHARED)}  # a head is pruned only where the draft has a token more
SHOWN = 6


def tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """A word a token."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="a")))


def said(p: Tensor, drawn: Tensor, q: Tensor) -> Tensor:
    """The distribution of a token proposed from `drawn`, judged by p / q, and drawn from the residual of p and q."""
    kept = drawn * (p / q).clamp(max=1)
    residual = (p - q).clamp(min=0)
    return kept + (1 - kept.sum()) * residual / residual.sum()


def main() -> float:
    """Prints what the assistant proposes from, what it says, and what comes of it; gives the total variation."""
    torch.manual_seed(0)
    assistant = GPT2LMHeadModel(
        GPT2Config(vocab_size=27, n_embd=8, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None)
    ).eval()
    torch.nn.init.normal_(assistant.transformer.wte.weight)  # so that its tokens differ in probability
    ids = torch.tensor([[ASSISTANT["a"], ASSISTANT["b"]]])
    with torch.no_grad():
        own = assistant(ids).logits[0, -1]  # before its head is pruned
    drawn = own[[ASSISTANT[token] for token in SHARED]].softmax(-1)

    translator = AssistantToTargetTranslator(
        tokenizer(TARGET), tokenizer(ASSISTANT), len(TARGET), assistant_model=assistant, assistant_prune_lm_head=True
    )
    translator.unmap_input_ids()
    with torch.no_grad():
        pruned = assistant(ids).logits[0, -1]
    q = translator.get_target_logits(pruned).softmax(-1)

    p = torch.randn(len(SHARED)).softmax(-1)  # any target's
    wrong, right = said(p, drawn, q), said(p, drawn, drawn)
    print(f"transformers {transformers.__version__}, tokens {' '.join(SHARED[:SHOWN])} of {len(SHARED)}")
    for name, values in (
        ("proposed from", drawn), ("handed over as q", q), ("the target's", p), ("said", wrong),
        ("said, were q what it was drawn from", right),
    ):  # fmt: skip
        print(f"{name:36}", *(f"{float(each):.3f}" for each in values[:SHOWN]))
    variation = float((wrong - p).abs().sum() / 2)
    print(f"total variation from the target: {variation:.3f}")
    return variation


if __name__ == "__main__":
    main()
