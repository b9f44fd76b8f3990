"""What `sybil compare` compares, and the rows of an earlier run that is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from sybil.devices import DTYPES, default_draft_dtype
from sybil.drafts import is_model
from sybil.measuring.contenders import AUTOREGRESSIVE, OURS, PEERS, TRANSFORMERS, contenders, theirs
from sybil.measuring.drafters import NONE, Way, drafters_named, gammas_named, ways
from sybil.measuring.files import resumed
from sybil.sampling import Sampling
from sybil.settings import Settings

Row = dict[str, Any]
"""One contender's run of one prompt: a PromptResult, the machine it was measured on, and the Task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The settings that rows must share to be comparable. The defaults apply to older rows, which lack some settings.

    - draft_dtype: the storage of the draft's weights in Sybil; None where there is no draft model.
    - temperature: 0 is greedy.
    - seed: the n-th prompt, from 0, is decoded with seed + n.
    - prompts: their digest.
    - dtype: torch's name, IN_BLOCKS, or the name of a quantised storage. transformers has the weights of IN_BLOCKS in
      float32; beside a quantised storage it has the file's own weights.
    - drafters, gammas: what --drafters compares, as comma-separated lists; "" where one draft is compared. With several
      drafters each row has its own gamma.
    - revision, adapter: of the target."""

    target: str
    draft: str | None
    max_new_tokens: int
    gamma: int | str
    dtype: str
    device: str
    prompts: str
    draft_dtype: str | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    rule: str = "token"
    window: str = "constant"
    seed: int = 0
    drafters: str = ""
    gammas: str = ""
    revision: str | None = None
    adapter: str | None = None

    def check(self) -> None:
        """Raises InvalidSetting for a task that can't be decoded."""
        Settings(max_new_tokens=self.max_new_tokens, seed=self.seed, **self.settings)

    @property
    def computed(self) -> torch.dtype:
        """The dtype in which transformers has the target."""
        return _computed(self.dtype)

    @property
    def sampling(self) -> Sampling:
        """The sampling settings, which are the same for every contender."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of Sybil's decoder."""
        return {"gamma": self.gamma, "rule": self.rule, "window": self.window, **self.sampling.keywords}

    def seed_of(self, number: int) -> int:
        """The seed of the prompt of that number, within torch's range."""
        return (self.seed + number) % 2**63

    @property
    def usual_draft_dtype(self) -> str | None:
        """The default of draft_dtype for this task."""
        return usual_draft_dtype(self.draft, self.dtype, self.device)

    @property
    def ways(self) -> dict[str, Way]:
        """The drafters and gammas that --drafters compares, by the names of rows."""
        if not self.drafters:
            return {}
        found = ways(drafters_named(self.drafters, self.draft), gammas_named(self.gammas))
        return {way.name: way for way in found}

    @property
    def contenders(self) -> tuple[str, ...]:
        """The names of the contenders, in the order of the table."""
        drafters = [way.drafter for way in self.ways.values()]
        return (*theirs(self.draft, drafters), *self.ways) if drafters else contenders(self.draft)

    @property
    def plain(self) -> str:
        """The name of Sybil without a draft, the baseline of speed-ups."""
        return NONE if self.drafters else AUTOREGRESSIVE

    @property
    def ours(self) -> tuple[str, ...]:
        """The names of Sybil's contenders."""
        return tuple(name for name in self.contenders if name in (*OURS, *self.ways))

    @property
    def reference(self) -> str | None:
        """The contender whose tokens the others must give; None where each contender draws its own.

        When all decode greedily, it is transformers where one draft is compared, and Sybil without a draft where
        several are. When sampling by the rule `coupled`, it is Sybil without a draft, because for one seed that rule
        gives the same tokens with any draft."""
        if self.sampling.greedy:
            return NONE if self.drafters else TRANSFORMERS
        return self.plain if self.rule == "coupled" and (self.drafters or self.draft is not None) else None

    @property
    def bound(self) -> tuple[str, ...]:
        """The contenders that must give the reference's tokens: all contenders in greedy decoding, Sybil's own when
        sampling."""
        who = self.contenders if self.sampling.greedy else self.ours
        return tuple(name for name in who if name != self.reference) if self.reference else ()


def usual_draft_dtype(draft: str | None, dtype: str, device: str) -> str | None:
    """The draft_dtype of a Task that names none."""
    if draft is None or not is_model(draft):
        return None
    return str(default_draft_dtype(_computed(dtype), torch.device(device))).removeprefix("torch.")


def _computed(dtype: str) -> torch.dtype:
    return DTYPES.get(dtype, torch.float32)


def read(path: Path, task: Task) -> list[Row]:
    """The rows of a run to be resumed, as resumed() reads them; raises ResultsMismatch."""

    def row_of(line: str) -> tuple[Row, dict[str, Any]] | None:
        try:
            row = json.loads(line)
            theirs = _task_of(row, task)
            whole = row["contender"] in (*theirs.contenders, *PEERS) and _is_whole(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return (row, asdict(theirs)) if whole else None

    return resumed(path, "comparison", asdict(task), row_of)


def _task_of(row: Row, task: Task) -> Task:
    """The task of a row. A setting that an older row lacks has the value that was used then."""
    said = {each.name: row[each.name] for each in fields(Task) if each.name in row}
    if said.get("drafters"):
        said["gamma"] = task.gamma  # a row has its own
    unsaid = {"draft_dtype": task.usual_draft_dtype}  # of rows that are task's
    return Task(**{**unsaid, **said})


def _is_whole(row: Row) -> bool:
    """Whether a row has all the fields that summaries need."""
    tokens, times = row["tokens"], (row["seconds"], row["time_to_first_token"], row["rounds"], row["weight_bytes"])
    counters, own = (row["proposed"], row["accepted"], row["memory_growth"]), row.get("ms_after_first")
    return (
        isinstance(row["prompt"], str)
        and isinstance(row["domain"], str)
        and (isinstance(tokens, list) and bool(tokens) and all(type(each) is int for each in tokens))
        and all(type(each) in (int, float) and each >= 0 for each in times)
        and row["seconds"] > 0
        and row["rounds"] > 0
        and all(each is None or type(each) is int for each in counters)
        and (own is None or type(own) in (int, float))
    )
