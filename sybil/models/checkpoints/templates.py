"""Reads a folder's chat template and the special tokens that it may name, as transformers' tokenizers do (5.23)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sybil.arguments import described
from sybil.errors import NotAModel
from sybil.models.checkpoints.autotokenizer import class_tokens
from sybil.models.checkpoints.files import is_there, read_json, read_text

TEMPLATE, OTHERS = "chat_template.jinja", "additional_chat_templates"
TEMPLATE_BYTES = 1 << 20
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read(folder: Path) -> str | None:
    """The folder's chat template, or the one named "default" of several; None where there is none.

    chat_template.jinja takes precedence over tokenizer_config.json. Raises NotAModel."""
    others = folder / OTHERS
    if is_there(folder / TEMPLATE):
        return read_text(folder / TEMPLATE, TEMPLATE_BYTES)
    if others.is_dir() and any(others.glob("*.jinja")):  # the folder has no default template then
        return read_text(others / "default.jinja", TEMPLATE_BYTES) if is_there(others / "default.jinja") else None
    found = _settings(folder).get("chat_template")
    named = _named(found)
    if named is None:
        raise NotAModel(
            f"{folder / 'tokenizer_config.json'} has chat_template {described(found)}: it may be a text, or several "
            "with their names"
        )
    return named.get("default")


def choose(held: Any) -> str | None:
    """The template in a chat_template field, which holds a text or several templates by name; None for none."""
    return (_named(held) or {}).get("default")


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that the folder's files name, by the names that a chat template knows: bos_token, ..."""
    settings = _settings(folder)
    specials = folder / "special_tokens_map.json"
    old = read_json(specials) if "added_tokens_decoder" not in settings and is_there(specials) else {}
    whole = {**class_tokens(config, settings), **settings, **old}
    texts = {name: _text(whole.get(name)) for name in SPECIAL}
    return {name: text for name, text in texts.items() if text is not None}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if is_there(path) else {}


def _named(found: Any) -> Mapping[str, str] | None:
    """The templates in a chat_template field, by name; None where the field holds something else."""
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list) and all(isinstance(each, dict) for each in found):
        found = {each.get("name"): each.get("template") for each in found}
    if isinstance(found, dict) and all(isinstance(text, str) for pair in found.items() for text in pair):
        return found
    return None


def _text(token: Any) -> str | None:
    """The text of a token, which is given alone or in an object with its options; None for anything else."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
