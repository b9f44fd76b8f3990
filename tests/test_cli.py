"""The command as a user types it: what it prints, and one line and exit 2 for what it can't do."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import gpt2, greedy, letters, llama, perturbed, save, sybil
from transformers import GPTNeoConfig, GPTNeoForCausalLM, T5Config, T5ForConditionalGeneration

from sybil import __version__
from sybil.measuring.contenders import PromptResult, SybilContender


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    save(gpt2(vocab=24), root / "other", letters(24))
    save(llama(), root / "llama")
    return root


def pair(folders: Path) -> tuple[object, ...]:
    return ("--target", folders / "target", "--draft", folders / "draft", "--dtype", "float64")


def test_generate_prints_the_prompt_its_continuation_and_one_line(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sybil("generate", "abc", *pair(folders), "--max-new-tokens", 12, "--gamma", 4) == 0
    out = capsys.readouterr().out
    wanted = letters().decode(greedy(gpt2(), torch.tensor([1, 2, 3]), 12, eos_token_id=0))
    text, line = out.rstrip("\n").rsplit("\n", 1)
    assert text == "abc" + wanted
    assert "tokens/s" in line
    assert "tokens a round" in line


def test_generate_as_json(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("generate", "abc", *pair(folders), "--max-new-tokens", 12, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tokens"] == greedy(gpt2(), torch.tensor([1, 2, 3]), 12, eos_token_id=0)
    assert record["text"] == letters().decode(record["tokens"])
    assert len(record["from_draft"]) == len(record["tokens"])
    assert sum(record["from_draft"]) == record["accepted"] <= record["proposed"]
    assert record["lossless"]


def test_a_prompt_from_standard_input(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["generate"], ["generate", "-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
        assert sybil(*arguments, *pair(folders), "--json") == 0
        assert json.loads(capsys.readouterr().out)["prompt"] == "abc"


def test_a_seed_repeats_a_sample(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in (4, 4, 5):
        sampling = ("--temperature", 1.5, "--top-k", 20, "--top-p", 0.95, "--seed", seed)
        assert sybil("generate", "abc", *pair(folders), *sampling, "--json") == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]


def test_a_target_alone_and_a_family_of_transformers(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        sybil("generate", "abc", "--target", folders / "llama", "--dtype", "float64", "--json", "--max-new-tokens", 12)
        == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["tokens"] == greedy(llama(), torch.tensor([1, 2, 3]), 12, eos_token_id=0)
    assert record["proposed"] == 0


def broken(folders: Path, name: str) -> Path:
    """A copy of the target's folder, to be spoilt."""
    copy = folders / name
    if copy.exists():
        shutil.rmtree(copy)
    shutil.copytree(folders / "target", copy)
    return copy


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a bad request gets."""
    assert sybil(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sybil: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_bad_requests(folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    models = pair(folders)
    assert "prompt is empty" in refused(capsys, "generate", "", *models)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "prompt is empty" in refused(capsys, "generate", *models)
    line = refused(capsys, "generate", "a" * 70, *models)
    assert "70 tokens" in line
    assert "64" in line
    line = refused(capsys, "generate", "abc", "--pair", "nonesuch")
    assert "'nonesuch'" in line
    assert "stdlib" in line
    assert "target is ''" in refused(capsys, "generate", "abc", "--target", "")
    assert "draft is ''" in refused(capsys, "generate", "abc", "--draft", "")
    assert "gamma is 0" in refused(capsys, "generate", "abc", *models, "--gamma", 0)
    assert "gamma is -2" in refused(capsys, "generate", "abc", *models, "--gamma", -2)
    assert "top_p is 0.0" in refused(capsys, "generate", "abc", *models, "--top-p", 0)
    assert "top_p is 1.5" in refused(capsys, "generate", "abc", *models, "--top-p", 1.5, "--temperature", 1)
    assert "temperature is -1.0" in refused(capsys, "generate", "abc", *models, "--temperature", -1)
    assert "max_new_tokens is 0" in refused(capsys, "generate", "abc", *models, "--max-new-tokens", 0)
    assert "float8" in refused(capsys, "generate", "abc", *models[:4], "--dtype", "float8")
    assert "device mps" in refused(capsys, "generate", "abc", *models, "--device", "mps")
    assert "'tpu9'" in refused(capsys, "generate", "abc", *models, "--device", "tpu9")


def test_folders_that_are_not_models(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = folders / "empty"
    empty.mkdir(exist_ok=True)
    assert "no config.json" in refused(capsys, "generate", "abc", "--target", empty)
    assert "does not exist" in refused(capsys, "generate", "abc", "--target", folders / "absent")
    (folders / "a.txt").write_text("no model")
    assert "is no folder and no GGUF file" in refused(capsys, "generate", "abc", "--target", folders / "a.txt")
    assert "give ollama:smollm2:135m" in refused(capsys, "generate", "abc", "--target", "smollm2:135m")
    target = broken(folders, "no-weights")
    (target / "model.safetensors").unlink()
    assert "safetensors" in refused(capsys, "generate", "abc", "--target", target)
    target = broken(folders, "cut-weights")
    (target / "model.safetensors").write_bytes(b"\x10\x00")
    assert "not a safetensors file" in refused(capsys, "generate", "abc", "--target", target)
    target = broken(folders, "no-json")
    (target / "config.json").write_text("{")
    assert "JSON" in refused(capsys, "generate", "abc", "--target", target)
    target = broken(folders, "no-tokenizer")
    (target / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(capsys, "generate", "abc", "--target", target)


def test_an_encoder_decoder_is_no_causal_model(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=31, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    folder = save(T5ForConditionalGeneration(config), folders / "t5")
    assert "causal language model" in refused(capsys_cleared(capsys), "generate", "abc", "--target", folder)


def test_weights_that_do_not_fit_the_config(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = broken(folders, "wide-config")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    line = refused(capsys, "generate", "abc", "--target", target)
    assert "(31, 32)" in line
    assert "(31, 64)" in line
    (target / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    assert "lacks the weight transformer.h.2." in refused(capsys, "generate", "abc", "--target", target)


def test_weights_that_transformers_would_make_up(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    neo = GPTNeoConfig(
        vocab_size=31, hidden_size=8, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    target = save(GPTNeoForCausalLM(neo), folders / "neo-less")  # a family that goes through transformers
    weights = load_file(target / "model.safetensors")
    del weights["transformer.h.1.mlp.c_proj.weight"]
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    assert sybil("generate", "abc", "--target", target) == 2
    assert "c_proj" in capsys.readouterr().err
    (target / "model.safetensors").write_bytes(b"\x10\x00")
    assert sybil("generate", "abc", "--target", target) == 2
    assert "not a safetensors file" in capsys.readouterr().err


def test_a_tokenizer_file_that_cuts_and_pads(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = broken(folders, "cutting")
    tokenizer = letters()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(target / "tokenizer.json"))
    for folder in (target, folders / "target"):
        assert sybil("generate", "abcdef", "--target", folder, "--dtype", "float64", "--json") == 0
    one, other = (json.loads(line)["tokens"] for line in capsys.readouterr().out.splitlines())
    assert one == other


def test_prompts_that_are_no_text(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "UTF-8" in refused(capsys, "generate", "ab\udcff", *pair(folders))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"))
    assert "UTF-8" in refused(capsys, "generate", *pair(folders))


def test_a_draft_that_is_padded_otherwise_is_no_pair_for_transformers_and_is_left_out(
    folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    padded = save(gpt2(vocab=40), folders / "padded")
    arguments = ("--target", folders / "target", "--draft", padded, "--max-new-tokens", 8, "--out", tmp_path / "out")
    assert sybil("generate", "abc", *arguments[:6]) == 0
    (tmp_path / "prompts.jsonl").write_text('{"text": "abc"}\n{"text": "bcd"}\n')
    assert sybil("compare", *arguments, "--prompts", tmp_path / "prompts.jsonl") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "logits for 31 tokens" in out
    assert "for 40" in out


def test_senseless_drafts(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in {"self:7": "4, 5, 6 or 8 bits", "skip:99": "2 layers", "hybrid:lookup": "made of two"}.items():
        assert said in refused(capsys, "generate", "abc", "--target", folders / "target", "--draft", name)


def test_vocabularies_that_differ(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for draft in ((), ("--draft", folders / "other", "--gamma", 4)):
        assert sybil("generate", "abc", "--target", folders / "target", *draft, "--max-new-tokens", 12) == 0
        texts.append(capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)[0])
    assert texts[0] == texts[1]


def test_weights_that_make_nan(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = broken(folders, "nan")
    weights = load_file(target / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = float("nan")
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    assert sybil("generate", "abc", "--target", target) == 2
    captured = capsys.readouterr()
    assert "NaN" in captured.err
    assert "Traceback" not in captured.err


def test_a_hub_id_without_network(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "generate", "abc", "--target", "openai-community/gpt2")
    assert "openai-community/gpt2" in line
    assert "network" in line
    assert "stdlib" in line


def test_a_missing_gpu(folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = refused(capsys, "generate", "abc", *pair(folders), "--device", "cuda")
    assert "sees 0 GPUs" in line
    assert "cpu" in line


def test_compare_prints_a_table_and_leaves_rows_and_a_chart(
    folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "hello", "k")))
    arguments = ("compare", *pair(folders), "--prompts", prompts, "--out", tmp_path / "out", "--max-new-tokens", 8)
    assert sybil(*arguments) == 0
    out = capsys.readouterr().out
    for name in ("transformers generate", "transformers assisted", "sybil autoregressive", "sybil speculative"):
        assert f"| {name}" in out
    assert "sybil speculative: the tokens of transformers generate on 3 of 3 prompts" in out
    (rows,) = (tmp_path / "out").glob("*.jsonl")
    assert len(rows.read_text().splitlines()) == 12
    assert rows.with_suffix(".png").exists()
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:5]))
    assert sybil(*arguments, "--resume", rows) == 0
    assert len(rows.read_text().splitlines()) == 12
    assert "gamma='auto'" in refused(capsys_cleared(capsys), *arguments, "--resume", rows, "--gamma", 2)


def test_compare_check_fails_on_a_token_that_no_near_tie_explains(
    folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "abc"}\n')
    arguments = ("compare", "--check", *pair(folders), "--prompts", prompts, "--max-new-tokens", 8, "--out", tmp_path)
    assert sybil(*arguments) == 0
    assert "PASS: 0 of 2 texts" in capsys.readouterr().out
    generate = SybilContender.run

    def wrong(self: SybilContender, *asked: Any) -> PromptResult:
        measured = generate(self, *asked)
        return replace(measured, tokens=[*measured.tokens[:-1], (measured.tokens[-1] + 1) % 31])

    monkeypatch.setattr(SybilContender, "run", wrong)
    assert sybil(*arguments) == 1
    assert "FAIL: 2 of 2 texts" in capsys.readouterr().out


def capsys_cleared(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    capsys.readouterr()
    return capsys


def test_compare_refuses_before_it_measures(folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "gamma is 0" in refused(capsys, "compare", *pair(folders), "--gamma", 0, "--out", tmp_path)
    assert sybil("compare", *pair(folders), "--out", tmp_path / "out") == 2
    assert "more together than the context of 64" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_ctrl_c_keeps_the_rows_written_so_far(folders: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": "abc", "id": index}) + "\n" for index in range(64)))
    command = [sys.executable, "-m", "sybil", "compare", *map(str, pair(folders)), "--prompts", str(prompts)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "40", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        written = list((tmp_path / "out").glob("*.jsonl"))
        if written and written[0].read_text().count("\n") >= 10:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in out
    assert "| sybil speculative" in out
    lines = written[0].read_text().splitlines()
    assert len(lines) >= 9  # the last of ten may have been under way to the disk, and is taken back then
    for line in lines:
        json.loads(line)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("--version") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"sybil {__version__}"
    assert sybil("--help") == 0
    assert "compare" in capsys.readouterr().out
