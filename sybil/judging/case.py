"""All that a verdict on a decoder needs: its target loaded, its prompts encoded and its plan complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from sybil.agreement import FLOAT32, HALF, Tolerance
from sybil.errors import VocabularyMismatch
from sybil.fit import check_sizes, differing_tokens, logits_of
from sybil.judging.decoders import ASSISTED, Bench, Judged, rounds_as_the_target
from sybil.judging.original import Original
from sybil.judging.wording import Ids, encoded
from sybil.losslessness import control as controls
from sybil.losslessness.evidence import Reference
from sybil.losslessness.judge import verify
from sybil.losslessness.kept import Kept
from sybil.losslessness.report import Plan, Report
from sybil.losslessness.samples import Subject
from sybil.losslessness.trial import Progress
from sybil.measuring.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Tried:
    """A decoder and its plan. The plan holds how far the decoder's own rounding may move a logit."""

    subject: Subject
    plan: Plan


@dataclass(frozen=True, slots=True)
class JudgedCase:
    """A decoder to be judged. control: the decoder beside it, if any. reference: the target. prompts: token ids."""

    decoder: Tried
    control: Tried | None
    reference: Reference
    prompts: list[list[int]]

    @classmethod
    def of(
        cls,
        bench: Bench,
        judged: Judged,
        prompts: Sequence[Prompt | Ids],
        plan: Plan,
        tolerance: Tolerance | None = None,
        control: Judged | None = None,
    ) -> JudgedCase:
        """The case of a decoder. tolerance: how far the decoder's own rounding may move a logit; None: as far as the
        rounding of the target's dtype does. Raises the errors of sybil.errors."""
        subjects = [_fit(bench.subject(judged), plan)]
        if control is not None:
            subjects.append(_fit(bench.subject(control, plain=True), plan))
        ids = encoded(prompts, bench.target, subjects)
        draft, no_draft = _helper(bench, judged)
        reference = Reference(bench.target.reference, bench.target.tokenizer, draft, no_draft)
        tried = [
            Tried(subject, _whole(plan, bench, each, tolerance))
            for subject, each in zip(subjects, (judged, control), strict=False)
        ]
        return cls(tried[0], tried[1] if len(tried) > 1 else None, reference, ids)

    def judged(self, progress: Progress, advise: Callable[[str], None], kept: Kept | None = None) -> Report:
        """The report on the decoder, which includes the control's. progress, advise: as judge.verify takes them. kept:
        where the decoder's answers are kept."""
        tried = self.decoder
        report = verify(tried.subject, self.reference, self.prompts, tried.plan, progress, advise, kept or Kept())
        if self.control is None:
            return report

        def beside(phase: str, done: int, total: int) -> None:
            progress(f"control, {phase}", done, total)

        plain = verify(self.control.subject, self.reference, self.prompts, self.control.plan, beside)
        return replace(report, control=controls.beside(report, plain))


def _fit(subject: Subject, plan: Plan) -> Subject:
    """The subject itself. Raises InvalidSetting where the plan can't be put to it."""
    check: Callable[[Plan], None] | None = getattr(subject, "check", None)
    if check is not None:
        check(plan)
    return subject


def _whole(plan: Plan, bench: Bench, judged: Judged | None, tolerance: Tolerance | None) -> Plan:
    """The plan with the end tokens, and with how far rounding may move a logit."""
    is_known = tolerance is not None or bench.models.dtype is not None
    is_known = is_known or (judged is not None and rounds_as_the_target(judged))
    return replace(
        plan,
        request=replace(plan.request, eos_token_ids=bench.end_tokens),
        near_tie=tolerance or HALF.get(bench.target.dtype, FLOAT32),
        doubtful=None if is_known else HALF[torch.bfloat16],
    )


def _helper(bench: Bench, judged: Judged) -> tuple[PreTrainedModel | None, str]:
    """The draft model that the judge compares the decoder's tokens with; or None, and the reason. Raises
    VocabularyMismatch."""
    target, draft = bench.target, bench.draft
    if bench.models.draft is None:
        return None, "no draft is named: add --draft, where the decoder's is known"
    if draft is None:
        return None, f"draft {bench.models.draft} is no model of its own"
    differing = _differing(target, draft)
    if differing and judged == ASSISTED:
        raise VocabularyMismatch(
            f"draft {draft.name} has other tokens than target {target.name} ({differing} entries of their vocabularies "
            "differ), and decoder assisted is asked with one tokenizer: choose a draft with the target's, or decoder "
            "usd"
        )
    if differing:
        why = f"{differing} entries of their vocabularies differ"
        return None, f"draft {draft.name} has other tokens than the target: {why}"
    helper = draft.reference
    if target.tokenizer is None or draft.tokenizer is None:
        check_sizes((target.name, draft.name), (logits_of(target.reference), logits_of(helper)))
    return helper, ""


def _differing(target: Original, draft: Original) -> int:
    one, other = target.tokenizer, draft.tokenizer
    return differing_tokens(one, other) if one is not None and other is not None else 0
