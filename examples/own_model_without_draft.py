"""One model and no second one: which way to draft is worth how much?

    python examples/own_model_without_draft.py
    python examples/own_model_without_draft.py --target my-model --prompt "The first thing to do"

`sybil compare --target my-model --drafters all` measures the same over many prompts, and the time besides.
"""

from __future__ import annotations

import argparse

import sybil

DRAFTS = "self", "lookup", "hybrid:lookup,self"
EMBEDDED = sybil.PAIRS["stdlib"].target  # by its own name, so that its draft stays out


def main() -> None:
    """Print a line a draft: what was kept, how many tokens a round gave, and whether the text is the target's."""
    options = argparse.ArgumentParser()
    options.add_argument("--target", default=EMBEDDED, help="a hub id, a folder or a GGUF file")
    options.add_argument("--prompt", default="def read_lines(path):\n    with open(path")
    options.add_argument("--tokens", type=int, default=48, help="new tokens, at most")
    asked = options.parse_args()

    plain = sybil.load(asked.target).generate(asked.prompt, max_new_tokens=asked.tokens)
    print(asked.prompt + plain.text[0])
    for draft in DRAFTS:
        out = sybil.load(asked.target, draft=draft).generate(asked.prompt, max_new_tokens=asked.tokens)
        rate, gained = out.stats.acceptance_rate, out.stats.tokens_per_round
        print(f"{draft}: {rate:.0%} accepted, {gained:.2f} tokens a round, same text: {out.text == plain.text}")


if __name__ == "__main__":
    main()
