"""Converts a caller's arguments to the type that is meant, or refuses them in one line that names the argument.
Pure."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from sybil.errors import InvalidSetting

SHOWN = 60  # characters of a value in a message


def described(value: Any) -> str:
    """A value in one short line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and {value.dtype}"
    try:
        shown = " ".join(repr(value).split())
    except Exception:  # whatever somebody else's class raises
        shown = f"an object of {type(value).__name__}"
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def integer(name: str, value: Any, least: int | None = None, most: int | None = None, remedy: str = "") -> int:
    """An integer from least to most, given as an int or as a scalar of numpy or torch. Raises InvalidSetting."""
    number = _integer(value)
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        bounds = "" if least is None else f" of {least} or more" if most is None else f" from {least} to {most}"
        raise InvalidSetting(f"{name} is {described(value)}: use an integer{bounds}{remedy}")
    return number


def number(name: str, value: Any) -> float:
    """A real number as a float, given as a number of Python or as a scalar of numpy or torch. Raises InvalidSetting for
    anything else, and for NaN."""
    scalar = isinstance(value, Tensor | np.ndarray) and value.ndim == 0
    plain = None
    if not _is_truth(value) and (scalar or isinstance(value, Real)):
        try:
            plain = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # a complex number, no value, or too large
            plain = None
    if plain is None or plain != plain:
        raise InvalidSetting(f"{name} is {described(value)}: use a number")
    return plain


def flag(name: str, value: Any) -> bool:
    """True or False; raises InvalidSetting."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InvalidSetting(f"{name} is {described(value)}: use True or False")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """One token id or several, given as an int, a list, a tensor or an array. None and [] give (). Raises
    InvalidSetting."""
    one = _integer(value)
    if one is not None:
        return (one,)
    listed = [] if value is None else _listed(value)
    ids = None if listed is None else [_integer(each) for each in listed]
    if ids is None or None in ids:
        raise InvalidSetting(f"{name} is {described(value)}: use a token id, a list of them, or [] for none")
    return tuple(token for token in ids if token is not None)


def strings(name: str, value: Any) -> tuple[str, ...]:
    """One string or several, none of them empty. None and [] give (). Raises InvalidSetting."""
    if isinstance(value, str):
        value = [value]
    listed = [] if value is None else _listed(value)
    if listed is None or not all(isinstance(each, str) for each in listed):
        raise InvalidSetting(f"{name} is {described(value)}: use a string, or a list of strings")
    if "" in listed:
        raise InvalidSetting(f"{name} holds '', which every text contains: leave it out")
    return tuple(listed)


def callables(name: str, value: Any) -> tuple[Any, ...]:
    """A list of functions, of callable objects, or of objects with the method of_row. None and [] give (). Raises
    InvalidSetting."""
    listed = [] if value is None else _listed(value)
    if listed is None:
        remedy = "put it in a list" if callable(value) else "use a list of functions"
        raise InvalidSetting(f"{name} is {described(value)}: {remedy}")
    for each in listed:
        if isinstance(each, type) or not (callable(each) or hasattr(each, "of_row")):
            raise InvalidSetting(f"{name} holds {described(each)}: use functions, or objects that can be called")
    return tuple(listed)


def check_streamer(value: Any, rows: int) -> None:
    """Raises InvalidSetting for a value without the methods put and end of transformers' streamers, and for a streamer
    beside several rows. None passes: it stands for no streamer."""
    if value is None:
        return
    if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in ("put", "end")):
        raise InvalidSetting(f"streamer is {described(value)}: use an object with the methods put and end")
    if rows != 1:
        raise InvalidSetting(f"streamer is set with {rows} rows: stream one prompt at a time")


def _integer(value: Any) -> int | None:
    if _is_truth(value) or (isinstance(value, Tensor) and value.ndim):
        return None
    try:
        return operator.index(value)
    except Exception:  # whatever somebody else's class raises, and torch's of a tensor without a value
        return None


def _is_truth(value: Any) -> bool:
    """Whether a value is True or False, which Python counts as numbers."""
    return isinstance(value, bool | np.bool_) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _listed(value: Any) -> list[Any] | None:
    """The entries of a list of some kind, 1-d tensors and arrays among them; None for anything else."""
    if isinstance(value, Tensor | np.ndarray):
        return list(value) if value.ndim == 1 else None
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        return None
    return list(value)
