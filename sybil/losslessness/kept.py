"""Keeps answers in a file as they come. A run that was cut off continues where it was, and a run that had too few
tokens asks only for the difference."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from sybil.errors import ResultsMismatch, one_line, shown
from sybil.losslessness.child import LARGEST_ID, MOST_TOKENS
from sybil.losslessness.samples import Request, Sample
from sybil.losslessness.speculation import Speculation
from sybil.measuring import files

FORMAT = 1
MOST_BYTES = 2**22  # the most bytes of a line
MOST_ANSWERS = 10**6  # the most answers of a file
MOST_LETTERS = 2000  # the most letters of a doubt
EVERY = 1.0  # seconds between syncs: only a machine that stops loses the answers since the last one
LOOKED_AT = 64  # numbers of a weight that its digest reads

Settings = dict[str, Any]


class UnreadableLine(Exception):
    """A line that holds no answer."""


@dataclass(slots=True)
class Kept:
    """Answers in a JSONL file, whose first line holds the settings under which they were given. Without a path nothing
    is kept. resumes: the file exists, and this run continues it; otherwise the file is made with the first answer,
    under an unused name. settings: those of the run that begin() isn't given.

    An answer is reused for exactly the same question: the same phase, request, seed, prompt and prompt number. So a run
    may ask for more of everything than the run that it continues, and may have other bounds."""

    path: Path | None = None
    resumes: bool = False
    settings: Settings = field(default_factory=dict)
    _known: dict[str, Sample] = field(default_factory=dict)
    _synced: float = 0.0

    @property
    def count(self) -> int:
        """The number of answers."""
        return len(self._known)

    def begin(self, settings: Mapping[str, Any], vocab_size: int) -> None:
        """Set the remaining settings, and read the file. Raises ResultsMismatch for a file of other settings, or one
        that isn't Sybil's; the file is left as it is."""
        self.settings = json.loads(json.dumps({"format": FORMAT, **self.settings, **settings}))
        if self.path is not None and self.resumes:
            whole = _Reader(self.path, self.settings, vocab_size)
            self._known = dict(whole.read())
            if whole.torn:
                os.truncate(self.path, whole.bytes)

    def keys(self, phase: str, prompts: Sequence[tuple[int, ...]], requests: Sequence[Request], seed: int) -> list[str]:
        """The key of each question; an empty list where nothing is kept."""
        if self.path is None:
            return []
        return [
            _key(phase, *question, seed, index) for index, question in enumerate(zip(prompts, requests, strict=True))
        ]

    def leading(self, keys: Sequence[str], prompts: Sequence[tuple[int, ...]]) -> list[Sample]:
        """The kept answers to the first questions, up to the first question without one."""
        found = takewhile(lambda each: each is not None, map(self._known.get, keys))
        return [Sample(prompt, *_rest(each)) for prompt, each in zip(prompts, found, strict=False) if each is not None]

    def keep(self, key: str, phase: str, sample: Sample) -> None:
        """Add an answer, also to the file."""
        assert self.path is not None
        if not self.resumes:
            files.folder(self.path.parent)
            self.path, self.resumes = files.unused(self.path), True
            with files.all_or_none(self.path):
                self._append({"settings": self.settings}, sync=True)
        self._known[key] = Sample((), *_rest(sample))
        counts = sample.speculation
        now = time.monotonic()
        self._append(
            {"phase": phase, "question": key, "tokens": sample.tokens, "places": sample.places, "doubt": sample.doubt,
             "counts": None if counts is None else [counts.drafted, counts.accepted, counts.source]},
            sync=now - self._synced >= EVERY,
        )  # fmt: skip

    def _append(self, row: dict[str, Any], sync: bool) -> None:
        assert self.path is not None
        files.append(self.path, row, sync=sync)
        if sync:
            self._synced = time.monotonic()


def _key(phase: str, prompt: Sequence[int], request: Request, seed: int, index: int) -> str:
    """The key of a question. index: the prompt's number among those that the seed is for."""
    question = json.dumps([phase, list(prompt), asdict(request), seed, index])
    return hashlib.sha256(question.encode()).hexdigest()[:32]


def digest(prompts: Sequence[Sequence[int]]) -> str:
    """A hash of prompts, given as token ids."""
    return hashlib.sha256(json.dumps([list(prompt) for prompt in prompts]).encode()).hexdigest()[:16]


