"""The keywords for what a decoder is asked and how sure a verdict is to be. The command line has the same names."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypedDict

from sybil.drafting.window import GAMMA
from sybil.errors import InvalidSetting
from sybil.losslessness.report import Plan
from sybil.losslessness.samples import Request
from sybil.settings import Settings


class Asked(TypedDict, total=False):
    """Keywords of judge(). A keyword that is left out has its default from FULL or QUICK, Plan, Request or Settings.

    For each sequence:

    - `max_new_tokens`, `temperature`, `top_k`, `top_p`, `min_p`

    For the plan:

    - `count`: how many prompts are taken from Sybil's own or from a file
    - `repeats`: sampled sequences for each prompt
    - `greedy`, `stopping`, `widths`: the number of prompts for each of these phases
    - `stop_strings`: whether stop strings are tried
    - `alpha`: the probability that a lossless decoder fails
    - `resolution`: a drift, in nats a token, that a PASS must be able to detect
    - `uniformity`: an unevenness, as Cohen's w, that a PASS must be able to detect
    - `seed`

    For Sybil's own decoder:

    - `gamma`, which transformers' prompt lookup takes too, `rule` and `window`"""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    count: int
    repeats: int
    greedy: int
    stopping: int
    stop_strings: bool
    widths: int
    alpha: float
    resolution: float
    uniformity: float
    seed: int
    gamma: int | str
    rule: str
    window: str


FULL: Mapping[str, Any] = MappingProxyType(dict(count=64, repeats=2, max_new_tokens=48, resolution=0.2))
QUICK: Mapping[str, Any] = MappingProxyType(dict(count=32, repeats=2, max_new_tokens=32, resolution=0.4))
SEQUENCE = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")
PLAN = ("repeats", "greedy", "stopping", "stop_strings", "widths", "alpha", "resolution", "uniformity", "seed")


def planned(asked: Asked, quick: bool = False) -> tuple[Plan, Settings]:
    """The plan, as far as it is known before the target is read, and the settings of Sybil's own decoder. Raises
    InvalidSetting."""
    unknown = [name for name in asked if name not in Asked.__annotations__]
    if unknown:
        near = get_close_matches(unknown[0], [*Asked.__annotations__], 1)
        meant = f"did you mean {near[0]}?" if near else f"use {', '.join(Asked.__annotations__)}"
        raise InvalidSetting(f"there is no setting {unknown[0]!r}: {meant}")
    said = {**(QUICK if quick else FULL), **asked}
    request = Request(**{name: said[name] for name in SEQUENCE if name in said})
    plan = Plan(request=request, **{name: said[name] for name in PLAN if name in said})
    speculating = {name: said[name] for name in ("rule", "window") if name in said}
    settings = Settings(
        gamma=said.get("gamma", GAMMA),
        do_sample=request.temperature != 0,
        **{name: getattr(request, name) for name in SEQUENCE},
        **speculating,
    )
    return plan, settings
