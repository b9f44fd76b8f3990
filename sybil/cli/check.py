"""sybil check: does it fit, what would draft for it, and what would that bring? Before anything is downloaded."""

from __future__ import annotations

from typing import Annotated

import typer

from sybil.checking import check as checking
from sybil.checking import ollama as asking
from sybil.checking.smoke import smoke
from sybil.cli import options
from sybil.cli.checked import print_answer, print_found, print_models, print_smoke, recorded, recorded_models
from sybil.cli.terminal import make_console, print_json
from sybil.errors import InvalidSetting


def check(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A pair's name, a hub id, a folder, a GGUF file (on the hub: ID/FILE.gguf), or ollama:NAME; beside "
            "--ollama the server's URL."
        ),
    ] = None,
    draft: options.DraftOption = None,
    dtype: options.DtypeOption = None,
    draft_dtype: options.DraftDtypeOption = None,
    device: options.DeviceOption = None,
    revision: options.RevisionOption = None,
    context: Annotated[
        int | None,
        typer.Option(
            help=f"Tokens a row, prompt included; {checking.CONTEXT}, or as many as the target takes, if left out.",
            rich_help_panel=options.AMOUNT,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows that are decoded together.", rich_help_panel=options.AMOUNT)] = 1,
    run: Annotated[
        bool,
        typer.Option("--run/--no-run", help="Whether ten tokens are decoded where the weights are here and fit."),
    ] = True,
    ollama: Annotated[
        bool,
        typer.Option("--ollama", help="List a local Ollama server's models instead, and let one say ten tokens."),
    ] = False,
    model: options.ServedOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Say whether a model fits in memory, which drafts could serve it and what they would bring: by its config and the
    headers of its weights, before any weight is downloaded or loaded."""
    if ollama:
        _ollama(target, model, run, as_json)
        return
    if target is None or model is not None:
        raise InvalidSetting(
            "model is given without --ollama: add --ollama" if target else "no target is given: name one, or --ollama"
        )
    found = checking.check(
        target,
        draft,
        dtype=dtype,
        draft_dtype=draft_dtype,
        device=device,
        batch=batch,
        context=context,
        revision=revision,
    )
    console = make_console()
    if not as_json:
        print_found(console, found)
    tried = None
    if run and found.here and found.fits is not False:
        tried = smoke(found, dtype=dtype, draft_dtype=draft_dtype, device=device, revision=revision)
    if as_json:
        print_json(recorded(found, tried))
    elif tried is not None:
        print_smoke(console, tried)


def _ollama(url: str | None, model: str | None, run: bool, as_json: bool) -> None:
    server = asking.server(url)
    found = asking.models(server)
    one = asking.chosen(found, model) if run else None
    console = make_console()
    if not as_json:
        print_models(console, server.url, found)
    answer = None if one is None else asking.try_out(server, one)
    if as_json:
        print_json(recorded_models(server.url, found, answer))
    else:
        print_answer(console, answer)
