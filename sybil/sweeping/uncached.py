"""The first prototype's loop, to be measured beside Sybil's. It has no KV cache, so in every round both models run
transformers' forward over the whole text. Its speed-up over plain decoding without a cache is large, because a round
reads the whole text once where plain decoding reads it once for each token. With a cache there is less to save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sybil.errors import InvalidSetting
from sybil.loading import dtype_chosen, read
from sybil.noise import Noise
from sybil.results import FinishReason, Step, Timings
from sybil.sampling import Sampling, draw, probabilities
from sybil.transfer import integers
from sybil.verification import Proposed, token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Uncached:
    """Decodes by transformers' models of a target and a draft without a cache: each forward reads the whole text. The
    draft is None for plain decoding. Raises the errors of sybil.load.

    end_tokens: the tokens that end a text."""

    def __init__(
        self, target: str, draft: str | None, dtype: str | None, device: torch.device, end_tokens: frozenset[int]
    ) -> None:
        from sybil.models.pretrained import load_transformers

        computed = dtype_chosen(target, dtype, device)
        self.end_tokens = end_tokens
        self.target = load_transformers(read(target), computed, device).eval()
        self.draft = None if draft is None else load_transformers(read(draft), computed, device).eval()

    @property
    def weight_bytes(self) -> int:
        """The bytes of both models' weights."""
        models = (self.target,) if self.draft is None else (self.target, self.draft)
        return sum(tensor.nbytes for model in models for tensor in model.parameters())

    def stream(
        self, prompts: Sequence[Tensor], *, max_new_tokens: int, gamma: int, sampling: Sampling, seed: int
    ) -> Iterator[Step]:
        """Decode one text, and yield a Step for each round, as Decoder.stream does. gamma: 0 for plain decoding.

        prompts: one tensor (n,). Raises InvalidSetting for several prompts."""
        if len(prompts) != 1:
            raise InvalidSetting(f"batch is {len(prompts)}: the loop without a cache decodes one text at a time")
        text, noise, left = prompts[0].tolist(), Noise(seed), max_new_tokens
        finished: FinishReason | None = None
        while finished is None:
            count = min(gamma, left - 1)
            block, accepted, timings = self._round(text, count, sampling, noise)
            ends = [place for place, each in enumerate(block) if each in self.end_tokens]
            if ends:
                block, finished = block[: ends[0] + 1], "eos"
            text, left = text + block, left - len(block)
            if not left:
                finished = finished or "length"
            yield Step((tuple(block),), (min(accepted, len(block)),), (count,), (finished,), timings)

    @torch.inference_mode()
    def _round(self, text: list[int], count: int, sampling: Sampling, noise: Noise) -> tuple[list[int], int, Timings]:
        """(the text's new tokens, how many of them were drafted, the seconds of each phase)."""
        began = time.perf_counter()
        proposed, draft_probs = self._drafted(text, count, sampling, noise)
        drafted = time.perf_counter()
        logits = _logits(self.target, [*text, *proposed], count + 1)
        verified = time.perf_counter()
        target_probs = probabilities(logits.cpu(), sampling)[None]
        offer = Proposed(integers([proposed]).reshape(1, count), draft_probs, target_probs, integers([count]))
        verdict = token(offer, noise.uniforms(integers([0]), integers([len(text)]), count + 1, Noise.JUDGE))
        accepted = int(verdict.accepted[0])
        block = [*proposed[:accepted], int(verdict.next_token[0])]
        judged = time.perf_counter()
        return block, accepted, Timings(draft=drafted - began, verify=verified - drafted, sample=judged - verified)

    def _drafted(
        self, text: list[int], count: int, sampling: Sampling, noise: Noise
    ) -> tuple[list[int], Tensor | None]:
        """(the tokens that the draft draws one after another, the distributions that they were drawn from, (1, count,
        vocab))."""
        if self.draft is None or not count:
            return [], None
        uniforms = noise.uniforms(integers([0]), integers([len(text)]), count, Noise.PROPOSE)[0]
        tokens, rows = list[int](), list[Tensor]()
        for place in range(count):
            probs = probabilities(_logits(self.draft, [*text, *tokens], 1).cpu(), sampling)
            tokens.append(int(draw(probs, uniforms[place : place + 1])[0]))
            rows.append(probs)
        return tokens, torch.cat(rows)[None]


def _logits(model: PreTrainedModel, text: list[int], last: int) -> Tensor:
    """The logits (last, vocab) after each of the last `last` tokens of a text. (The prototype computed the logits after
    all tokens.)"""
    logits: Tensor = model(input_ids=integers([text]).to(model.device), use_cache=False).logits
    return logits[0, -last:]
