"""The draft's training on the target's distributions. A training that was cut off can be continued."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sybil.distilling.loss import Wanted, divergence, estimates
from sybil.distilling.optimizer import MuonWithAdam
from sybil.distilling.shards import Shard
from sybil.errors import NumericalFailure, ResultsMismatch, told
from sybil.measuring import files
from sybil.transfer import count_to, integers

if TYPE_CHECKING:
    from transformers import MistralForCausalLM

STEP_TOKENS = 2048
"""Tokens of a step of the optimiser. For a small draft more steps are worth more than larger steps."""
WARM_UP, CONSTANT = 0.02, 0.3  # shares of the steps: the rate rises up to the first, and falls after the second
EVALUATIONS = 20  # estimates of the acceptance rate during a training
EVALUATED = 64  # the most windows of an estimate
CHECKPOINT_SECONDS = 60.0
GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class TrainingText:
    """The target's output in the draft's tokens. tokens: (n,). wanted: the target's distribution at each place (see
    Wanted). The weight is 0 where the target wasn't asked, or where the draft knows none of its likeliest tokens."""

    tokens: Tensor
    wanted: Wanted

    @classmethod
    def of(cls, shard: Shard, known: np.ndarray | None, vocab_size: int) -> TrainingText:
        """The text of a shard. known: the target's tokens that the draft knows, None: all. vocab_size: the target's."""
        count = vocab_size if known is None else len(known)
        own = np.full(vocab_size, count, np.int32)
        own[np.arange(vocab_size) if known is None else known] = np.arange(count, dtype=np.int32)
        top, probs = own[shard.top], np.exp(shard.log_probs.astype(np.float32))
        is_known = top < count
        share = np.where(shard.log_probs[:, 0] > -np.inf, 1 - np.where(is_known, 0, probs).sum(1), 0).clip(0, 1)
        probs = np.where(is_known, probs, 0) / np.maximum(share, 1e-3)[:, None]
        share = np.where(probs.any(1), share, 0)
        probs /= np.maximum(probs.sum(1, keepdims=True), 1)  # float16 rounds, so the sum may exceed 1
        wanted = (np.where(is_known, top, 0), probs.astype(np.float32), share.astype(np.float32))
        return cls(torch.from_numpy(own[shard.tokens]), Wanted(*map(torch.from_numpy, wanted)))

    def windows(self, starts: list[int], length: int, device: torch.device) -> tuple[Tensor, Tensor, Wanted]:
        """Windows of the text on the device: their tokens (windows, length), a mask of the places with a weight above 0
        (windows, length), and the target's distributions at these places."""
        rest = (self.wanted.probs, self.wanted.weights)
        places = integers(starts)[:, None] + count_to(length)
        asked = self.wanted.weights[places] > 0
        at = places[asked]
        wanted = Wanted(self.wanted.top[at].long().to(device), *(each[at].to(device) for each in rest))
        return self.tokens[places].long().to(device), asked.to(device), wanted


