"""The stages of a distillation, from the data to the draft's folder. Each keeps its results on disk, so that a later
run can continue."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sybil.decoding import Decoder
from sybil.distilling import recipe, shards, student, teacher
from sybil.distilling.documents import Documents
from sybil.distilling.material import Material, Reading
from sybil.distilling.recipe import Recipe, TrainingPlan
from sybil.distilling.shards import Shard
from sybil.distilling.training import Course, Training, TrainingText
from sybil.errors import InvalidSetting
from sybil.measuring import files
from sybil.models.folders import Checkpoint

if TYPE_CHECKING:
    from transformers import MistralForCausalLM

ROWS = 16
"""Answers in a batch of answers, and windows in a batch of texts."""
NEW_TOKENS, PROMPT = 192, 512  # the most tokens of an answer, and of a prompt
TAUGHT = 0.5
"""The share of the budget in which the target is asked. The draft is trained in the rest, on some texts repeatedly."""
MOST_PLACES, PLACE_BYTES = 1 << 23, 100  # the most places at which the target is asked, and the bytes of each on disk
TRIED = 7  # steps that are timed before the training
WORK = "training"
Report = Callable[[str, int, int, str], None]
"""Called with what is being made, how many are done, of how many, and a note."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """A draft in its folder, and how it was made. known: how many of the target's tokens it knows. covered: the share
    of those tokens among all that the target says. taught: seconds that the target took. places: the number of places
    at which the target was asked. parameters: how many the draft has."""

    folder: Path
    recipe: Recipe
    plan: TrainingPlan
    documents: Documents
    course: Course
    known: int
    covered: float
    taught: float
    places: int
    parameters: int


class Distillation:
    """A run of the stages: the target, the data, and the recipe filled in for them."""

    def __init__(
        self, asked: Recipe, decoder: Decoder, checkpoint: Checkpoint, found: Documents, out: Path, report: Report
    ) -> None:
        """Raises InvalidSetting for a target without a tokenizer, and for data that is too little."""
        if decoder.tokenizer is None:
            raise InvalidSetting(f"{asked.target} has no tokenizer: choose a model that does")
        self.decoder, self.checkpoint, self.documents, self.out, self.report = decoder, checkpoint, found, out, report
        self.vocab_size, context = decoder.target.vocab_size, decoder.target.context
        layers, width = _sizes(checkpoint, decoder.target)
        self.recipe = replace(asked, data=found.digest, model=_fingerprint(checkpoint)).filled(
            layers, width, self.vocab_size, context
        )
        self.new_tokens = max(min(NEW_TOKENS, context // 2), 1)
        reading = Reading(decoder.tokenizer, decoder.chat_template, max(min(PROMPT, context - self.new_tokens - 1), 1))
        self.material = Material(found.training, reading, self.recipe.seed)
        self.held_out = Material(found.held_out, reading, self.recipe.seed)
        for name, each in (("data", self.material), ("what is held out of data", self.held_out)):
            if not each.prompts:
                raise InvalidSetting(f"{name} has {len(each.text)} tokens, which makes no prompt: give more text")
        self.windows = len(self.material.text) // self.recipe.window // ROWS  # in batches
        self.work = files.folder(out / WORK)
        recipe.keep(self.recipe, self.work / "recipe.json")

    def run(self) -> Distilled:
        """Run all stages, up to the finished folder. Raises InvalidSetting for data that teaches the draft nothing."""
        self.held = [self._answered("held", self.held_out, number, 2) for number in range(2)]
        plan = self._planned()
        found = [self._answered("answers", self.material, number, plan.answers) for number in range(plan.answers)]
        found += [self._read(number, plan.texts) for number in range(plan.texts)]
        said = shards.joined(found)
        known = student.commonest(self._counts(said), self.recipe.vocabulary, self.decoder.eos_token_ids)
        texts = [TrainingText.of(each, known, self.vocab_size) for each in (said, shards.joined(self.held))]
        if not all(bool(each.wanted.weights.any()) for each in texts):
            raise InvalidSetting("the target said nothing that the draft could learn: give other --data")
        plan = self._steps(plan, said, known, texts)
        training = self._training(known, texts, plan.steps or 1)
        training.run(self.work / "checkpoint.pt", self._tell(plan))
        return self._finish(plan, said, known, training)

    def _answered(self, name: str, material: Material, number: int, of: int) -> Shard:
        """A batch of the target's answers. Greedy and sampled batches alternate. Once all prompts have been answered in
        both ways, every further batch is sampled."""

        def make() -> Shard:
            numbers = range(number * ROWS, (number + 1) * ROWS)
            prompts = [material.prompt(each) for each in numbers]
            sampled = number % 2 == 1 or numbers.start >= 2 * material.prompts
            seed = self.recipe.seed + number
            return teacher.answers(self.decoder, prompts, self.new_tokens, sampled=sampled, seed=seed)

        return self._made(name, number, of, "answers of the target" if name == "answers" else "held-out answers", make)

    def _read(self, number: int, of: int) -> Shard:
        """The target's distributions over a batch of windows of the text."""

        def make() -> Shard:
            windows = self.material.windows(self.recipe.window, number * ROWS, ROWS)
            return teacher.texts(self.decoder.target, windows)

        return self._made("texts", number, of, "texts read by the target", make)

    def _made(self, name: str, number: int, of: int, what: str, make: Callable[[], Shard]) -> Shard:
        """The shard of an earlier run, or a new one, which is on disk before this returns."""
        path = self.work / f"{name}-{number:05}.npz"
        if path.exists():
            shard = shards.load(path, self.vocab_size)
        else:
            shard = make()
            shard.save(path)
        self.report(what, number + 1, of, f"{shard.asked / max(shard.seconds, 1e-9):.0f} tokens/s")
        return shard

    def _planned(self) -> TrainingPlan:
        """The plan of an earlier run; otherwise the recipe's number of batches, or as many as fit in the budget."""
        path = self.work / "plan.json"
        if (earlier := recipe.planned(path)) is not None:
            recipe.check_plan(earlier, self.recipe, self.out)
            return earlier
        answers = self._within_budget() if self.recipe.answers is None else self.recipe.answers
        plan = TrainingPlan(answers=answers, texts=self._texts(answers), steps=self.recipe.steps)
        recipe.keep_plan(plan, path)
        return plan

    def _texts(self, answers: int) -> int:
        """How many batches of texts go with so many of answers: half as many, or as many as the data has."""
        return min(self.windows, answers // 2)

    def _within_budget(self) -> int:
        """Makes batches until their share of the budget is spent or no room is left for them. Time of earlier runs
        counts too. Gives the number of batches of answers, at least two."""
        share, spent = 60 * self.recipe.budget * TAUGHT, sum(each.seconds for each in self.held)
        places = min(MOST_PLACES, shutil.disk_usage(self.work).free // (4 * PLACE_BYTES))
        number = 0
        while number < 2 or (spent < share and places > 0):
            expected = number + 1 + int((share - spent) * (number + len(self.held)) / max(spent, 1e-3))
            made = [self._answered("answers", self.material, number, max(expected, number + 1))]
            number += 1
            if self._texts(number) > self._texts(number - 1):
                made.append(self._read(self._texts(number) - 1, self._texts(max(expected, number))))
            spent += sum(each.seconds for each in made)
            places -= sum(map(len, made))
        return number

    def _counts(self, said: Shard) -> np.ndarray:
        """How often each token occurs in the shard and in the texts together: (vocab,)."""
        counts = np.bincount(said.tokens, minlength=self.vocab_size)
        return counts + np.bincount(self.material.text, minlength=self.vocab_size)

    def _steps(
        self, plan: TrainingPlan, said: Shard, known: np.ndarray | None, texts: Sequence[TrainingText]
    ) -> TrainingPlan:
        """The plan with its steps: as many as the rest of the budget has time for. A few steps are timed for that."""
        if plan.steps is not None:
            return plan
        trial, times = self._training(known, texts, 1000), []
        for _ in range(TRIED):
            began = time.monotonic()
            trial.step()
            times.append(time.monotonic() - began)
        each = sorted(times)[TRIED // 2]
        left = 60 * self.recipe.budget - said.seconds - sum(shard.seconds for shard in self.held)
        plan = replace(plan, steps=max(int(left / max(each, 1e-4)), 1))
        recipe.keep_plan(plan, self.work / "plan.json")
        return plan

    def _training(self, known: np.ndarray | None, texts: Sequence[TrainingText], steps: int) -> Training:
        theirs = student.embedding_of(self.checkpoint, self.decoder.target, known)
        embedding, context = student.reduced(theirs, self.recipe.width), self.decoder.target.context
        model = student.build(self.recipe, embedding, context, knows_all=known is None)
        text, held_out = texts
        model.to(self.decoder.target.device)
        return Training(model, text, held_out, proposed=len(embedding), window=self.recipe.window, steps=steps)

    def _tell(self, plan: TrainingPlan) -> Callable[[Course], None]:
        """A function that reports each step of a training."""

        def tell(course: Course) -> None:
            note = f"loss {course.loss:.2f}"
            if course.history:
                _, _, sampled, greedy = course.history[-1]
                note += f", accepted {greedy:.0%} greedy, {sampled:.0%} sampled"
            self.report("steps", course.step, plan.steps or 0, note)

        return tell

    def _finish(self, plan: TrainingPlan, said: Shard, known: np.ndarray | None, training: Training) -> Distilled:
        """Writes the draft's folder."""
        model: MistralForCausalLM = training.model
        assert self.decoder.tokenizer is not None
        student.save(model, self.decoder.tokenizer, known, self.decoder.eos_token_ids, self.out)
        answered = said.tokens
        covered = 1.0 if known is None else float(np.isin(answered, known).mean())
        taught = said.seconds + sum(each.seconds for each in self.held)
        return Distilled(
            folder=self.out,
            recipe=self.recipe,
            plan=plan,
            documents=self.documents,
            course=training.course,
            known=training.proposed,
            covered=covered,
            taught=taught,
            places=said.asked,
            parameters=sum(each.numel() for each in model.parameters()),
        )


def _sizes(checkpoint: Checkpoint, model: Any) -> tuple[int, int]:
    """The target's number of layers and its width."""
    if checkpoint.known is not None:
        return checkpoint.known[1].layers, checkpoint.known[1].width
    config = model.model.config.get_text_config()
    return int(config.num_hidden_layers), int(config.hidden_size)


def _fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of the target: of its config, and of the names and shapes of its weights."""
    stored = checkpoint.stored
    weights = None if stored is None else (sorted(stored.shapes.items()), stored.nbytes)
    said = json.dumps([checkpoint.config, weights], default=str, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()
