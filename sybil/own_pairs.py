"""A user's own pairs, from the file pairs.toml in the user's configuration folder. Each table is a pair:

[mine]
target = "~/models/Qwen2.5-7B-Q4_K_M.gguf"
draft = "~/models/Qwen2.5-0.5B-Q8_0.gguf"
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sybil import drafts
from sybil.errors import InvalidSetting, shown, told

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FILE_BYTES = 1 << 20
NAME = re.compile(r"(?!(embedded|packaged|ollama):)[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}")


@dataclass(frozen=True, slots=True)
class OwnPair:
    """One table of the file. target: as sybil.load takes it, but no pair's name. draft: as sybil.load takes it, or
    None. A path that begins with ./ or ../ is relative to the file's folder. prompts: the prompts of measurements.
    tokenizer: see sybil.facts.Relation."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    target: str
    draft: str | None = None
    about: str = "one of your own"
    prompts: Literal["code", "english"] = "code"
    tokenizer: Literal["same", "padded", "different"] | None = None


KEYS = ", ".join(each.name for each in fields(OwnPair))


def pairs_file() -> Path | None:
    """The file in which the user's pairs are looked for; None where the user has no home folder."""
    named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    try:
        return (named if named.is_absolute() else Path("~/.config").expanduser()) / "sybil" / "pairs.toml"
    except RuntimeError:
        return None


def own_pairs(taken: Collection[str]) -> Mapping[str, OwnPair]:
    """The user's pairs by name; empty where there is no file. taken: names that the pairs may not have. Raises
    InvalidSetting; the message names the file, the table and the key."""
    path = pairs_file()
    tables = {} if path is None else _tables(path)
    if not tables or path is None:
        return {}
    from pydantic import TypeAdapter, ValidationError  # takes a tenth of a second: only for users with such a file

    try:
        found = TypeAdapter(dict[str, OwnPair]).validate_python(tables)
    except ValidationError as error:
        raise InvalidSetting(f"{path}: {_wrong(error.errors()[0])}") from None
    return {name: _checked(name, own, path, taken) for name, own in found.items()}


def _tables(path: Path) -> dict[str, Any]:
    """The file's content; {} where there is no file. Raises InvalidSetting."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES:
            raise InvalidSetting(f"{path} is no file of at most {FILE_BYTES} bytes: write a TOML table a pair into it")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InvalidSetting(f"{path} can't be read ({error.strerror}): mend its permissions, or remove it") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidSetting):
            raise
        raise InvalidSetting(f"{path} is no TOML ({told(error)}): mend it, or remove it") from None


def _wrong(error: ErrorDetails) -> str:
    """pydantic's error about a table, in Sybil's words."""
    table, *keys = error["loc"]
    where = f"table [{table}]"
    if not keys:
        return f"{where} is {shown(error['input'])}: give a table with the keys {KEYS}"
    if error["type"] == "missing":
        return f"{where} has no {keys[0]}: add it"
    if error["type"] == "unexpected_keyword_argument":
        return f"{where} has the key {shown(keys[0])}: the keys are {KEYS}"
    return f"{where} has {keys[0]} {shown(error['input'])}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _checked(name: str, own: OwnPair, path: Path, taken: Collection[str]) -> OwnPair:
    """The pair with absolute paths. Raises InvalidSetting for a table that can't be a pair."""
    where = f"{path}: table [{name[:80]}]"
    if name in taken:
        raise InvalidSetting(f"{where} has the name of a registered pair: choose another name")
    if not NAME.fullmatch(name):
        raise InvalidSetting(
            f"{where} has a name that no pair may have: use at most 40 letters, digits, '.', '_', ':', '+' and '-'"
        )
    if own.target in taken or not own.target or not drafts.is_model(own.target):
        raise InvalidSetting(f"{where} has target {shown(own.target)}: give a hub id, a folder or a GGUF file")
    if own.draft == "":
        raise InvalidSetting(f"{where} has draft '': name one, or leave draft out")
    if own.draft is not None:
        try:
            drafts.parse(own.draft)
        except InvalidSetting as error:
            raise InvalidSetting(f"{where}: {error}") from None
    return replace(own, target=_whole(own.target, path), draft=own.draft and _whole(own.draft, path))


def _whole(source: str, path: Path) -> str:
    """A source in which a path relative to the file's folder is made absolute."""
    return str(path.parent / source) if source.startswith(("./", "../")) else source
