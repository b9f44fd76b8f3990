"""The options of the commands: one name is one thing everywhere, and what is asked by it is what is done."""

from __future__ import annotations

import inspect
import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import torch
import typer
from tiny import gpt2, perturbed, save, sybil
from typer.models import OptionInfo

from sybil.cli import options
from sybil.cli.main import app
from sybil.decoding import Decoder
from sybil.errors import InvalidSetting
from sybil.losslessness.samples import Request
from sybil.sampling import Sampling
from sybil.settings import Settings

EVERYWHERE = {"--pair", "--target", "--draft", "--dtype", "--draft-dtype", "--device", "--gamma"}
DECODING = EVERYWHERE | {"--rule", "--window", "--temperature", "--top-k", "--top-p", "--min-p", "--seed"}
NAMES = {
    "generate": DECODING | {"--max-new-tokens", "--chat", "--system", "--json"},
    "chat": DECODING | {"--max-new-tokens", "--system"},
    "compare": DECODING | {"--max-new-tokens", "--quick", "--prompts", "--out"},
    "verify": DECODING | {"--max-new-tokens", "--quick", "--prompts", "--out", "--json"},
    "profile": EVERYWHERE | {"--out"},
}


def by_name(wanted: typer.Typer) -> dict[str, dict[str, tuple[Any, Any]]]:
    """By an option's name, then by command: its annotation, where kind, help and panel stand, and its default."""
    found: dict[str, dict[str, tuple[Any, Any]]] = defaultdict(dict)
    for command in wanted.registered_commands:
        assert command.callback is not None
        hints = get_type_hints(command.callback, include_extras=True)
        for name, parameter in inspect.signature(command.callback).parameters.items():
            kind, about = get_args(hints[name])
            if isinstance(about, OptionInfo):
                declared = [each for each in (about.default, *(about.param_decls or ())) if isinstance(each, str)]
                for option in declared or [f"--{name.replace('_', '-')}"]:
                    found[option][command.callback.__name__] = ((kind, about), parameter.default)
    return found


def test_a_name_is_one_option_in_every_command() -> None:
    """One annotation, so one help, and one default; what two commands have is in options.py."""
    found = by_name(app)
    shared = [value for name, value in vars(options).items() if name.endswith("Option")]
    for name, commands in found.items():
        annotations, defaults = zip(*commands.values(), strict=True)
        assert all(each == annotations[0] for each in annotations), name
        assert len({repr(default) for default in defaults}) == 1, (name, commands)
        if len(commands) > 1:
            assert annotations[0] in map(get_args, shared), name
    for command, names in NAMES.items():
        assert names <= {name for name, commands in found.items() if command in commands}, command
    assert all(about.help.endswith(".") and about.rich_help_panel for _, about in map(get_args, shared))


def test_another_default_or_help_would_show() -> None:
    other = typer.Typer()

    def one(gamma: options.GammaOption = 4, seed: options.SeedOption = None) -> None: ...
    def two(gamma: options.GammaOption = 5, seed: Annotated[int | None, typer.Option(help="Luck.")] = None) -> None: ...

    for command in (one, two):
        command.__annotations__ = get_type_hints(command, globals(), include_extras=True)
        other.command()(command)
    found = by_name(other)
    assert [default for _, default in found["--gamma"].values()] == [4, 5]
    assert found["--seed"]["one"] != found["--seed"]["two"]


def test_defaults_are_those_of_the_library() -> None:
    """Of what Settings and Sampling have, too; a command that says nothing is a call that says nothing."""
    settings, sampling = Settings(), Sampling()
    assert (settings.rule, settings.window) == (options.RULE, options.WINDOW)
    assert options.sampling(None, options.TOP_K, options.TOP_P, options.MIN_P) == sampling
    assert options.sampling(None, options.TOP_K, options.TOP_P, options.MIN_P).greedy
    assert options.sampling(0.0, options.TOP_K, options.TOP_P, options.MIN_P) == sampling
    assert options.sampling(0.5, 3, 0.9, 0.1) == Sampling(0.5, 3, 0.9, 0.1)


