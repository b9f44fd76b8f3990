"""One model and no second one: which way to draft is worth how much?

    python examples/own_model_without_draft.py
    python examples/own_model_without_draft.py --target my-model --prompt "The first thing to do"

`sybil compare --target my-model --drafters all` measures the same over many prompts, and the speed as well.
"""

from __future__ import annotations

import argparse

import sybil

DRAFTS = "self", "lookup", "hybrid:lookup,self"
EMBEDDED = sybil.PAIRS["stdlib"].target  # the target's own name: "stdlib" would bring the pair's draft


def main() -> None:
    """Prints a line for each draft: the acceptance rate, the tokens per round, and whether the text is the target's."""
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
