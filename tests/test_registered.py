"""Every registered pair runs by its name: tiny models of the same make, in the hub's cache and as GGUF files."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import makes
import pytest
import torch
from tiny import greedy, sybil
from transformers import AutoTokenizer

import sybil as library
from sybil import PAIRS, Decoder
from sybil.drafting import DraftIntersection, DraftSelf, DraftStrings
from sybil.facts import MODELS
from sybil.models import folders
from sybil.models.checkpoints.families import understand
from sybil.pairs import REGISTERED, STDLIB
from sybil.text import encode

Lay = Callable[[str, str], None]
TEXTS = ["The stop sign stood at the corner, and", "def main(arguments):\n    return [each", "naïve café 日本, 12"]
FOLDERS = [name for name in REGISTERED if name != STDLIB]
FILES = [name for name in FOLDERS if all(model.split("/")[0] in makes.GGUF for model in REGISTERED[name].models)]
SOME = [("folder", "opt-350m:2.7b"), ("folder", "phi3:llama3"), ("file", "qwen2.5:7b")]
ALL = [("folder", name) for name in FOLDERS] + [("file", name) for name in FILES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture
def lay(root: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Makes the tiny models of a pair, and lets the pair's name lead to them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: None)

    def made(form: str, name: str) -> None:
        pair = REGISTERED[name]
        if form == "folder":
            for model in pair.models:
                makes.cached(model, root)
            return
        target, *others = (str(makes.file(model, root / "files")) for model in pair.models)
        monkeypatch.setitem(REGISTERED, name, replace(pair, target=target, draft=others[0] if others else pair.draft))

    return made


def relation(decoder: Decoder) -> str:
    """How the draft's tokens stand to the target's, by what Sybil makes of the two."""
    if isinstance(decoder.draft, DraftIntersection | DraftStrings):
        return "different"
    sizes = {model.vocab_size for model in decoder.models}
    return "same" if isinstance(decoder.draft, DraftSelf) or len(sizes) == 1 else "padded"


@pytest.mark.parametrize(("form", "name"), ALL)
def test_a_pair_says_what_its_target_says_alone(form: str, name: str, lay: Lay, root: Path) -> None:
    """Greedily, by our forward and by transformers' own."""
    pair = REGISTERED[name]
    lay(form, name)
    assert PAIRS[name].places == ("cache" if form == "folder" else "file",) * len(pair.models)
    decoder = library.load(name, None if pair.draft else "self", device="cpu")
    out = decoder.generate(TEXTS, max_new_tokens=24, gamma=3, eos_token_id=[])
    alone = decoder.without_draft().generate(TEXTS, max_new_tokens=24, eos_token_id=[])
    assert [row.tolist() for row in out.tokens] == [row.tolist() for row in alone.tokens]
    assert out.stats.proposed > 0
    theirs = makes.model_of(pair.target)
    prompts = [encode(decoder.tokenizer, text) for text in TEXTS]
    for prompt, row in zip(prompts, out.tokens, strict=True):
        assert row.tolist() == greedy(theirs, torch.tensor(prompt), 24)
    if form == "folder":
        reference = AutoTokenizer.from_pretrained(makes.cached(pair.target, root))
        assert prompts == [reference(text).input_ids for text in TEXTS]
    if pair.tokenizer:  # a GGUF file of Gemma 3 270M has no row for the token of pictures, which its folder has
        one_more = (form, name) == ("file", "gemma3:4b")
        assert relation(decoder) == ("different" if one_more else pair.tokenizer)


PLANTED: dict[str, dict[str, Any]] = {
    "openai-community/gpt2-xl": {"activation_function": "relu"},
    "facebook/opt-350m": {"do_layer_norm_before": True, "_remove_final_layer_norm": True},
    "microsoft/Phi-3-mini-4k-instruct": {"sliding_window": None},
    "meta-llama/Llama-3.2-1B": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "Qwen/Qwen3-8B": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "google/gemma-3-4b-pt": {"text_config": {"sliding_window": 400}},
    "google/gemma-3-270m": {"query_pre_attn_scalar": 64},
}


@pytest.mark.parametrize("model", PLANTED)
def test_what_a_make_has_of_its_own_is_seen_where_it_is_left_out(model: str, root: Path, tmp_path: Path) -> None:
    """A forward that forgot it would say something else than transformers, so the tests above would fail."""
    shutil.copytree(makes.folder(model, root / "models"), tmp_path / "planted")
    config = json.loads((tmp_path / "planted" / "config.json").read_text())
    changes = {key: {**config[key], **new} if key == "text_config" else new for key, new in PLANTED[model].items()}
    (tmp_path / "planted" / "config.json").write_text(json.dumps(config | changes))
    decoder = library.load(tmp_path / "planted", device="cpu")
    out = decoder.generate(TEXTS, max_new_tokens=24, eos_token_id=[])
    prompts = [torch.tensor(encode(decoder.tokenizer, text)) for text in TEXTS]
    assert [row.tolist() for row in out.tokens] != [greedy(makes.model_of(model), prompt, 24) for prompt in prompts]


def ran(name: str, root: Path, out: Path) -> None:
    """The pair in the commands that decode."""
    prompts = root / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    pair = ("--pair", name, *(() if PAIRS[name].draft else ("--draft", "self")), "--device", "cpu")
    asked = ("--prompts", prompts, "--max-new-tokens", 8)
    named = (name, *pair[2:])
    assert sybil("check", *named) == 0
    assert sybil("generate", TEXTS[0], *pair, "--max-new-tokens", 8) == 0
    assert sybil("compare", "--quick", "--check", *pair, *asked, "--out", out / "compare") == 0
    plan = ("--quick", "--count", 3, "--repeats", 4, "--greedy", 2, "--stopping", 1, "--widths", 1, "--resolution", 8)
    assert sybil("verify", *pair, *asked, *plan, "--out", out / "verify") in (0, 3)
    (report,) = (out / "verify").glob("*.json")
    assert not any(check["failed"] for check in json.loads(report.read_text())["checks"])


@pytest.mark.parametrize(("form", "name"), SOME)
def test_some_pairs_go_through_the_commands(
    form: str, name: str, lay: Lay, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers' assisted generation takes no padding and no second tokenizer: it is left out with its reason."""
    lay(form, name)
    ran(name, root, tmp_path)
    assert ("transformers assisted is left out: " in capsys.readouterr().out) == (PAIRS[name].tokenizer != "same")


@pytest.mark.pairs
@pytest.mark.parametrize(("form", "name"), ALL)
def test_every_pair_goes_through_the_commands(form: str, name: str, lay: Lay, root: Path, tmp_path: Path) -> None:
    lay(form, name)
    ran(name, root, tmp_path)


def test_the_numbers_of_parameters_are_those_of_the_real_sizes() -> None:
    """Of each registered model's language model, summed over the tensors that Sybil's forward is made of."""
    assert {model for pair in REGISTERED.values() for model in pair.models} == MODELS.keys()
    for name, config in makes.REAL.items():
        family, shape = understand(config)
        sources = family.sources(config, shape, family.prefixes[0], "embedding", "head")
        assert sum(math.prod(source.size) for _, source in sources) == MODELS[name].parameters, name
    assert MODELS.keys() - makes.REAL.keys() == {*REGISTERED[STDLIB].models}
    for model in REGISTERED[STDLIB].models:
        stored = folders.read(model).stored
        assert sum(map(math.prod, stored.shapes.values())) == MODELS[model].parameters
