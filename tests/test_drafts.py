"""The names of drafts: what they stand for, and what is refused in one line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tiny import gpt2, letters, save

import sybil
from sybil.drafting import DraftLookup, DraftModel, DraftSelf
from sybil.drafts import Cascade, Draft, Hybrid, Lookup, NamedModel, Self, Skip, is_model, parse
from sybil.errors import InvalidSetting
from sybil.measuring.memory import weight_bytes


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("self", Self()),
        ("self:4", Self(4)),
        ("self:8", Self(8)),
        ("skip", Skip()),
        ("skip:3", Skip(3)),
        ("skip:3:8", Skip(3, 8)),
        ("lookup", Lookup()),
        ("hybrid:lookup,self:5", Hybrid(Self(5))),
        ("hybrid:lookup,gpt2", Hybrid(NamedModel("gpt2"))),
        ("cascade:lookup,self", Cascade(Lookup(), Self())),
        ("cascade:lookup,skip:2", Cascade(Lookup(), Skip(2))),
        ("cascade:lookup,openai-community/gpt2", Cascade(Lookup(), NamedModel("openai-community/gpt2"))),
        ("cascade:self:4,self:8", Cascade(Self(4), Self(8))),
        ("hybrid:lookup,cascade:lookup,self:5", Hybrid(Cascade(Lookup(), Self(5)))),
        ("gpt2", NamedModel("gpt2")),
        ("selfish", NamedModel("selfish")),
        ("./self", NamedModel("./self")),
        ("ollama:smollm2:135m", NamedModel("ollama:smollm2:135m")),
        ("a,b", NamedModel("a,b")),
    ],
)
def test_names(name: str, tree: Draft) -> None:
    assert parse(name) == tree
    assert is_model(name) == isinstance(tree, NamedModel)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("self:7", "4, 5, 6 or 8 bits"),
        ("self:", "4, 5, 6 or 8 bits"),
        ("self:08", "4, 5, 6 or 8 bits"),
        ("self:4:4", "4, 5, 6 or 8 bits"),
        ("skip:0", "1 or more"),
        ("skip:-1", "1 or more"),
        ("skip:", "1 or more"),
        ("skip:\u0663", "1 or more"),
        ("skip:" + "9" * 5000, "1 or more"),
        ("skip:2:7", "4, 5, 6 or 8 bits"),
        ("hybrid", "made of two"),
        ("hybrid:lookup", "made of two"),
        ("hybrid:lookup,", "made of two"),
        ("hybrid:,self", "made of two"),
        ("hybrid:self,lookup", "hybrid:lookup"),
        ("hybrid:lookup,lookup", "self, skip, a cascade or a model"),
        ("hybrid:lookup,hybrid:lookup,self", "self, skip, a cascade or a model"),
        ("hybrid:lookup,self:3", "4, 5, 6 or 8 bits"),
        ("cascade", "made of two"),
        ("cascade:self:4", "made of two"),
        ("cascade:gpt2,self", "lookup, or self"),
        ("cascade:skip,self", "lookup, or self"),
        ("cascade:lookup,lookup", "self, skip or a model"),
        ("cascade:lookup,hybrid:lookup,self", "self, skip or a model"),
        ("cascade:self:8,self:4", "more bits"),
        ("cascade:self:8,self:8", "more bits"),
        ("cascade:self,self", "more bits"),
        ("cascade:self:4,gpt2", "more bits"),
        ("lookup:", "lookup alone"),
        ("lookup:gpt2", "lookup alone"),
        ("hybrid:lookup:5,self", "lookup alone"),
        ("hybrid:lookup," * 3000 + "self", "two deep"),
        ("cascade:" + "lookup,cascade:" * 3000 + "lookup,self", "two deep"),
        ("cascade:" * 3000, "made of two"),
    ],
)
def test_senseless_names_are_one_line(name: str, said: str) -> None:
    with pytest.raises(InvalidSetting, match=r"^draft is ") as refused:
        parse(name)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(gpt2(), tmp_path_factory.mktemp("drafts") / "target", letters())


@pytest.mark.parametrize("name", ["self", "self:4", "self:5", "self:6", "self:8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_copy_is_loaded_beside_its_target(folder: Path, name: str, dtype: str) -> None:
    """By the forward that the target runs by, whose caches it shares."""
    decoder = sybil.load(folder, name, dtype=dtype, device="cpu")
    assert isinstance(decoder.draft, DraftSelf)
    assert type(decoder.draft.model) is type(decoder.target)
    settings: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": []}
    plain = decoder.without_draft().generate(["abc", "q"], **settings)
    found = decoder.generate(["abc", "q"], gamma=5, **settings)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in plain.tokens]
    assert found.stats.acceptance_rate > 0.2  # of random weights; a guess is right 3 times in 100
    assert weight_bytes(decoder) == decoder.target.weight_bytes + decoder.draft.model.weight_bytes


def test_a_copy_of_a_model_object(folder: Path) -> None:
    decoder = sybil.load(copy.deepcopy(gpt2()), "self", tokenizer=letters())
    assert decoder.generate("abc", max_new_tokens=8, gamma=4).stats.accepted > 0


def test_the_draft_of_lookup(folder: Path) -> None:
    assert isinstance(sybil.load(folder, "lookup", device="cpu").draft, DraftLookup)


@pytest.mark.parametrize(
    "name",
    ["hybrid:lookup,self:8", "cascade:lookup,self:8", "cascade:self:4,self:8", "hybrid:lookup,cascade:lookup,self:5"],
)
def test_mixtures_are_plain_decodings_text(folder: Path, name: str) -> None:
    decoder = sybil.load(folder, name, dtype="float32", device="cpu")
    settings: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": []}
    plain = decoder.without_draft().generate(["abcabcab", "q"], **settings)
    found = decoder.generate(["abcabcab", "q"], gamma=6, **settings)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in plain.tokens]
    assert found.stats.accepted > 0
    assert weight_bytes(decoder) == sum(model.weight_bytes for model in decoder.models)


def test_a_model_helped_by_the_text(folder: Path) -> None:
    decoder = sybil.load(folder, f"cascade:lookup,{folder}", device="cpu")
    assert isinstance(decoder.draft, DraftModel)
    assert isinstance(decoder.draft.helper, DraftLookup)


@pytest.mark.parametrize("name", ["self", "self:4", "skip", "hybrid:lookup,self", "cascade:lookup,skip"])
def test_a_model_that_runs_by_its_own_forward_is_not_copied(name: str) -> None:
    hooked = copy.deepcopy(gpt2())
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidSetting, match=r"has forward hooks.*give a draft model, or lookup"):
        sybil.load(hooked, name, tokenizer=letters())


def test_layers_are_left_out(folder: Path) -> None:
    """Of the target itself, whose memory is counted once, and of its copy."""
    for name, shares in {"skip": True, "skip:1": True, "skip:1:8": False}.items():
        decoder = sybil.load(folder, name, dtype="float32", device="cpu")
        assert isinstance(decoder.draft, DraftSelf)
        assert decoder.draft.shares == shares
        assert (weight_bytes(decoder) == decoder.target.weight_bytes) == shares
        plain = decoder.without_draft().generate("abc", max_new_tokens=30, eos_token_id=[])
        assert decoder.generate("abc", max_new_tokens=30, eos_token_id=[], gamma=3).text == plain.text
    with pytest.raises(InvalidSetting, match="2 layers: leave out fewer"):
        sybil.load(folder, "skip:2", device="cpu")
