"""Reads what a sweep's file asks for. Each value is checked before any model is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sybil.arguments import described
from sybil.devices import AUTO, choose_device, dtype_named
from sybil.drafting.window import window_named
from sybil.drafts import model_of, parse
from sybil.errors import InvalidSetting, SybilError
from sybil.models.checkpoints.ollama import PREFIX as OLLAMA
from sybil.models.folders import EMBEDDED, PACKAGED
from sybil.pairs import pair
from sybil.sampling import GREEDY, Sampling
from sybil.sweeping.run import NONE, UNCACHED, UNCACHED_PLAIN
from sybil.sweeping.sheet import Place, Sheet
from sybil.verification import rule_named

PAIR, ALL = "pair", "all"
"""PAIR is the drafter's name for the pair's own draft. ALL stands for every domain of the pair's prompts."""
MOST = 10_000
"""The most cells of a sweep."""
GAMMAS = 64

Some = Annotated[list[str], Field(min_length=1)]
Positive = Annotated[int, Field(ge=1, le=1 << 20)]


class SweepConfig(BaseModel):
    """What a sweep's file asks for. Each combination of one entry from each list is a cell. The other fields have the
    same value in all cells. The fields are those of RunConfig; the lists have their names in the plural.

    warm_ups: how many times a cell's first batch is run before the first repeat. These runs aren't counted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    pairs: Some
    drafters: Some = [PAIR]
    rules: Some = ["token"]
    gammas: Annotated[list[Annotated[int, Field(ge=1, le=GAMMAS)] | Literal["auto"]], Field(min_length=1)] = [AUTO]
    temperatures: Annotated[list[float], Field(min_length=1)] = [0.0]
    domains: Some = [ALL]
    batches: Annotated[list[Positive], Field(min_length=1)] = [1]
    window: str = "constant"
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    dtype: str | None = None
    draft_dtype: str | None = None
    device: str = "cpu"
    prompts: Positive = 6
    new_tokens: Positive = 48
    repeats: Positive = 1
    warm_ups: Annotated[int, Field(ge=0, le=1 << 20)] = 1

    @property
    def lists(self) -> tuple[list[Any], ...]:
        """The lists whose product gives the cells; the last list varies fastest."""
        models = self.pairs, self.drafters
        return (*models, self.rules, self.gammas, self.temperatures, self.domains, self.batches)


def asked(sheet: Sheet, elsewhere: bool) -> SweepConfig:
    """The checked configuration of a sheet. elsewhere: whether the cells run on another machine, whose devices aren't
    known here.

    Raises InvalidSetting. The message names the line and the key."""
    found = _validated(sheet)
    checks: dict[str, Callable[[Any], object]] = {
        "pairs": pair,
        "drafters": _check_drafter,
        "rules": rule_named,
        "gammas": described,
        "temperatures": lambda value: Sampling(temperature=value),
        "domains": described,
        "batches": lambda value: _check_batch(value, found.prompts),
        "window": window_named,
        "top_p": lambda value: Sampling(top_p=value),
        "min_p": lambda value: Sampling(min_p=value),
        "dtype": dtype_named,
        "draft_dtype": lambda value: dtype_named(value, draft=True),
        "device": _check_word if elsewhere else choose_device,
    }
    for key, check in checks.items():
        for place, value, before in _entries(key, getattr(found, key)):
            try:
                check(value)
            except SybilError as error:
                raise sheet.fault(place, f"{key}: {error}") from None
            if value in before:
                raise sheet.fault(place, f"{key} has {described(value)} twice: leave one out")
    _check_together(sheet, found)
    return found


def _validated(sheet: Sheet) -> SweepConfig:
    try:
        return SweepConfig.model_validate(sheet.values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place, given = tuple(first["loc"]), described(first["input"])
    key = str(place[0])
    if first["type"] == "extra_forbidden":
        reason = f"there is no key {described(key)}: the keys are {', '.join(SweepConfig.model_fields)}"
    elif first["type"] == "missing":
        reason = f"{key} is missing: name some, such as `{key}: [stdlib]`"
    elif first["type"] == "list_type":
        reason = f"{key} is {given}: give a list, such as [{given}]"
    elif key == "gammas" and len(place) > 1:
        reason = f"{key} has {given}: use numbers from 1 to {GAMMAS}, or auto"
    else:
        reason = f"{key} has {given}: {first['msg'][0].lower()}{first['msg'][1:]}"
    raise sheet.fault(place, reason)


def _entries(key: str, value: Any) -> Iterator[tuple[Place, Any, list[Any]]]:
    """Yields (its place in the file, the value, the values before it in its list) for each value of a key."""
    if isinstance(value, list):
        yield from (((key, number), each, value[:number]) for number, each in enumerate(value))
    else:
        yield (key,), value, []


def _check_together(sheet: Sheet, found: SweepConfig) -> None:
    """Raises InvalidSetting for values that exclude each other."""
    count = 1
    for values in found.lists:
        count *= len(values)
    if count > MOST:
        raise sheet.fault(("pairs",), f"the lists make {count} cells, and a sweep has {MOST} at most: shorten one")
    for key in ("top_k", "top_p", "min_p"):
        if getattr(found, key) != getattr(GREEDY, key) and not any(found.temperatures):
            raise sheet.fault((key,), f"{key} is set and every temperature is 0, which samples nothing: leave it out")
    for number, name in enumerate(found.drafters):
        if name in (UNCACHED, UNCACHED_PLAIN) and found.batches != [1]:
            reason = f"drafters has {name}, which decodes one text at a time: leave batches out"
            raise sheet.fault(("drafters", number), reason)
        if name == UNCACHED and (found.rules != ["token"] or AUTO in found.gammas):
            reason = f"drafters has {name}, which knows the rule token and gammas that are numbers: use these alone"
            raise sheet.fault(("drafters", number), reason)


def _check_drafter(name: str) -> None:
    """Raises InvalidSetting for a draft's name that drafts.py can't parse, or whose model is neither a hub id nor on
    this machine."""
    if name in (NONE, PAIR, UNCACHED, UNCACHED_PLAIN):
        return
    try:
        model = model_of(parse(name))
    except InvalidSetting as error:
        raise InvalidSetting(f'{error}; in a list such a name has quotes: "hybrid:lookup,self"') from None
    if model is None or "/" in model.name or model.name.startswith((EMBEDDED, PACKAGED, OLLAMA)):
        return
    if not model.name or not Path(model.name).exists():
        raise InvalidSetting(
            f"there is no drafter {described(model.name)}: use {NONE}, {PAIR}, self, skip, lookup, a hybrid, "
            f"a cascade, {UNCACHED}, {UNCACHED_PLAIN}, a hub id (owner/name), a folder or a file"
        )


def _check_batch(batch: int, prompts: int) -> None:
    if prompts % batch:
        raise InvalidSetting(f"{batch} doesn't divide prompts, which is {prompts}: change one of them")


def _check_word(device: str) -> None:
    """Raises InvalidSetting for a word that isn't the name of a device."""
    if device.partition(":")[0] not in (AUTO, "cpu", "cuda", "mps"):
        raise InvalidSetting(f"device is {described(device)}: use 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
