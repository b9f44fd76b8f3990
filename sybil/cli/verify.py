"""sybil verify: is a decoder lossless? It judges Sybil's decoder, or any other one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from sybil.agreement import TOLERANCES, tolerance_of
from sybil.cli import keeping, options
from sybil.cli.terminal import make_console, print_json
from sybil.cli.verdict import progress_on, show
from sybil.errors import InvalidSetting
from sybil.losslessness.child import FORMS, NAMED
from sybil.measuring import files
from sybil.measuring.compare import digest
from sybil.measuring.machine import describe
from sybil.progress import silence_transformers
from sybil.reports import figures
from sybil.servers.deadline import TIMEOUT

if TYPE_CHECKING:
    from sybil.judging.asked import Asked
    from sybil.judging.case import JudgedCase
    from sybil.judging.decoders import Bench, Judged
    from sybil.losslessness.kept import Kept
    from sybil.losslessness.report import Report
    from sybil.measuring.prompts import Prompt

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
    revision: options.RevisionOption = None,
    adapter: options.AdapterOption = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="sybil (if left out), transformers, assisted, usd (assisted by a draft with other tokens), "
            f"prompt-lookup, openvino, or a function of yours: {FORMS}. It is called as "
            f"f(prompt, {', '.join(f'{name}=' for name in NAMED)}) with those of the names that it takes; "
            "prompt is a list of token ids. It returns the new ones; or a tuple of them, of each one's place in its "
            "block (or None), and, if it counts them, of (tokens drafted, of them accepted). One that takes gamma is "
            "asked whether its greedy tokens depend on it.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="A second decoder, judged beside the first: plain where the first speculates, so that what both get "
            "wrong isn't blamed on speculation. As --decoder, where sybil is without its draft; or a server's URL.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server, such as http://host:8000/v1.", rich_help_panel=JUDGED),
    ] = None,
    model: options.ServedOption = None,
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
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where a function raised its error.", rich_help_panel=JUDGED)
    ] = False,
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
    no_stop_strings: Annotated[
        bool,
        typer.Option(
            "--no-stop-strings",
            help="Leave stop strings out, where a decoder has none.",
            rich_help_panel=options.AMOUNT,
        ),
    ] = False,
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
    resume: options.ResumeOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Judge a decoder by what it says and the target it claims to follow. Exit: 0 PASS, 1 FAIL, 3 INCONCLUSIVE, and 2
    where there is no verdict."""
    from sybil.judging.asked import FULL, QUICK, planned
    from sybil.judging.case import JudgedCase
    from sybil.judging.decoders import Bench, Models

    console = make_console(stderr=as_json)
    judged = _judged(decoder, endpoint, model, concurrency, header)
    asked = _said(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeats=repeats,
        greedy=greedy, stopping=stopping, stop_strings=not no_stop_strings, widths=widths, alpha=alpha,
        resolution=resolution, seed=seed, gamma=gamma, rule=rule, window=window,
    )  # fmt: skip
    plan, settings = planned(asked, quick)  # raises for wrong settings before anything is loaded
    stated = None if tolerance is None else tolerance_of(tolerance)
    chosen = options.prompts(pair, target, prompt_file, (QUICK if quick else FULL)["count"] if count is None else count)
    chosen_target, chosen_draft = options.names(pair, target, draft)
    models = Models(
        target=chosen_target, draft=chosen_draft, dtype=dtype, draft_dtype=draft_dtype, device=device,
        datastore=datastore or (), revision=revision, adapter=adapter,
    )  # fmt: skip
    bench = Bench(models, settings, eos or (), timeout, traceback)
    kept = keeping.kept_in(out, resume, _answers_depend_on(bench, judged, draft_dtype))
    silence_transformers()
    with console.status("loading the models"):
        case = JudgedCase.of(bench, judged, chosen, plan, stated, control)
    _tell_what_is_asked(console, bench, case, draft)
    report = _report(console, case, kept)
    record, caption = _record(bench, case, report, chosen)
    path = _written(record, report, caption, kept)
    if as_json:
        print_json(record)
    else:
        show(console, report)
        console.print(caption, style="dim", soft_wrap=True)
        console.print(f"report: {path}   chart: {path.with_suffix('.png')}   answers: {kept.path}", soft_wrap=True)
        if report.verdict == "INCONCLUSIVE":
            console.print("with --resume and those answers more repeats cost only the difference", soft_wrap=True)
    raise typer.Exit(STATUS[report.verdict])


