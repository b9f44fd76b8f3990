"""flashspec: `SamplingConfig(top_p=...)` has no effect on the lossless variant.

What happens: only `variant="typical"` reads `top_p`, as that rule's own parameter. Under `"rejection"`, the default,
tokens are drawn from the whole distribution, whatever top_p says. Two configurations that differ in nothing but top_p
give the same tokens for a seed, and some of these tokens are outside the nucleus that was asked for.

What would mend it: filter the target's probabilities by top_p before the rule. Filter the draft's as well: otherwise
all of the draft's tokens outside the nucleus are refused. Or refuse top_p below 1 if the variant doesn't read it.

Run: pip install flashspec; python examples/verdicts/flashspec_top_p.py       (seconds)
"""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel

TOP_P = 0.1
CPU = torch.device("cpu")


def main() -> int:
    """Prints how many tokens are outside the nucleus, and gives that number."""
    import flashspec
    from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
    from flashspec.engine import HuggingFaceDrafter, TargetModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=50, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2, bos_token_id=None, eos_token_id=None
        )
    ).eval()
    prompt, texts = torch.tensor([[1, 2, 3]]), {}
    for top_p in (1.0, TOP_P):
        target = TargetModel("target", CPU, torch.float32, model=model)
        draft = HuggingFaceDrafter("draft", CPU, torch.float32, model=model)
        config = FlashSpecConfig(
            device="cpu", drafter_strategy="bandit", bandit=BanditConfig(n_arms=1),
            sampling=SamplingConfig(temperature=1.0, top_p=top_p, seed=0),
        )  # fmt: skip
        texts[top_p] = SpeculativeEngine(config, [draft], target).generate(prompt, max_new_tokens=24).output_ids[0]
    with torch.no_grad():
        probs = model(torch.cat([prompt[0], texts[TOP_P]])[None]).logits[0, 2:-1].softmax(-1)
    # a token is in the nucleus where those likelier than it don't make up top_p by themselves
    likelier = torch.where(probs > probs.gather(-1, texts[TOP_P][:, None]), probs, 0).sum(-1)
    outside = int((likelier >= TOP_P).sum())
    print(f"flashspec {flashspec.__version__}, one seed, top_p 1 and {TOP_P}:")
    print(texts[1.0].tolist())
    print(texts[TOP_P].tolist())
    print(f"of {len(likelier)} tokens {outside} are outside the nucleus of {TOP_P}")
    return outside


if __name__ == "__main__":
    main()
