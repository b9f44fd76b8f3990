"""The same mistake gets the same line from every command: the setting, its value, the remedy, and exit 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from tiny import sybil

from sybil.cli.main import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PLAIN = {
    "generate": ("abc",),
    "chat": (),
    "check": ("stdlib",),
    "compare": (),
    "pairs": (),
    "profile": (),
    "prompts": ("--source", "shipped"),
    "verify": (),
    "sweep": ("smoke",),
    "report": (str(Path(__file__).parents[1] / "notebooks" / "sweep.jsonl"),),
    "tradeoff": (),
    "distill": ("stdlib", "--data", "texts"),
}
"""What each command needs beside the mistake."""
NUMBER, INTEGER, MODEL = "use a number", "use an integer", "give a Hugging Face model folder, a GGUF file, a hub id"
MISTAKES = [
    ("--pair nonesuch", "there is no pair 'nonesuch': the pairs are stdlib, smollm2, .*, or give a target and a draft"),
    ("--target /no/model", f"/no/model does not exist: {MODEL}, or a pair's name"),
    ("--target file", f"file is no folder and no GGUF file: {MODEL}, or a pair's name"),
    ("--adapter /no/adapter", "the adapter /no/adapter is no folder: give an adapter's folder or its hub id"),
    ("--draft self:9", "draft is 'self:9': a copy has 4, 5, 6 or 8 bits"),
    ("--dtype float8", "dtype is 'float8': use float32, float16, .* or auto"),
    ("--draft-dtype float8", "draft_dtype is 'float8': use float32, float16, .* or auto"),
    ("--device tpu", "device is 'tpu': use 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"),
    ("--device cuda:77", r"device cuda:77 was asked for and torch \S+ sees \d GPUs?: use device 'cpu', .*"),
    ("--gamma 0", f'gamma is 0: {INTEGER} from 1 to .*, or "auto"; load the model without a draft for plain decoding'),
    (
        "--gamma -1",
        f'gamma is -1: {INTEGER} from 1 to .*, or "auto"; load the model without a draft for plain decoding',
    ),
    ("--gamma abc", f"gamma is 'abc': {INTEGER} of 1 or more, or auto"),
    ("--temperature -1", r"temperature is -1\.0: use 0 \(greedy\) or a number from 1e-06"),
    ("--temperature nan", f"temperature is nan: {NUMBER}"),
    ("--temperature=abc", f"temperature is 'abc': {NUMBER}"),
    ("--temperature 1 --top-p 2", r"top_p is 2\.0: use a number above 0 and at most 1 \(1 keeps every token\)"),
    ("--temperature 1 --top-k -1", "top_k is -1: use a positive number of tokens, or 0 for all"),
    ("--temperature 1 --min-p x", f"min_p is 'x': {NUMBER}"),
    ("--rule nonesuch", "rule is 'nonesuch': the lossless rules are block, coupled, token"),
    ("--window nonesuch", "window is 'nonesuch': the windows are confident, constant, heuristic"),
    ("--seed 1.5", f"seed is '1.5': {INTEGER}"),
    ("--max-new-tokens 0", f"max_new_tokens is 0: {INTEGER} of 1 or more"),
    ("--max-new-tokens many", f"max_new_tokens is 'many': {INTEGER}"),
    ("--count 0", f"count is 0: {INTEGER} of 1 or more"),
    ("--batch 0", f"batch is 0: {INTEGER} from 1 to 65536"),
    ("--passes 0", f"passes is 0: {INTEGER} of 1 or more"),
    ("--prompts none.jsonl", r"none\.jsonl can't be read \(No such file or directory\): name a \.jsonl or \.txt file"),
    ("--prompts folder", r"folder can't be read \(Is a directory\): name a \.jsonl or \.txt file"),
    ("--datastore none --draft lookup", r"datastore has 'none', which can't be read \(No such file .*\): name files"),
    ("--datastore folder --draft lookup", "datastore has 'folder', which is no file: name files"),
    ("--data none", r"data has 'none', which can't be read \(No such file or directory\): name files or folders"),
    ("--out file", "out is file, and /.*/file is a file: name a folder"),
    ("--out file/below", "out is file/below, and /.*/file is a file: name a folder"),
    ("--save folder", "save is folder, which is a folder: name a file"),
    ("--metrics-file folder", "metrics_file is folder, which is a folder: name a file"),
    ("--metrics-file no/file", "metrics_file is no/file, and no is no folder: make it, or name another file"),
    ("--nonesuch", "No such option: --nonesuch"),
    ("--json=3", "Option '--json' does not take a value"),
    ("--pair", "Option '--pair' requires an argument"),
]
CASES = [
    (command, mistake, line)
    for mistake, line in MISTAKES
    for command, parameters in COMMANDS.items()
    if mistake == "--nonesuch"
    or {word.partition("=")[0] for word in mistake.split() if word.startswith("--")}
    <= {option for each in parameters.params for option in each.opts}
]


def line_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that can't be done, without where its help is."""
    assert sybil(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line: str = re.sub(rf"\.? \(sybil {arguments[0]} --help\)$", "", captured.err.removesuffix("\n"))
    assert "\n" not in line
    assert "Traceback" not in line
    return line.removeprefix("sybil: ")


@pytest.mark.parametrize(("command", "mistake", "line"), CASES, ids=[" ".join(case[:2]) for case in CASES])
def test_a_mistake_is_told_in_the_same_words_by_every_command(
    command: str,
    mistake: str,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "texts").write_text("one\n")
    takes_a_pair = any("--pair" in each.opts for each in COMMANDS[command].params)
    pair = ("--pair", "stdlib") if takes_a_pair and "--pair" not in mistake and "--target" not in mistake else ()
    told = line_of(capsys, command, *PLAIN[command], *pair, *mistake.split())
    assert re.fullmatch(line, told), told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "texts"]  # nothing was begun


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("generate", "abc", "--top-p", "0.9"), "top_p is 0.9, and greedy decoding samples nothing: add --temperature"),
        (("generate", "abc", "--system", "x"), "system is given, and a text to continue has no system's message"),
        (("compare", "--gammas", "4"), "gammas is 4 and there are no --drafters: add them, or use --gamma"),
        (("verify", "--endpoint", "http://127.0.0.1:9/v1", "--decoder", "transformers"), "give one of them"),
        (("prompts", "file", "--source", "hub"), "source is 'hub' and file is a file of your own: leave one of them"),
        (("profile", "--workload", "gpt2:xl", "--temperature", "1"), "temperature is 1 and gpt2:xl replays a greedy"),
        (("profile", "--gamma", "auto"), "gamma is 'auto', and a profile measures rounds of one length"),
        (("check", "stdlib", "--model", "x"), "model is given without --ollama: add --ollama"),
        (("generate", "two", "words"), "Got unexpected extra argument(s) (words)"),
        (("distill", "--layers", "few"), "layers is 'few': use an integer"),
    ],
)
def test_options_that_contradict_each_other(
    arguments: tuple[str, ...],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in line_of(capsys, *arguments)


def test_what_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (("nonesuch", "No such command 'nonesuch'."), ("generat", "Did you mean 'generate'?")):
        assert sybil(name) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.endswith(" (sybil --help)\n")