def _judged(
    decoder: str | None, endpoint: str | None, model: str | None, concurrency: int, header: list[str] | None
) -> Judged:
    """The decoder that the options name. Raises InvalidSetting."""
    from sybil.judging.decoders import SYBIL, Endpoint

    if endpoint is None:
        if header or concurrency != 1:
            raise InvalidSetting("header and concurrency are for a server: add --endpoint, or leave them out")
        return decoder or SYBIL
    served = Endpoint(url=endpoint, model=model, concurrency=concurrency, headers=header or ())
    if decoder is not None:
        raise InvalidSetting(f"decoder is {decoder!r} and endpoint {endpoint!r}: give one of them")
    return served


def _said(**options: Any) -> Asked:
    """The options that the user gave."""
    return cast("Asked", {name: value for name, value in options.items() if value is not None})


def _tell_what_is_asked(console: Console, bench: Bench, case: JudgedCase, draft: str | None) -> None:
    """Print which protocol the server speaks, against which weights a quantised target is judged, and why a named draft
    isn't used."""
    from sybil.losslessness.endpoint import EndpointSubject

    for tried in (case.decoder, case.control):
        if tried is not None and isinstance(tried.subject, EndpointSubject):
            said = [tried.subject.spoken.told, *tried.subject.notes]
            console.print("\n".join(said), style="dim", soft_wrap=True)
    if bench.target.is_rounded:
        told = f"the target is kept in {bench.target.kept}, and judged against its weights as they are stored"
        console.print(told, style="dim", soft_wrap=True)
    why = case.reference.no_draft
    if why and draft is not None:
        console.print(f"the check of the draft is left out: {why}", style="dim", soft_wrap=True)


def _answers_depend_on(bench: Bench, judged: Judged, draft_dtype: str | None) -> dict[str, Any]:
    """The settings that a resumed run must share, besides those that the judge knows."""
    from sybil.judging.decoders import BUILT_IN, Endpoint

    models, about = bench.models, describe(bench.target.device)
    its_own = {
        "draft": models.draft,
        "draft_dtype": draft_dtype,
        "gamma": bench.settings.gamma,
        "datastore": str(models.datastore) if models.datastore else None,
    }
    return {
        "target": bench.target.name,
        "dtype": bench.target.kept,
        "device": str(bench.target.device),
        "named": judged.url if isinstance(judged, Endpoint) else judged,
        "model": judged.model if isinstance(judged, Endpoint) else None,
        **(its_own if judged in BUILT_IN else {}),
        **{name: str(value) for name in ("revision", "adapter") if (value := getattr(models, name)) is not None},
        **{name: about[name] for name in ("torch", "transformers", "sybil")},
    }


def _report(console: Console, case: JudgedCase, kept: Kept) -> Report:
    """The report, with a bar for each phase. Where a run ends without a verdict, a line says what is kept."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    with keeping.going_on(console, kept), progress_on(console) as progress:
        return case.judged(progress, say, kept)


def _record(bench: Bench, case: JudgedCase, report: Report, chosen: list[Prompt]) -> tuple[dict[str, Any], str]:
    """(the report and its inputs for JSON, a caption)."""
    about, target, plan = describe(bench.target.device), bench.target, report.plan
    caption = (
        f"{report.subject} against {target.name}, temperature {plan.request.temperature:g}, {len(case.prompts)} "
        f"prompts, {report.sequences} sequences of at most {plan.request.max_new_tokens} tokens, alpha {plan.alpha:g}, "
        f"seed {plan.seed}, on {about['processor']}, torch {about['torch']}, transformers {about['transformers']}, "
        f"commit {about['commit'] or 'none'}"
    )
    record = {
        "target": target.name, "draft": bench.models.draft, "dtype": target.kept, "device": str(target.device),
        "prompts": digest(chosen), "date": time.strftime("%Y-%m-%d"), **about,
        **report.as_dict(),
    }  # fmt: skip
    return record, caption


def _written(record: dict[str, Any], report: Report, caption: str, kept: Kept) -> Path:
    """Write the report's chart and its JSON file. Returns the JSON file."""
    path = keeping.report_path(kept)
    chart = path.with_suffix(".png")
    with files.all_or_none(path, chart):
        files.replace(path, json.dumps(record, indent=1).encode())
        figures.losslessness(report, caption, chart)
    return path
