"""OpenVINO GenAI as a decoder under judgement; `pip install project-sybil[openvino]` brings it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sybil.drafting.window import GAMMA
from sybil.errors import InvalidSetting, NotJudgeable, PackageMissing, one_line, told
from sybil.losslessness.samples import Request, Sample, Subject
from sybil.losslessness.speculation import Speculation
from sybil.losslessness.subjects import WIDTHS, derived

MODEL = "openvino_model.xml"
EXACTLY = {"EXECUTION_MODE_HINT": "ACCURACY"}
"""OpenVINO computes in float32 with this, so that a verdict is about the decoder and not about its rounding."""


class OpenVINOSubject:
    """OpenVINO GenAI's pipeline on the CPU: plain, with a draft model, or with its prompt lookup. gamma: tokens
    proposed a round.

    target, draft: a GGUF file, or a folder with openvino_model.xml. Prefix caching is off, so every text is computed
    from its beginning. Raises PackageMissing or InvalidSetting."""

    def __init__(self, target: Path, draft: Path | None = None, gamma: int = GAMMA, lookup: bool = False) -> None:
        try:
            import openvino
            import openvino_genai
        except ImportError:
            raise PackageMissing(
                "decoder openvino needs a package that isn't installed: pip install project-sybil[openvino]"
            ) from None
        self.target, self.drafts, self.lookup, self.gamma = target, draft is not None, lookup, gamma
        kind = "a draft model" if self.drafts else "prompt lookup" if lookup else "no draft"
        self.name = f"OpenVINO GenAI, {kind}"
        self.speculation: Speculation | None = None
        self._genai, self._tensor = openvino_genai, openvino.Tensor
        try:
            self._pipeline = self._load(draft)
        except (RuntimeError, IndexError) as error:  # IndexError: a GGUF file lacks a field that OpenVINO looks for
            names = f"{target} and {draft}" if draft is not None else str(target)
            raise InvalidSetting(
                f"OpenVINO GenAI can't load {names} ({told(error)}): give files that it reads"
            ) from None

    def _load(self, draft: Path | None) -> Any:
        threads = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        settings: dict[str, Any] = {**EXACTLY, **threads}
        if self.drafts or self.lookup:
            settings["scheduler_config"] = self._genai.SchedulerConfig()
        if self.lookup:
            settings["prompt_lookup"] = True
        if draft is None:
            return self._genai.LLMPipeline(str(self.target), "CPU", **settings)
        with tempfile.TemporaryDirectory() as folder:
            settings["draft_model"] = self._genai.draft_model(
                str(self._converted(draft, Path(folder))), "CPU", **EXACTLY, **threads
            )
            return self._genai.LLMPipeline(str(self.target), "CPU", **settings)

    def _converted(self, draft: Path, folder: Path) -> Path:
        """A draft as a folder for OpenVINO GenAI, which reads a target from a GGUF file, but no draft."""
        if not draft.is_file():
            return draft
        link = folder / "draft.gguf"
        link.symlink_to(draft.resolve())
        self._genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
        return folder

    def widths(self) -> dict[str, Subject]:
        """The same pipeline without speculation, and with other numbers of tokens a round."""
        if not (self.drafts or self.lookup):
            return {}
        others: dict[str, Subject] = {"plain": OpenVINOSubject(self.target)}
        for gamma in WIDTHS:
            other = copy(self)
            other.gamma, others[f"gamma {gamma}"] = gamma, other
        return others

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        for index, prompt in enumerate(prompts):
            ids = np.array([prompt], dtype=np.int64)
            inputs = self._genai.TokenizedInputs(self._tensor(ids), self._tensor(np.ones_like(ids)))
            try:
                found = self._pipeline.generate(inputs, self._config(request, derived(seed, index)))
            except RuntimeError as error:
                raise NotJudgeable(
                    f"decoder {self.name} raised {one_line(str(error), 400)} (prompt {index} of {len(prompts)}, "
                    f"{len(prompt)} tokens)"
                ) from error
            self._count(found.extended_perf_metrics)
            yield Sample(tuple(prompt), tuple(found.tokens[0]))

    def _config(self, request: Request, seed: int) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.rng_seed = request.max_new_tokens, seed
        config.do_sample = request.temperature > 0
        if config.do_sample:
            config.temperature, config.top_p, config.min_p = request.temperature, request.top_p, request.min_p
            config.top_k = request.top_k or config.top_k  # the default stands for no filter
        if request.eos_token_ids:
            config.set_eos_token_id(request.eos_token_ids[0])
            config.stop_token_ids = set(request.eos_token_ids)
        else:
            config.ignore_eos = True
        config.stop_strings, config.include_stop_str_in_output = set(request.stop_strings), True
        if self.drafts or self.lookup:
            config.num_assistant_tokens = self.gamma
        if self.lookup:
            config.max_ngram_size = 3
        return config

    def _count(self, metrics: Any) -> None:
        """Adds OpenVINO GenAI's own counts of drafted and accepted tokens, where it gives any."""
        if metrics is None or not (self.drafts or self.lookup):
            return
        now = Speculation(metrics.get_num_draft_tokens(), metrics.get_num_accepted_tokens(), "OpenVINO GenAI's metrics")
        self.speculation = now if self.speculation is None else self.speculation + now
