"""A first text: a draft proposes tokens, the target checks them, and the text is the one that the target gives alone.

python examples/quickstart.py
python examples/quickstart.py --target my-model --draft my-draft --prompt "The first thing to do"
"""

from __future__ import annotations

import argparse

import sybil


def main() -> None:
    """Prints what each round gave, then the text, then the draft's acceptance rate and the tokens per round."""
    options = argparse.ArgumentParser()
    options.add_argument("--target", default="stdlib", help="a pair's name, a hub id, a folder or a GGUF file")
    options.add_argument("--draft", help="a model, or self, lookup, ...; the pair's own if left out")
    options.add_argument("--prompt", default="def read_lines(path):\n    with open(path")
    options.add_argument("--tokens", type=int, default=48, help="new tokens, at most")
    asked = options.parse_args()

    decoder = sybil.load(asked.target, asked.draft)
    for step in decoder.stream(asked.prompt, max_new_tokens=asked.tokens):  # a Step is one round of one row
        print(f"{step.accepted[0]} of {step.proposed[0]} proposed tokens kept, {len(step.tokens[0])} tokens gained")

    out = decoder.generate(asked.prompt, max_new_tokens=asked.tokens)
    print(asked.prompt + out.text[0])
    print(f"{out.stats.acceptance_rate:.0%} accepted, {out.stats.tokens_per_round:.2f} tokens a round")

    plain = decoder.without_draft().generate(asked.prompt, max_new_tokens=asked.tokens)
    print("the same text without a draft:", plain.text == out.text)


if __name__ == "__main__":
    main()
