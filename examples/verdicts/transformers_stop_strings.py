"""transformers' assisted generation: a stopping criterion that holds inside a block is passed over.

What happens: with `assistant_model`, and with `prompt_lookup_num_tokens`, the stopping criteria are asked once a round,
about the whole sequence. A kept token in the middle of a block may complete a stop string. The criteria then see the
stop string at the block's end, or not at all. Plain `generate` stops at the token that completes the stop string. So
the text is longer than plain decoding's, by up to a block. Issue 48039 of transformers is about this.

What would mend it: ask the criteria after each token that is kept, and cut the text there.

Run: python examples/verdicts/transformers_stop_strings.py       (seconds; transformers and torch are all it needs)
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, StoppingCriteria


class AtToken(StoppingCriteria):
    """Ends a text with a token, as a stop string of one token does."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, ids: Tensor, scores: Tensor, **rest: object) -> Tensor:
        return ids[:, -1] == self.token


def main() -> tuple[int, int]:
    """Prints the lengths of the plain and the assisted text, and gives them."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=50, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5, bos_token_id=None, eos_token_id=None
        )
    ).eval()
    model.generation_config.assistant_confidence_threshold = 0  # blocks of five, and none ended early
    model.generation_config.num_assistant_tokens = 5
    ids = torch.tensor([[1, 2, 3]])
    settings = dict(attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, eos_token_id=None)
    whole = model.generate(ids, max_new_tokens=20, **settings)[0, 3:].tolist()
    stop = next(token for index, token in enumerate(whole) if index >= 2 and token not in whole[:index])
    plain = model.generate(ids, max_new_tokens=20, stopping_criteria=[AtToken(stop)], **settings)[0, 3:]
    # the model drafts for itself, so every proposal is kept, and blocks are long
    assisted = model.generate(
        ids, max_new_tokens=20, stopping_criteria=[AtToken(stop)], assistant_model=model, **settings
    )[0, 3:]
    print(f"transformers {transformers.__version__}: greedy text {whole}, to be ended at token {stop}")
    print(f"plain:    {plain.tolist()}")
    print(f"assisted: {assisted.tolist()}")
    return len(plain), len(assisted)


if __name__ == "__main__":
    main()
