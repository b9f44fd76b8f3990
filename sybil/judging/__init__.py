"""The judge as a library: it tells whether a decoder is lossless, whoever wrote the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from sybil.agreement import tolerance_of
from sybil.judging.asked import FULL, QUICK, Asked, planned
from sybil.judging.case import JudgedCase
from sybil.judging.decoders import Bench, Endpoint, Judged, Models
from sybil.judging.original import Source
from sybil.judging.wording import Prompts, chosen
from sybil.losslessness.report import Report
from sybil.losslessness.trial import Progress, silent, unheard
from sybil.models.huggingface import evaluating
from sybil.models.objects import inside
from sybil.pairs import PAIRS
from sybil.servers.deadline import TIMEOUT

__all__ = ["Asked", "Endpoint", "Judged", "Models", "Prompts", "Report", "judge"]


def judge(
    decoder: Judged,
    target: Source,
    prompts: Prompts = None,
    *,
    draft: Source | None = None,
    control: Judged | None = None,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    eos: Sequence[str | int] = (),
    tolerance: str | float | None = None,
    timeout: float = TIMEOUT,
    quick: bool = False,
    progress: Progress = silent,
    advise: Callable[[str], None] = unheard,
    **asked: Unpack[Asked],
) -> Report:
    """Judge whether a decoder is lossless, by comparing its answers with the target that it claims to follow.

    - `decoder` is one of these:
        - a function `(prompt, *, max_new_tokens, temperature, top_k, top_p, min_p, eos_token_ids, stop_strings, seed,
          gamma)`. It is called with the keywords that it takes. It returns the new token ids, or `(new ids, places)`,
          or `(new ids, places or None, (tokens drafted, tokens accepted))`. Places are each token's place in its block.
        - a `sybil.Decoder`
        - a transformers model, whose `generate()` is judged
        - a name: "sybil", "transformers", "assisted", "usd", "prompt-lookup", "openvino", "package.module:function" or
          "file.py:function"
        - a server's URL, or an `Endpoint`
    - `target`: a pair's name, a hub id, a folder, a GGUF file, or a transformers model. The judge runs it by
      transformers' own forward.
    - `prompts`: texts, messages or token ids, or a JSONL file of them (`pathlib.Path`). None stands for Sybil's own.
    - `draft`: the decoder's draft model, where it is known. The judge checks whether the decoder's tokens lean towards
      this model's proposals or away from them.
    - `control`: a second, plain decoder ("sybil" without its draft). A fault that both decoders have isn't blamed on
      speculation.
    - `tokenizer`: the target's, where the target is an object.
    - `dtype`: what the decoder keeps the weights in. For a transformers model it is that model's dtype by default.
    - `device`: where the target runs. `revision`, `adapter`: the target's. All three are as `sybil.load` takes them.
    - `eos`: end tokens by id or text, in place of the target's own.
    - `tolerance`: how far the decoder's own rounding may move a logit: a number of logits, or a name ("float16",
      "q8 activations").
    - `timeout`: seconds for an answer of a server or of a named function. A function object has no time limit.
    - `quick`: use fewer prompts and tokens.
    - `progress`: called with phase, done and total. `advise`: called beforehand if the plan is too small for a PASS.
    - `asked`: the keywords of `Asked`.

    The report's verdict is "PASS", "FAIL" or "INCONCLUSIVE", and `print(report)` shows it with its reasons. Raises the
    errors of sybil.errors where there is no verdict, for example NotJudgeable for a function that raises."""
    plan, settings = planned(asked, quick)
    stated = None if tolerance is None else tolerance_of(str(tolerance))
    texts = chosen(prompts, target, asked.get("count", (QUICK if quick else FULL)["count"]))
    if isinstance(target, str) and target in PAIRS:
        target, draft = PAIRS[target].source, PAIRS[target].draft if draft is None else draft
    if dtype is None and isinstance(decoder, nn.Module) and isinstance(target, str | Path):
        dtype = inside(decoder).dtype
    models = Models(
        target=target, draft=draft, dtype=dtype, device=device, tokenizer=tokenizer, revision=revision, adapter=adapter
    )
    bench = Bench(models, settings, eos, timeout)
    with evaluating(target.modules() if isinstance(target, nn.Module) else ()):
        return JudgedCase.of(bench, decoder, texts, plan, stated, control).judged(progress, advise)
