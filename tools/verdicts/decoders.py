"""flashspec's and economize's decoders as functions that `sybil verify --decoder tools.verdicts.decoders:NAME` takes.

Both libraries work on transformers' models, which the environment variables TARGET and DRAFT name. Neither has stop
strings as the judge asks for them, so the text is cut behind them here. What the judge says of stop strings is about
this cut."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from sybil.loading import read
from sybil.models.pretrained import load_transformers
from sybil.stopping import Stops

TARGET, DRAFT = "VERDICTS_TARGET", "VERDICTS_DRAFT"
GAMMA = 4
CPU = torch.device("cpu")
Function = Callable[..., Any]


@cache
def model(variable: str) -> PreTrainedModel:
    """The transformers model that an environment variable names, without sampling defaults of its own."""
    loaded = load_transformers(read(os.environ[variable]), torch.float32, CPU).eval()
    loaded.generation_config = GenerationConfig()
    return loaded


def cut(tokens: list[int], stop_strings: Sequence[str]) -> list[int]:
    """The tokens up to the one that completes a stop string."""
    stops = Stops(strings=tuple(stop_strings), tokenizer=read(os.environ[TARGET]).tokenizer)
    return tokens[: stops.keep((), (), tokens)[0]] if stop_strings else tokens


@cache
def of_flashspec(with_draft: bool) -> tuple[Any, list[Any]]:
    """flashspec's wrappers: the target's, and the draft's or that of prompt lookup."""
    from flashspec.engine import HuggingFaceDrafter, NgramDrafter, TargetModel

    target = TargetModel("target", CPU, torch.float32, model=model(TARGET))
    if not with_draft:
        return target, [NgramDrafter()]
    return target, [HuggingFaceDrafter("draft", CPU, torch.float32, model=model(DRAFT))]


def flashspec(strategy: str, with_draft: bool = True) -> Function:
    """flashspec's engine with one of its strategies. With one drafter "bandit" always takes that drafter."""

    def decode(
        prompt: list[int], *, max_new_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float,
        eos_token_ids: Sequence[int], stop_strings: Sequence[str], seed: int,
    ) -> tuple[list[int], list[int]]:  # fmt: skip
        from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine

        if top_k or min_p:
            raise ValueError(f"flashspec has no top_k and no min_p: {top_k} and {min_p} were asked for")
        target, drafters = of_flashspec(with_draft)
        if with_draft and temperature:
            drafters[0].set_temperature(temperature)
        config = FlashSpecConfig(
            device="cpu", drafter_strategy=strategy, bandit=BanditConfig(n_arms=1),
            sampling=SamplingConfig(gamma=GAMMA, temperature=temperature, top_p=top_p, seed=seed),
        )  # fmt: skip
        engine = SpeculativeEngine(config, list(drafters), target)
        found = engine.generate(torch.tensor([prompt]), max_new_tokens, eos_token_ids)
        tokens = cut(found.output_ids[0, : found.n_tokens_generated].tolist(), stop_strings)
        places = [place for step in found.arm_steps for place in range(step.emitted)]
        return tokens, places[: len(tokens)]

    return decode


@cache
def of_economize(technique: str) -> Any:
    """economize's model: the target with one technique attached."""
    import economize
    from economize.techniques.draft_model import DraftModelConfig
    from economize.techniques.early_exit import EarlyExitConfig
    from economize.techniques.layer_skip import LayerSkipConfig
    from economize.techniques.lookup import LookupConfig

    layers = int(model(TARGET).config.num_hidden_layers)
    configs: dict[str, Callable[[], Any]] = {
        "draft_model": lambda: DraftModelConfig(model=os.environ[DRAFT]),
        "lookup": LookupConfig,
        "layer_skip": lambda: LayerSkipConfig(skip_layers=tuple(range(layers // 2, layers // 2 + layers // 4))),
        "early_exit": lambda: EarlyExitConfig(exit_layer=layers - layers // 4, head="shared"),
    }
    return economize.apply(model(TARGET), configs[technique]())


def economize(technique: str) -> Function:
    """economize's loop by its generate, which is called like transformers', with its rule for lossless sampling."""

    def decode(
        prompt: list[int], *, max_new_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float,
        eos_token_ids: Sequence[int], stop_strings: Sequence[str], seed: int,
    ) -> list[int]:  # fmt: skip
        from economize import DecodeConfig

        torch.manual_seed(seed)
        sampling: dict[str, Any] = dict(do_sample=False)
        if temperature:
            sampling = dict(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p or None)
        ids = torch.tensor([prompt])
        found = of_economize(technique).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, pad_token_id=0,
            eos_token_id=list(eos_token_ids) or None, **sampling,
            decoding=DecodeConfig(cycle_length=GAMMA + 1, verifier="rejection" if temperature else None),
        )  # fmt: skip
        return cut(found[0, len(prompt) :].tolist(), stop_strings)

    return decode


flashspec_rejection = flashspec("bandit")
flashspec_lookup = flashspec("bandit", with_draft=False)
flashspec_composite = flashspec("composite-g6-f2")
economize_draft_model = economize("draft_model")
economize_lookup = economize("lookup")
economize_layer_skip = economize("layer_skip")
economize_early_exit = economize("early_exit")
