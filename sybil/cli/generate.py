"""sybil generate: stream a continuation, the draft's tokens in one colour and the target's in another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from sybil.cli import options
from sybil.cli.streaming import counted, ending, shown
from sybil.cli.terminal import print_json
from sybil.drafting.window import AUTO
from sybil.errors import EmptyPrompt, InvalidSetting
from sybil.loading import load
from sybil.lossy import is_lossy
from sybil.measuring.metrics import MetricsFile
from sybil.pairs import default_pair
from sybil.results import Stats, Step
from sybil.settings import Settings
from sybil.text import decode


def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; '-' or nothing reads standard input.")] = None,
    pair: options.PairOption = None,
    target: options.TargetOption = None,
    draft: options.DraftOption = None,
    datastore: options.DatastoreOption = None,
    dtype: options.DtypeOption = None,
    draft_dtype: options.DraftDtypeOption = None,
    device: options.DeviceOption = None,
    revision: options.RevisionOption = None,
    adapter: options.AdapterOption = None,
    gamma: options.GammaOption = None,
    rule: options.RuleOption = options.RULE,
    window: options.WindowOption = options.WINDOW,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = options.TOP_K,
    top_p: options.TopPOption = options.TOP_P,
    min_p: options.MinPOption = options.MIN_P,
    seed: options.SeedOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Answer the prompt as a user's message, by the model's chat template. `sybil chat` has several turns.",
            rich_help_panel=options.CHAT,
        ),
    ] = False,
    system: options.SystemOption = None,
    metrics_file: options.MetricsFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Continue a prompt. Green: tokens that the draft proposed; magenta: the target's own."""
    text = prompt if prompt not in (None, "-") else _standard_input()
    if not text:
        raise EmptyPrompt("the prompt is empty: give text as the argument or on standard input")
    if system is not None and not chat:
        raise InvalidSetting("system is given, and a text to continue has no system's message: add --chat")
    sampling = options.sampling(temperature, top_k, top_p, min_p)
    settings = {
        "max_new_tokens": max_new_tokens, **sampling.keywords,
        "gamma": AUTO if gamma is None else gamma, "rule": rule, "window": window, "seed": seed,
    }  # fmt: skip
    Settings(**settings)  # raises for wrong settings before anything is loaded
    chosen_target, chosen_draft = options.names(pair or default_pair(), target, draft)
    metrics = MetricsFile(metrics_file, chosen_target)
    decoder = load(
        chosen_target,
        draft=chosen_draft,
        dtype=dtype,
        draft_dtype=draft_dtype,
        device=device,
        revision=revision,
        adapter=adapter,
        datastore=datastore or (),
    )
    if chat:
        options.check_chats(decoder, pair, target, ", which --chat needs")
    options.announce(pair, target)
    assert decoder.tokenizer is not None  # load refuses a folder without a tokenizer
    said = [] if system is None else [{"role": "system", "content": system}]
    stream = decoder.stream([*said, {"role": "user", "content": text}] if chat else text, **settings)
    lossless = decoder.draft is None or not is_lossy(rule)
    steps: list[Step] = []
    try:
        if as_json:
            steps.extend(stream)
            tokens = [token for step in steps for token in step.tokens[0]]
            completion = decode(decoder.tokenizer, tokens)
            record = _record(chosen_target, chosen_draft, settings, text, completion, tokens, steps)
            print_json({**record, "lossless": lossless, "chat": chat, "system": system})
            return
        typer.secho(text, nl=chat, dim=True)
        for step in shown(stream, decoder.tokenizer):
            steps.append(step)
    finally:
        if not as_json:
            told = counted(Stats.of(steps), ending(steps) or "interrupted")
            typer.secho(f"\n{told}{'' if lossless else f' (rule {rule} is not lossless)'}", dim=True)
        metrics.add(steps)


def _standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        encoding = sys.stdin.encoding.upper()
        raise InvalidSetting(f"standard input is no {encoding} text ({error}): give the prompt in {encoding}") from None


def _record(
    target: str,
    draft: str | None,
    settings: Mapping[str, object],
    prompt: str,
    text: str,
    tokens: list[int],
    steps: list[Step],
) -> dict[str, object]:
    stats = Stats.of(steps)
    return {
        "target": target,
        "draft": draft,
        "settings": settings,
        "prompt": prompt,
        "text": text,
        "tokens": tokens,
        "from_draft": [index < step.accepted[0] for step in steps for index in range(len(step.tokens[0]))],
        "finished": steps[-1].finished[0],
        "proposed": stats.proposed,
        "accepted": stats.accepted,
        "acceptance_rate": stats.acceptance_rate,
        "rounds": stats.rounds,
        "tokens_per_round": stats.tokens_per_round,
        "seconds": stats.seconds,
        "tokens_per_second": stats.tokens_per_second,
    }
