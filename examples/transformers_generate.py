"""Sybil's loop inside transformers' generate(): two arguments more, and the rest of the code stays as it is.

python examples/transformers_generate.py
python examples/transformers_generate.py --target my-model --draft my-draft --prompt "The first thing to do"
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sybil

EMBEDDED = Path(str(files("sybil"))) / "embedded" / "stdlib"


def main() -> None:
    """Prints a greedy text and a sampled one, and whether generate() alone gives the same greedy text."""
    options = argparse.ArgumentParser()
    options.add_argument("--target", default=str(EMBEDDED / "target"), help="a hub id or a folder")
    options.add_argument("--draft", default=str(EMBEDDED / "draft"), help="a hub id or a folder")
    options.add_argument("--prompt", default="def read_lines(path):\n    with open(path")
    options.add_argument("--tokens", type=int, default=32, help="new tokens, at most")
    asked = options.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(asked.target)
    target = AutoModelForCausalLM.from_pretrained(asked.target, dtype=torch.float32)
    draft = AutoModelForCausalLM.from_pretrained(asked.draft, dtype=torch.float32)
    inputs = tokenizer(asked.prompt, return_tensors="pt")
    usual = dict(**inputs, max_new_tokens=asked.tokens, pad_token_id=tokenizer.eos_token_id)

    plain = target.generate(**usual, do_sample=False)
    faster = target.generate(**usual, do_sample=False, draft=draft, custom_generate=sybil.custom_generate)
    print(tokenizer.decode(faster[0], skip_special_tokens=True))
    print("the same tokens as generate() alone:", plain.tolist() == faster.tolist())

    torch.manual_seed(0)
    sampled = target.generate(
        **usual, do_sample=True, temperature=0.8, draft=draft, custom_generate=sybil.custom_generate
    )
    print(tokenizer.decode(sampled[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