@torch.no_grad()
def weights(model: torch.nn.Module) -> str:
    """A hash of a model's weights: of their names and shapes, and of some numbers of each."""
    found = hashlib.sha256()
    for name, weight in model.state_dict().items():
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.flatten()
        found.update(flat[:: max(1, len(flat) // LOOKED_AT)].cpu().double().numpy().tobytes())
    return found.hexdigest()[:16]


class _Reader:
    """Reads the lines of a file, which anybody may have written. bytes: of its complete lines. torn: whether an
    incomplete line follows them."""

    def __init__(self, path: Path, settings: Settings, vocab_size: int) -> None:
        self.path, self.settings, self.vocab_size = path, settings, vocab_size
        self.bytes, self.torn = 0, False

    def read(self) -> Iterator[tuple[str, Sample]]:
        """The answers, each with the key of its question. Raises ResultsMismatch for a line that holds none."""
        if not self.path.is_file():
            raise ResultsMismatch(f"{self.path} is no file: name the folder or the JSONL file of an earlier run")
        try:
            with self.path.open("rb") as file:
                first = file.readline(MOST_BYTES)
                self._check(first)
                self.bytes = len(first)
                for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES), b""), start=2):
                    self.torn = not line.endswith(b"\n") and len(line) < MOST_BYTES
                    if self.torn:
                        break
                    yield self._answer(number, line)
                    self.bytes += len(line)
        except OSError as error:
            raise ResultsMismatch(f"{self.path} can't be gone on with ({error.strerror}): name another file") from None

    def _check(self, line: bytes) -> None:
        theirs = _object(line).get("settings")
        if not isinstance(theirs, dict) or not line.endswith(b"\n"):
            raise ResultsMismatch(f"{self.path} holds no answers of sybil verify: name another file, or start anew")
        names = [name for name in {**self.settings, **theirs} if theirs.get(name) != self.settings.get(name)]
        if names:
            had, wanted = (_told(each, names) for each in (theirs, self.settings))
            raise ResultsMismatch(
                f"{self.path} was gathered with {had}, and this run has {wanted}: use the same, or start anew"
            )

    def _answer(self, number: int, line: bytes) -> tuple[str, Sample]:
        try:
            if number > MOST_ANSWERS:
                raise UnreadableLine
            row = _object(line)
            question, doubt, counts = row.get("question"), row.get("doubt"), row.get("counts")
            if not isinstance(question, str) or not isinstance(doubt, str):
                raise UnreadableLine
            tokens = _integers(row.get("tokens"), self.vocab_size - 1)
            places = None if row.get("places") is None else _integers(row["places"], LARGEST_ID)
            if places is not None and len(places) != len(tokens):
                raise UnreadableLine
            return question, Sample((), tokens, places, _line(doubt), None if counts is None else _counts(counts))
        except UnreadableLine:
            raise ResultsMismatch(
                f"{self.path}, line {number}, is no answer that sybil verify kept: name another file, or start anew"
            ) from None


def _rest(sample: Sample) -> tuple[Any, ...]:
    """All fields of a sample except its prompt."""
    return sample.tokens, sample.places, sample.doubt, sample.speculation


def _object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else {}


def _integers(values: Any, most: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MOST_TOKENS:
        raise UnreadableLine
    if not all(type(each) is int and 0 <= each <= most for each in values):
        raise UnreadableLine
    return tuple(values)


def _counts(values: Any) -> Speculation:
    if not isinstance(values, list) or len(values) != 3 or not isinstance(values[2], str):
        raise UnreadableLine
    drafted, accepted, source = values
    found = _integers([accepted] if drafted is None else [accepted, drafted], LARGEST_ID)
    if found[0] > found[-1]:
        raise UnreadableLine
    return Speculation(drafted, accepted, _line(source))


def _line(text: str) -> str:
    return text if text.isprintable() and len(text) <= MOST_LETTERS else one_line(text, MOST_LETTERS)


def _told(settings: Settings, names: Sequence[str]) -> str:
    """The settings of these names, for a message. Only a few are given, because a file may make up any number."""
    told = [f"{one_line(name, 40)}={shown(settings.get(name))}" for name in names[:4]]
    return ", ".join(told) + ("" if len(names) <= 4 else f" and {len(names) - 4} more")
