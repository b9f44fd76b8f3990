"""A folder's chat template and special tokens are those that AutoTokenizer finds there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import letters, llama, save
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sybil import load
from sybil.errors import NotAModel
from sybil.models import folders

HI = "{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(model: Path) -> Path:
    for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    if (model / "additional_chat_templates").exists():
        (model / "additional_chat_templates").rmdir()
    return model


def written(folder: Path, settings: dict[str, Any], **files: str) -> Path:
    settings = {"tokenizer_class": "TokenizersBackend", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, text in files.items():
        path = folder / {"jinja": "chat_template.jinja", "tools": "additional_chat_templates/tools.jinja"}.get(
            name, f"{name}.json"
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


SETTINGS = [
    ({}, {}),
    ({"chat_template": HI}, {}),
    ({"chat_template": HI}, {"jinja": "{{ 1 }}"}),
    ({"chat_template": [{"name": "default", "template": HI}, {"name": "tools", "template": "x"}]}, {}),
    ({"chat_template": HI}, {"jinja": "{{ 2 }}", "tools": "x"}),
    ({"bos_token": "a", "eos_token": {"content": "!", "__type": "AddedToken"}, "pad_token": None}, {}),
    ({"bos_token": "a"}, {"special_tokens_map": '{"bos_token": "b", "eos_token": {"content": "c"}}'}),
    (
        {"bos_token": "a", "added_tokens_decoder": {"1": {"content": "a", "special": True}}},
        {"special_tokens_map": '{"bos_token": "b"}'},
    ),
]


@pytest.mark.parametrize(("settings", "files"), SETTINGS)
def test_a_folders_template_and_special_tokens_are_transformers(
    folder: Path, settings: dict[str, Any], files: dict[str, str]
) -> None:
    found, theirs = folders.read(written(folder, settings, **files)), AutoTokenizer.from_pretrained(folder)
    wanted = theirs.chat_template
    assert found.chat_template == (wanted["default"] if isinstance(wanted, dict) else wanted)
    assert found.special_tokens == theirs.special_tokens_map


def test_special_tokens_of_a_class(folder: Path) -> None:
    """Those that a class of transformers has where no file names any."""
    from sybil.models.checkpoints import templates

    written(folder, {"tokenizer_class": "GPT2Tokenizer"})
    assert templates.special_tokens(folder, {"model_type": "gpt2"}) == dict.fromkeys(
        ("bos_token", "eos_token", "unk_token"), "<|endoftext|>"
    )


def test_several_templates_without_a_default_are_none(folder: Path) -> None:
    assert folders.read(written(folder, {"chat_template": HI}, tools="x")).chat_template is None
    assert folders.read(written(folder, {"chat_template": [{"name": "a", "template": HI}]})).chat_template is None


@pytest.mark.parametrize("odd", [5, False, [1], [{"name": "default"}], {"default": 3}])
def test_a_template_that_is_no_text_is_refused(folder: Path, odd: Any) -> None:
    with pytest.raises(NotAModel, match="has chat_template"):
        folders.read(written(folder, {"chat_template": odd}))


def test_a_template_file_that_is_no_text_is_refused(folder: Path) -> None:
    written(folder, {})
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(NotAModel, match="UTF-8"):
        folders.read(folder)
    (folder / "chat_template.jinja").write_bytes(b" " * (1 << 21))
    with pytest.raises(NotAModel, match="at most"):
        folders.read(folder)


def test_an_objects_template_is_its_tokenizers() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters(), bos_token="a", chat_template=HI)
    decoder = load(llama(), tokenizer=tokenizer)
    assert decoder.chat_template is not None
    assert decoder.chat_template.text == HI
    assert decoder.chat_template.special_tokens == {"bos_token": "a"}
    assert load(llama(), tokenizer=letters()).chat_template is None
