"""sybil profile: where a round's time goes, and how near the forwards come to the memory's bandwidth."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from sybil.cli import options
from sybil.cli.terminal import make_console, make_progress, make_table
from sybil.devices import Asked, choose_device, default_dtype, dtype_named, is_few, word_of
from sybil.drafting.window import AUTO, GAMMA
from sybil.errors import InvalidSetting
from sybil.loading import load
from sybil.measuring import files, timeline
from sybil.measuring import profile as measuring
from sybil.measuring.machine import describe
from sybil.measuring.metrics import MetricsFile
from sybil.measuring.workload import token_rate
from sybil.measuring.workload import workload as workload_named
from sybil.reports import figures
from sybil.reports import timeline as pictures
from sybil.settings import Settings


def profile(
    pair: options.PairOption = None,
    target: options.TargetOption = None,
    draft: options.DraftOption = None,
    workload: Annotated[
        str | None,
        typer.Option(
            help="A published shape with random weights, in place of a pair: gpt2:medium, gpt2:xl or opt:1.3b.",
            rich_help_panel=options.MODELS,
        ),
    ] = None,
    acceptance: Annotated[
        float,
        typer.Option(
            help="The share of a workload's proposed tokens that is accepted.", rich_help_panel=options.MODELS
        ),
    ] = 0.75,
    dtype: options.DtypeOption = None,
    draft_dtype: options.DraftDtypeOption = None,
    device: options.DeviceOption = None,
    revision: options.RevisionOption = None,
    adapter: options.AdapterOption = None,
    gamma: options.GammaOption = None,
    rule: options.RuleOption = options.RULE,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = options.TOP_K,
    top_p: options.TopPOption = options.TOP_P,
    min_p: options.MinPOption = options.MIN_P,
    passes: Annotated[
        int,
        typer.Option(help="How often everything is measured; medians are reported.", rich_help_panel=options.AMOUNT),
    ] = 30,
    out: options.OutOption = None,
    metrics_file: options.MetricsFileOption = None,
) -> None:
    """Milliseconds of a draft step, of verifying 1 to 17 tokens and of a round's parts, the memory they take, and one
    text's rounds on a timeline."""
    console = make_console()
    if passes < 1:
        raise InvalidSetting(f"passes is {passes}: use an integer of 1 or more")
    gamma = GAMMA if gamma is None else gamma
    sampling = options.sampling(temperature, top_k, top_p, min_p)
    Settings(gamma=gamma, rule=rule, **sampling.keywords)  # raises for wrong settings before anything is loaded
    if gamma == AUTO:
        raise InvalidSetting("gamma is 'auto', and a profile measures rounds of one length: use an integer")
    token_rate(acceptance, gamma)
    out = options.out_folder(out, "profile")
    files.check_folder(out)
    metrics = MetricsFile(metrics_file, workload or options.names(pair, target, draft)[0])
    chosen_device = choose_device(device)
    asked, draft_asked = dtype_named(dtype), dtype_named(draft_dtype, draft=True)
    if workload is not None:
        workload_named(workload)
        if not sampling.greedy:
            raise InvalidSetting(f"temperature is {temperature:g} and {workload} replays a greedy text: leave it out")
    with console.status("loading the models"):
        if workload is not None:
            if revision is not None or adapter is not None:
                raise InvalidSetting(f"{workload}'s weights are random: leave revision and adapter out")
            kept, draft_kept = _of_random(workload, asked, "dtype"), _of_random(workload, draft_asked, "draft_dtype")
            subject = measuring.of_workload(
                workload, kept or default_dtype(chosen_device), draft_kept, chosen_device, acceptance, gamma
            )
        else:
            names_chosen = options.names(pair, target, draft)
            decoder = load(
                names_chosen[0], draft=names_chosen[1], dtype=asked, draft_dtype=draft_asked, device=chosen_device,
                revision=revision, adapter=adapter, progress=False,
            )  # fmt: skip
            subject = measuring.of_pair(
                " with ".join(filter(None, names_chosen)), decoder, options.prompts(pair, target, None)
            )
        measured = measuring.Profile(subject, gamma, sampling, rule)

    steps = measured.text()
    metrics.add(steps)
    rounds = timeline.rounds_of(steps, subject.decoder.tokenizer)
    path = files.unused(out / f"{time.strftime('%Y%m%d-%H%M%S')}.json")
    samples: list[dict[str, float]] = []
    interrupted = False
    try:
        with make_progress(console) as progress:
            bar = progress.add_task("measuring", total=passes)
            for sample in measured.passes(passes):
                samples.append(sample)
                progress.advance(bar)
    except KeyboardInterrupt:
        interrupted = True
        console.print(f"interrupted after {len(samples)} of {passes} passes")
    if samples:
        files.folder(out)
        report = measuring.summarise(samples, measured.bytes_read)
        about = describe(chosen_device)
        chart, kernels_trace = path.with_suffix(".png"), path.with_suffix(".kernels.trace.json")
        trace, picture = path.with_suffix(".trace.json"), path.with_suffix(".timeline.png")
        with files.all_or_none(kernels_trace):
            kernels = measured.kernels(kernels_trace) if chosen_device.type == "cuda" else {}
        precisions = [each or "unknown" for each in measured.precisions]
        chosen = sampling.told + ("" if sampling.greedy else f", rule {rule}")
        drafted = f"draft {precisions[1]}, {chosen}, gamma {gamma}" if precisions[1:] else f"no draft, {chosen}"
        ran = f"{subject.title}; target {precisions[0]}, {drafted}"
        where = f"on {about['processor']}, {about['threads']} threads, torch {about['torch']}"
        where += f", commit {about['commit'] or 'none'}"
        caption = f"{ran}, medians of {report.passes} passes {where}"
        record = {
            "title": subject.title, "replay": subject.replay, "dtype": precisions[0],
            "draft_dtype": precisions[1] if precisions[1:] else None, "gamma": gamma,
            "temperature": sampling.temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "rule": rule,
            "device": str(chosen_device), "date": time.strftime("%Y-%m-%d"), **about,
            **asdict(report), "memory": measured.memory, "kernels": kernels, "waits": timeline.waits(rounds),
            "samples": samples,
        }  # fmt: skip
        with files.all_or_none(path, chart, trace, picture):
            files.replace(path, json.dumps(record, indent=1).encode())
            files.replace(trace, json.dumps(timeline.trace(rounds, subject.title)).encode())
            figures.profile(report, caption, chart)
            pictures.timeline(rounds, f"{ran}, one text of {len(rounds)} rounds {where}", picture)
        _print(console, report, measured.memory, kernels)
        console.print(_waits(console, rounds))
        console.print(caption, style="dim", soft_wrap=True)
        console.print(f"numbers: {path}   chart: {chart}", soft_wrap=True)
        console.print(f"timeline: {picture}   for ui.perfetto.dev: {trace}", soft_wrap=True)
        if kernels:
            console.print(f"kernels, for ui.perfetto.dev: {kernels_trace}", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)


