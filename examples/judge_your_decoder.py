"""Is a decoder lossless? Here it is transformers' own generate(); put yours into decode().

    python examples/judge_your_decoder.py             PASS
    python examples/judge_your_decoder.py --wrong     FAIL: it samples colder than it was asked to
    python examples/judge_your_decoder.py --target my-model

The exit status is 0 for PASS, 1 for FAIL, 3 for INCONCLUSIVE.
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sybil

EMBEDDED = Path(str(files("sybil"))) / "embedded" / "stdlib" / "target"
STATUS = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


def main() -> int:
    """Prints the report. Returns the exit status of the verdict."""
    options = argparse.ArgumentParser()
    options.add_argument("--target", default=str(EMBEDDED), help="a hub id or a folder")
    options.add_argument("--wrong", action="store_true", help="judge a decoder that is wrong")
    options.add_argument("--count", type=int, default=32, help="prompts")
    options.add_argument("--tokens", type=int, default=32, help="new tokens a text, at most")
    asked = options.parse_args()

    model = AutoModelForCausalLM.from_pretrained(asked.target, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(asked.target)

    def decode(
        prompt: list[int], *, max_new_tokens: int, temperature: float, top_k: int, top_p: float, eos_token_ids: Any,
        seed: int,
    ) -> list[int]:  # fmt: skip
        """The decoder that is judged: takes a prompt's token ids and returns new ones. sybil.judge() gives it only the
        settings that it takes."""
        torch.manual_seed(seed)
        sampling = dict(temperature=temperature, top_k=top_k, top_p=top_p) if temperature else {}
        if asked.wrong and temperature:
            sampling["temperature"] *= 0.6
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=temperature > 0,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(eos_token_ids) or None,
            pad_token_id=0,
            **sampling,
        )
        return out[0, len(prompt) :].tolist()

    report = sybil.judge(decode, model, tokenizer=tokenizer, quick=True, count=asked.count, max_new_tokens=asked.tokens)
    print(report)
    return STATUS[report.verdict]


if __name__ == "__main__":
    sys.exit(main())
