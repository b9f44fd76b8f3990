"""Judges a decoder in phases: greedy decoding, stops, other widths, and sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from sybil.errors import EmptyPrompt, InvalidSetting, PromptTooLong
from sybil.losslessness import advice, drawn, greedily, ruling
from sybil.losslessness.checks import drift
from sybil.losslessness.evidence import Reference
from sybil.losslessness.faults import certain
from sybil.losslessness.kept import Kept, digest, weights
from sybil.losslessness.report import Plan, Question, Report, Ruling
from sybil.losslessness.samples import Subject, widths
from sybil.losslessness.trial import Progress, Trial, silent, unheard

__all__ = ["Plan", "Report", "verify"]


def verify(
    subject: Subject,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    plan: Plan,
    progress: Progress = silent,
    advise: Callable[[str], None] = unheard,
    kept: Kept | None = None,
) -> Report:
    """Judge subject by its answers to prompts (token ids).

    progress: called with phase, done and total. advise: called before the decoder is asked anything, if the plan is too
    small for a PASS, with what to change. kept: where answers are kept and reused from.

    Each question gets a verdict. FAIL: there is a certain fault, or one that a lossless decoder shows by chance with
    probability alpha at most. INCONCLUSIVE: the target seems not to be the decoder's, answers are in doubt, or tokens
    are too few. PASS: no fault was found in what was checked. ruling.whole() makes the whole verdict of these. Raises
    the errors of sybil.errors where there is no verdict, for example NotJudgeable."""
    _refuse(reference, prompts, plan)
    told = [tuple(prompt) for prompt in prompts]
    if kept is not None:
        kept.begin(_settings(subject, reference, told, plan), reference.vocab_size)
        if kept.count:
            advise(f"going on with {kept.count} answers of {kept.path}")
    too_small = advice.before(reference, told, plan)
    if too_small:
        advise(too_small)
    return _report(Trial(subject, reference, told, plan, progress, kept or Kept()))


def _settings(
    subject: Subject, reference: Reference, prompts: Sequence[tuple[int, ...]], plan: Plan
) -> dict[str, object]:
    """The settings that answers depend on."""
    return {
        "decoder": subject.name,
        "weights of the target": weights(reference.model),
        "prompts": digest(prompts),
        "seed": plan.seed,
        **asdict(plan.request),
    }


def _refuse(reference: Reference, prompts: Sequence[Sequence[int]], plan: Plan) -> None:
    if not prompts:
        raise InvalidSetting("there are no prompts: give at least one")
    if plan.request.stop_strings and reference.tokenizer is None:
        raise InvalidSetting("stop strings can't be looked for without the target's tokenizer: give it, or none")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise EmptyPrompt(f"prompt {number} has no token: there is nothing to condition on")
        if len(prompt) + plan.request.max_new_tokens > reference.context:
            raise PromptTooLong(
                f"prompt {number} has {len(prompt)} tokens, which with {plan.request.max_new_tokens} new ones exceed "
                f"the target's context of {reference.context}: shorten the prompt, or ask for fewer tokens"
            )
        if not 0 <= min(prompt) <= max(prompt) < reference.vocab_size:
            raise InvalidSetting(
                f"prompt {number} has token ids outside the target's vocabulary of {reference.vocab_size}: encode it "
                "with the target's tokenizer"
            )


def _report(trial: Trial) -> Report:
    plan, notes = trial.plan, list[str]()  # notes say what was left out
    told = tuple(getattr(trial.subject, "notes", ()))
    asked: list[Question] = ["distribution"] if plan.repeats else []
    if plan.greedy or plan.stopping:
        asked += ["tokens", "endings"]
        why = greedily.foreign(trial)
        if why:
            rulings = tuple(Ruling(question, "INCONCLUSIVE", (why,)) for question in asked)
            return Report(trial.subject.name, "INCONCLUSIVE", rulings, (why, *told), (), plan)
        paths = greedily.likeliest(trial)
        if not greedily.stops(trial, paths):
            notes.append("stops were not tried" + (": no greedy sequence was fit for it" if plan.stopping else ""))
        elif not plan.stop_strings:
            notes.append("stop strings were left out")
        others = widths(trial.subject) if plan.widths else {}
        if others:
            asked.append("width")
            greedily.at_widths(trial, others)
        else:
            fixed = ": the decoder doesn't let one choose how many tokens it verifies at once" if plan.widths else ""
            notes.append(f"other widths were not tried{fixed}")
    else:
        asked.append("endings")
        notes.append("without greedy decoding nothing confirms that the target is the decoder's, nor its stops")
    sequences, checks = drawn.draws(trial) if plan.repeats else (0, [])
    if not plan.repeats:
        notes.append("sampling was left out")
    holds = "sequences end where plain decoding does"
    trial.found.checks += [certain("stopping", trial.end_faults, trial.ends, "of sequences", holds), *checks]
    rulings, evidence = ruling.rule(trial.found, plan, asked), trial.found.evidence
    return Report(
        subject=trial.subject.name,
        verdict=ruling.whole(rulings),
        rulings=rulings,
        reasons=(*ruling.reasons(rulings), *notes, *told),
        checks=tuple(trial.found.checks),
        plan=plan,
        drift=drift(evidence) if len(evidence) else None,
        tokens=len(evidence) + evidence.near + len(evidence.impossible),
        sequences=sequences,
        evidence=evidence if len(evidence) else None,
        speculation=trial.seen.of(trial.subject),
    )