@dataclass(slots=True)
class Course:
    """How far a training has come. step: steps done. seconds: time in them. tokens: places learned from. loss: that of
    the last step, in nats a place. history: rows of (step, mean loss since the row before, sampled acceptance rate,
    greedy acceptance rate); the rates are estimates on held-out text."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss: float = 0.0
    history: list[tuple[int, float, float, float]] = field(default_factory=list)


class Training:
    """A draft, its optimiser and its course.

    A step depends only on the weights, the optimiser's state and the step's number. The windows' places follow a
    golden-ratio sequence, which covers the text evenly, and nothing is random. So on the same machine, with as many
    threads, a training that continues from a checkpoint ends with the same bits as one that was never cut off."""

    def __init__(
        self,
        model: MistralForCausalLM,
        text: TrainingText,
        held_out: TrainingText,
        *,
        proposed: int,
        window: int,
        steps: int,
    ) -> None:
        """proposed: the number of tokens that the draft can propose, which are the first of its vocabulary."""
        self.model, self.text, self.held_out, self.steps = model, text, held_out, steps
        self.proposed, self.window = proposed, min(window, len(text.tokens), len(held_out.tokens))
        self.optimizer = MuonWithAdam(model, blocks=".layers.", transposed=False)
        self.course, self._losses = Course(), (0.0, 0)

    def run(self, checkpoint: Path, report: Callable[[Course], None]) -> None:
        """Train up to the last step, from the checkpoint if there is one. report is called after each step. Raises
        ResultsMismatch for a checkpoint of another training, NumericalFailure for a loss that isn't finite."""
        if checkpoint.exists():
            self._resume(checkpoint)
        saved, course = time.monotonic(), self.course
        while course.step < self.steps:
            self.step()
            report(course)
            if time.monotonic() - saved >= CHECKPOINT_SECONDS or course.step == self.steps:
                self.save(checkpoint)
                saved = time.monotonic()

    def step(self) -> None:
        """One step of the optimiser, and an estimate of the acceptance rate where one is due."""
        began, course = time.monotonic(), self.course
        count = max(STEP_TOKENS // self.window, 1)
        places = len(self.text.tokens) - self.window + 1
        numbers = range(course.step * count, (course.step + 1) * count)
        starts = [int(number * GOLDEN % 1.0 * places) for number in numbers]
        tokens, asked, wanted = self.text.windows(starts, self.window, self.model.device)
        if len(wanted.weights):
            loss = divergence(self._hidden(tokens, asked), self._head(), wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            share = course.step / self.steps
            rise, fall = (share + 1e-3) / WARM_UP, (1 - share) / (1 - CONSTANT)
            self.optimizer.step(min(1.0, rise) * min(1.0, fall))
            if not math.isfinite(loss.item()):
                raise NumericalFailure(f"the loss is {loss.item()} at step {course.step}: lower --width or --layers")
            course.loss, course.tokens = loss.item(), course.tokens + len(wanted.weights)
            self._losses = (self._losses[0] + course.loss, self._losses[1] + 1)
        course.step += 1
        if course.step % max(self.steps // EVALUATIONS, 1) == 0 or course.step == self.steps:
            total, number = self._losses
            course.history.append((course.step, total / max(number, 1), *self.acceptance()))
            self._losses = (0.0, 0)
        course.seconds += time.monotonic() - began

    @torch.no_grad()
    def acceptance(self) -> tuple[float, float]:
        """The estimated acceptance rates (sampled, greedy) on the held-out text: see loss.estimates."""
        whole, window = len(self.held_out.tokens), self.window
        starts = list(range(0, whole - window + 1, window))[:EVALUATED]
        found, places = [0.0, 0.0], 0
        for first in range(0, len(starts), 8):
            tokens, asked, wanted = self.held_out.windows(starts[first : first + 8], window, self.model.device)
            count = len(wanted.weights)
            each = estimates(self._hidden(tokens, asked), self._head(), wanted)
            found, places = [total + count * part for total, part in zip(found, each, strict=True)], places + count
        return found[0] / max(places, 1), found[1] / max(places, 1)

    def _hidden(self, tokens: Tensor, asked: Tensor) -> Tensor:
        """The draft's last hidden states at the masked places, (n, width)."""
        hidden: Tensor = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state[asked]
        return hidden

    def _head(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight[: self.proposed]

    def save(self, checkpoint: Path) -> None:
        """Write all that the next step depends on. A write that is cut off leaves no partial file."""
        course, written = self.course, io.BytesIO()
        state = {name: getattr(course, name) for name in ("step", "seconds", "tokens", "loss", "history")}
        weights = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, **weights, "losses": self._losses, "steps": self.steps}, written)
        files.replace(checkpoint, written.getvalue())

    def _resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint. Raises ResultsMismatch for a file that is no checkpoint of this training."""
        try:
            state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
            if state["steps"] != self.steps:
                raise ValueError(f"it is of {state['steps']} steps, and {self.steps} are planned")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            names = ("step", "seconds", "tokens", "loss", "history")
            self.course, self._losses = Course(**{name: state[name] for name in names}), tuple(state["losses"])
        except Exception as error:  # torch's reader may raise anything for a file that is no checkpoint
            raise ResultsMismatch(
                f"{checkpoint} can't be gone on with ({told(error)}): delete it, and the training begins anew"
            ) from None