@pytest.mark.parametrize("temperature", [None, 0.0])
@pytest.mark.parametrize("filters", [(5, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1)])
def test_a_filter_without_anything_to_filter_is_refused(
    temperature: float | None, filters: tuple[int, float, float]
) -> None:
    with pytest.raises(InvalidSetting, match=r"(top_k is 5|top_p is 0\.9|min_p is 0\.1), and greedy .* --temperature"):
        options.sampling(temperature, *filters)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    return ("--target", root / "target", "--draft", root / "draft", "--dtype", "float64", "--device", "cpu")


def test_generate_does_what_its_options_say(
    models: tuple[object, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    stream = Decoder.stream
    monkeypatch.setattr(Decoder, "stream", lambda self, text, **said: asked.append(said) or stream(self, text, **said))

    def generated(*arguments: object) -> tuple[list[int], dict[str, Any]]:
        assert sybil("generate", "abc", *models, "--max-new-tokens", 8, "--json", *arguments) == 0
        return json.loads(capsys.readouterr().out)["tokens"], asked.pop()

    greedy, said = generated()
    assert (said["do_sample"], said["gamma"], said["rule"], said["window"]) == (False, "auto", "token", "constant")
    assert generated("--temperature", 0)[0] == greedy
    drawn = ("--temperature", 2, "--seed", 1)
    assert generated(*drawn)[0] != greedy
    likeliest, said = generated(*drawn, "--min-p", 1, "--top-p", 0.99, "--top-k", 30)  # leaves the likeliest alone
    assert likeliest == greedy
    wanted = {"do_sample": True, "temperature": 2.0, "min_p": 1.0, "top_p": 0.99, "top_k": 30, "seed": 1}
    assert {name: said[name] for name in wanted} == wanted
    said = generated("--gamma", 2, "--rule", "coupled", "--window", "heuristic")[1]
    assert (said["gamma"], said["rule"], said["window"], said["max_new_tokens"]) == (2, "coupled", "heuristic", 8)


def test_verify_asks_for_what_its_options_say(
    models: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    kept: list[torch.dtype | None] = []

    def noting(*names: Any, **said: Any) -> Decoder:
        kept.append(said["draft_dtype"])
        raise InvalidSetting("that will do")

    request = Request
    monkeypatch.setattr("sybil.judging.decoders.load", noting)
    monkeypatch.setattr(
        "sybil.judging.asked.Request", lambda **said: asked.append(said.get("temperature", 1.0)) or request(**said)
    )
    out = ("--out", tmp_path / "out")
    assert sybil("verify", *models, *out) == 2
    assert sybil("verify", *models, *out, "--draft-dtype", "float32", "--temperature", 0.5) == 2
    assert sybil("verify", *models, *out, "--draft-dtype", "int8", "--temperature", 0, "--repeats", 0) == 2
    assert asked == [1.0, 0.5, 0.0]
    assert kept == [None, torch.float32, torch.int8]
    assert capsys.readouterr().err.count("that will do") == 3
    assert sybil("verify", *models, *out, "--draft-dtype", "float8") == 2
    assert "draft_dtype is 'float8'" in capsys.readouterr().err


def test_results_go_where_nothing_is_said(
    models: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"text": "abc"}\n')
    assert sybil("compare", *models, "--prompts", "prompts.jsonl", "--max-new-tokens", 4) == 0
    assert {path.suffix for path in Path("sybil-compare").iterdir()} == {".jsonl", ".png"}
    assert [options.out_folder(None, name) for name in ("verify", "profile")] == [
        *map(Path, ("sybil-verify", "sybil-profile"))
    ]
    assert options.out_folder(tmp_path, "verify") == tmp_path