def _waits(console: Console, rounds: list[timeline.Round]) -> Table:
    """The table of how long draft and target waited for each other, in one text."""
    table = make_table(console, f"in a text of {len(rounds)} rounds", "ms", "of it")
    found = timeline.waits(rounds)
    for who, seconds in found.items():
        table.add_row(who, f"{1e3 * seconds:.3f}", f"{seconds / sum(found.values()):.1%}")
    return table


def _of_random(workload: str, asked: Asked, argument: str) -> torch.dtype | None:
    """The dtype of a workload's random weights; int8 is for the draft only. Raises InvalidSetting."""
    if asked is None or (isinstance(asked, torch.dtype) and (argument == "draft_dtype" or not is_few(asked))):
        return asked
    raise InvalidSetting(
        f"{argument} is {word_of(asked)}, and {workload}'s weights are stored nowhere: name a dtype, such as float32"
    )


def _print(
    console: Console, report: measuring.ProfileReport, memory: dict[str, int | None], kernels: dict[str, float]
) -> None:
    forwards = make_table(console, "forward", "ms", "weights, GB/s", "of streaming")
    for forward in report.forwards:
        forwards.add_row(forward.name, f"{forward.ms:.3f}", f"{forward.bandwidth / 1e9:.1f}", f"{forward.share:.0%}")
    forwards.add_row("streaming from memory", "", f"{report.streaming / 1e9:.1f}", "100%")
    parts = make_table(console, "in a round", "ms", "of it")
    for part, ms in report.parts.items():
        parts.add_row(part, f"{ms:.3f}", f"{ms / report.round_ms:.1%}")
    parts.add_row("all", f"{report.round_ms:.3f}", "100.0%")
    parts.add_row("neither model's forward", "", f"{report.overhead:.1%}")
    held = make_table(console, "memory", "MB")
    for part, count in memory.items():
        held.add_row(part, "" if count is None else f"{count / 1e6:.1f}")
    tables = [forwards, parts, held]
    if kernels:
        tables.append(make_table(console, "kernel", "ms a text"))
        for name, ms in kernels.items():
            tables[-1].add_row(name[:80], f"{ms:.3f}")
    for table in tables:
        console.print(table)
