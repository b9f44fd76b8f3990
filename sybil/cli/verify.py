"""sybil verify: is a decoder lossless, Sybil's or anybody's?"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from tokenizers import Tokenizer

from sybil.agreement import FLOAT32, HALF, TOLERANCES, tolerance_of
from sybil.cli import options
from sybil.cli.terminal import make_console, make_progress, print_json
from sybil.cli.verdict import bars, show
from sybil.decoding import Decoder
from sybil.devices import choose_device, dtype_named
from sybil.drafting.window import GAMMA, fixed
from sybil.drafts import LOOKUP, is_model
from sybil.errors import InvalidSetting, NotJudgeable, VocabularyMismatch
from sybil.fit import check_assisted, check_sizes, check_universal, differing_tokens
from sybil.loading import IN_BLOCKS, dtype_chosen, keeps_blocks, load, read
from sybil.losslessness.deadline import TIMEOUT, checked
from sybil.losslessness.ending import end_tokens
from sybil.losslessness.endpoint import EndpointSubject
from sybil.losslessness.foreign import ForeignSubject
from sybil.losslessness.openvino import OpenVINOSubject
from sybil.losslessness.samples import Request, Subject
from sybil.losslessness.subjects import SybilSubject, TransformersSubject
from sybil.losslessness.transport import Server
from sybil.measuring import files, prompts
from sybil.measuring.compare import digest
from sybil.measuring.machine import describe
from sybil.measuring.prompts import Prompt
from sybil.models.folders import locate
from sybil.reports import figures
from sybil.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL, QUICK = (64, 2, 48, 0.2), (32, 2, 32, 0.4)  # prompts, sequences a prompt, new tokens, resolution
BUILT_IN = SYBIL, TRANSFORMERS, ASSISTED, USD, PROMPT_LOOKUP, OPENVINO = (
    "sybil", "transformers", "assisted", "usd", "prompt-lookup", "openvino",
)  # fmt: skip
JUDGED, VERDICT = "What is judged", "How sure a verdict is"  # in --help
STATUS = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


def verify(
    pair: options.PairOption = None,
    target: options.TargetOption = None,
    draft: options.DraftOption = None,
    datastore: options.DatastoreOption = None,
    dtype: options.DtypeOption = None,
    draft_dtype: options.DraftDtypeOption = None,
    device: options.DeviceOption = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="sybil (if left out), transformers, assisted, usd (a draft with other tokens), "
            "prompt-lookup, openvino, or package.module:function.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server, such as http://host:8000/v1.", rich_help_panel=JUDGED),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The server's name for the model, where it serves several.", rich_help_panel=JUDGED),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds for one answer of a server or a function, and for the function's import.",
            rich_help_panel=JUDGED,
        ),
    ] = TIMEOUT,
    concurrency: Annotated[
        int, typer.Option(help="Answers that a server is asked for at once.", rich_help_panel=JUDGED)
    ] = 1,
    header: Annotated[
        list[str] | None,
        typer.Option(help="A header for the server, as 'Name: value'; several are fine.", rich_help_panel=JUDGED),
    ] = None,
    gamma: options.GammaOption = None,
    rule: options.RuleOption = options.RULE,
    window: options.WindowOption = options.WINDOW,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = options.TOP_K,
    top_p: options.TopPOption = options.TOP_P,
    min_p: options.MinPOption = options.MIN_P,
    seed: options.SeedOption = None,
    quick: options.QuickOption = False,
    max_new_tokens: options.MaxNewTokensOption = None,
    prompt_file: options.PromptsOption = None,
    count: options.CountOption = None,
    repeats: Annotated[int | None, typer.Option(help="Sequences a prompt: 2.", rich_help_panel=options.AMOUNT)] = None,
    greedy: Annotated[int, typer.Option(help="Prompts to decode greedily.", rich_help_panel=options.AMOUNT)] = 16,
    stopping: Annotated[
        int, typer.Option(help="Prompts to end by end tokens and stop strings.", rich_help_panel=options.AMOUNT)
    ] = 8,
    widths: Annotated[
        int,
        typer.Option(
            help="Prompts to decode greedily with more and fewer tokens verified at once.",
            rich_help_panel=options.AMOUNT,
        ),
    ] = 4,
    eos: Annotated[
        list[str] | None,
        typer.Option(
            help="An end token, by id or text, in place of the target's own; several are fine.", rich_help_panel=JUDGED
        ),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            help="How far the decoder's logits may stand from the target's by the decoder's own rounding, whatever the "
            f"target is kept in: logits, or {', '.join(TOLERANCES)}. If left out: as --dtype rounds.",
            rich_help_panel=VERDICT,
        ),
    ] = None,
    resolution: Annotated[
        float | None,
        typer.Option(
            help="Drift, in nats a token, that a PASS would have shown: 0.2, or 0.4 if quick.",
            rich_help_panel=VERDICT,
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="How often a lossless decoder may be accused.", rich_help_panel=VERDICT)
    ] = 1e-6,
    out: options.OutOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Judge a decoder by what it says and the target it claims to follow. Exit: 0 PASS, 1 FAIL, 3 INCONCLUSIVE, and 2
    where there is no verdict."""
    from sybil.losslessness.evidence import Reference
    from sybil.losslessness.judge import Plan
    from sybil.losslessness.judge import verify as judge

    console = make_console(stderr=as_json)
    server = None if endpoint is None else Server(endpoint, timeout, header or ())
    if decoder is not None and server is not None:
        raise InvalidSetting(f"decoder is {decoder!r} and endpoint {server.url!r}: give one of them")
    if server is None and (header or concurrency != 1):
        raise InvalidSetting("header and concurrency are for a server: add --endpoint, or leave them out")
    checked(timeout)
    most, sequences, length, bound = QUICK if quick else FULL
    most = most if count is None else count
    sequences = sequences if repeats is None else repeats
    length = length if max_new_tokens is None else max_new_tokens
    temperature, seed = 1.0 if temperature is None else temperature, seed or 0
    gamma = GAMMA if gamma is None else gamma
    out = options.out_folder(out, "verify")
    bound = bound if resolution is None else resolution
    request = Request(max_new_tokens=length, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    plan = Plan(
        request=request, repeats=sequences, greedy=greedy, stopping=stopping, widths=widths, alpha=alpha, seed=seed,
        resolution=bound,
    )  # fmt: skip
    stated = None if tolerance is None else tolerance_of(tolerance)
    Settings(  # refused here, before anything is loaded
        gamma=gamma, rule=rule, window=window, max_new_tokens=length,
        do_sample=temperature != 0, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
    )  # fmt: skip
    chosen = options.prompts(pair, target, prompt_file, most)
    chosen_device = choose_device(device)
    chosen_target, chosen_draft = options.names(pair, target, draft)
    chosen_dtype = dtype_chosen(chosen_target, dtype, chosen_device)
    as_it_lies = keeps_blocks(chosen_target, dtype, chosen_device)
    chosen_draft_dtype = dtype_named(draft_dtype, draft=True)  # refused here
    if decoder is not None and decoder not in BUILT_IN and ":" not in decoder:
        raise InvalidSetting(f"decoder is {decoder!r}: use {', '.join(BUILT_IN)}, or a package.module:function")
    function = None if decoder is None or decoder in BUILT_IN else ForeignSubject(decoder, timeout)

    files.check_folder(out)
    with console.status("loading the models"):
        is_ours = server is None and decoder in (None, SYBIL)
        ours = load(
            chosen_target, chosen_draft if is_ours else None,
            dtype=None if as_it_lies else chosen_dtype, draft_dtype=chosen_draft_dtype, device=chosen_device,
            datastore=datastore or (),
        )  # fmt: skip
        tokenizer = ours.tokenizer
        assert tokenizer is not None  # a folder without one is refused by load
        ends = end_tokens(eos, tokenizer) if eos else tuple(sorted(ours.eos_token_ids))
        served = None if server is None else EndpointSubject(server, model, tokenizer, frozenset(ends), concurrency)
        if served is not None:
            console.print("\n".join([served.spoken.told, *served.notes]), style="dim", soft_wrap=True)
        encoded = _encoded(chosen, ours, served)
        # the weights as the decoder has them, computed in float32
        sovereign = _load(chosen_target, chosen_dtype, chosen_device).float()
        subject: Subject
        if is_ours:
            subject = SybilSubject(ours, gamma, rule, window)
        elif served is not None:
            subject = served
        elif function is not None:
            subject = function
        elif decoder == OPENVINO:
            subject = _openvino(chosen_target, chosen_draft, gamma)
        else:
            theirs = sovereign if chosen_dtype == torch.float32 else _load(chosen_target, chosen_dtype, chosen_device)
            subject = _transformers(decoder, theirs, tokenizer, chosen_draft, gamma)
        del ours  # and its weights, where it isn't what is judged
        helper, no_draft = _helper(sovereign, chosen_target, chosen_draft, decoder)
        reference = Reference(sovereign, tokenizer, helper, no_draft)
    if no_draft and draft is not None:
        console.print(f"the check of the draft is left out: {no_draft}", style="dim", soft_wrap=True)
    is_known = stated is not None or dtype is not None or (function is None and server is None)
    plan = replace(
        plan,
        request=replace(request, eos_token_ids=ends),
        near_tie=stated or HALF.get(chosen_dtype, FLOAT32),
        doubtful=None if is_known else HALF[torch.bfloat16],
    )

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    try:
        with make_progress(console) as progress:
            report = judge(subject, reference, encoded, plan, bars(progress), say)
    except KeyboardInterrupt:
        console.print("interrupted: there is no verdict, and nothing was written")
        raise typer.Exit(130) from None

    speculation = getattr(subject, "speculation", None)
    about, kept = describe(chosen_device), IN_BLOCKS if as_it_lies else str(chosen_dtype).removeprefix("torch.")
    caption = (
        f"{report.subject} against {chosen_target}, temperature {temperature:g}, {len(encoded)} prompts, "
        f"{report.sequences} sequences of at most {length} tokens, alpha {alpha:g}, seed {seed}, on "
        f"{about['processor']}, torch {about['torch']}, transformers {about['transformers']}, "
        f"commit {about['commit'] or 'none'}"
    )
    record = {
        "target": chosen_target, "draft": chosen_draft, "dtype": kept,
        "device": str(chosen_device), "prompts": digest(chosen), "date": time.strftime("%Y-%m-%d"), **about,
        "speculation": None if speculation is None else asdict(speculation), **report.as_dict(),
    }  # fmt: skip
    path = files.unused(files.folder(out) / f"{time.strftime('%Y%m%d-%H%M%S')}.json")
    chart = path.with_suffix(".png")
    with files.all_or_none(path, chart):
        files.replace(path, json.dumps(record, indent=1).encode())
        figures.losslessness(report, caption, chart)
    if as_json:
        print_json(record)
    else:
        show(console, report)
        if speculation is not None:
            console.print(speculation.told, soft_wrap=True)
        console.print(caption, style="dim", soft_wrap=True)
        console.print(f"report: {path}   chart: {chart}", soft_wrap=True)
    raise typer.Exit(STATUS[report.verdict])


def _helper(
    sovereign: PreTrainedModel, target: str, draft: str | None, decoder: str | None
) -> tuple[PreTrainedModel | None, str]:
    """The draft, for the judge to hold tokens beside what it proposes; or none, and why. Raises VocabularyMismatch."""
    if draft is None:
        return None, "no draft is named: add --draft, where the decoder's is known"
    if not is_model(draft):
        return None, f"draft {draft} is no model of its own"
    theirs, own = read(target).tokenizer, read(draft).tokenizer
    differing = differing_tokens(theirs, own) if theirs is not None and own is not None else 0
    if differing and decoder == ASSISTED:
        raise VocabularyMismatch(
            f"draft {draft} has other tokens than target {target} ({differing} entries of their vocabularies differ), "
            "and decoder assisted is asked with one tokenizer: choose a draft with the target's, or decoder usd"
        )
    if differing:
        return None, f"draft {draft} has other tokens than the target: {differing} entries of their vocabularies differ"
    helper = _load(draft, torch.float32, sovereign.device)
    if theirs is None or own is None:
        sizes = [int(model.config.get_text_config().vocab_size) for model in (sovereign, helper)]
        check_sizes((target, draft), (sizes[0], sizes[1]))
    return helper, ""


def _load(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """transformers' own model."""
    from transformers.utils import logging

    from sybil.models.pretrained import load_transformers

    logging.set_verbosity_error()  # our own bars are the only ones
    logging.disable_progress_bar()
    return load_transformers(read(name), dtype, device).eval()


def _encoded(chosen: list[Prompt], ours: Decoder, served: EndpointSubject | None) -> list[list[int]]:
    """Prompts as token ids. A server that takes messages only is given each as a user's message."""
    if served is None or not served.by_chat:
        return [prompts.encode(prompt, ours) for prompt in chosen]
    if ours.chat_template is None:
        raise NotJudgeable(
            f"{served.spoken.url} takes messages only, and the target has no chat template to make token ids of them "
            "by: give a target with one, or a server of completions"
        )
    said = [replace(prompt, messages=prompt.messages or (("user", prompt.text),)) for prompt in chosen]
    encoded = [prompts.encode(prompt, ours) for prompt in said]
    served.messages = {
        tuple(ids): [{"role": role, "content": content} for role, content in prompt.messages]
        for ids, prompt in zip(encoded, said, strict=True)
    }
    return encoded


def _transformers(
    decoder: str | None, model: PreTrainedModel, tokenizer: Tokenizer, draft: str | None, gamma: int | str
) -> TransformersSubject:
    if decoder == PROMPT_LOOKUP:
        return TransformersSubject(model, tokenizer, prompt_lookup=fixed(gamma))
    if decoder == TRANSFORMERS:
        return TransformersSubject(model, tokenizer)
    if draft is None or not is_model(draft):
        raise InvalidSetting(f"decoder is {decoder} and draft {draft or 'none'}: name a model with --draft")
    assistant = _load(draft, model.dtype, model.device)
    if decoder == USD:
        check_universal(model, assistant, draft)
        return TransformersSubject(model, tokenizer, assistant, assistant_tokenizer=read(draft).tokenizer)
    check_assisted(model, assistant, draft)
    return TransformersSubject(model, tokenizer, assistant)


def _openvino(target: str, draft: str | None, gamma: int | str) -> OpenVINOSubject:
    """draft: a model's name, LOOKUP, or none."""
    lookup = draft == LOOKUP
    return OpenVINOSubject(
        locate(target), None if draft is None or lookup else locate(draft), gamma=fixed(gamma), lookup=lookup
    )
