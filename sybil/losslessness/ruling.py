"""Makes verdicts from checks and doubts: one for each question, and the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sybil.losslessness.advice import Unsure, remedy, tokens_needed
from sybil.losslessness.chisquare import Check, is_shown
from sybil.losslessness.evidence import NOTHING, Evidence
from sybil.losslessness.faults import counted
from sybil.losslessness.report import Plan, Question, Ruling, Verdict

ABOUT: Mapping[str, Question] = {"greedy": "tokens", "stopping": "endings", "width": "width"}
"""The question that each check is about. A check that isn't listed is about the distribution."""
WORST_FIRST: tuple[Verdict, ...] = ("FAIL", "INCONCLUSIVE", "PASS")


@dataclass(slots=True)
class Findings:
    """All that was found. doubts: for each question, the number of answers with each doubt. rounding: for each
    question, what only rounding leaves open. evidence: of the sampled tokens."""

    checks: list[Check] = field(default_factory=list)
    doubts: dict[Question, Counter[str]] = field(default_factory=dict)
    rounding: dict[Question, str] = field(default_factory=dict)
    evidence: Evidence = NOTHING

    def doubt(self, why: str, questions: Iterable[Question], count: int = 1) -> None:
        """Add count answers with a doubt, which leave these questions open. why: the doubt."""
        for question in questions:
            self.doubts.setdefault(question, Counter())[why] += count


def rule(found: Findings, plan: Plan, asked: Collection[Question]) -> tuple[Ruling, ...]:
    """A ruling on each question that was asked."""
    return tuple(_on(question, found, plan) for question in asked)


def whole(rulings: Sequence[Ruling]) -> Verdict:
    """FAIL where one ruling is FAIL, else INCONCLUSIVE where one is, else PASS.

    A ruling that only rounding leaves open doesn't count where the distribution or the tokens pass, because rounding
    harms no text, and is no reason to doubt the other measurements."""
    if any(ruling.verdict == "FAIL" for ruling in rulings):
        return "FAIL"
    clean = any(ruling.verdict == "PASS" and ruling.question in ("distribution", "tokens") for ruling in rulings)
    weigh = [each for each in rulings if each.verdict == "INCONCLUSIVE" and not (clean and each.by_rounding)]
    return "INCONCLUSIVE" if weigh else "PASS"


def reasons(rulings: Sequence[Ruling]) -> tuple[str, ...]:
    """The reasons of all rulings, the worst first, each once."""
    ordered = sorted(rulings, key=lambda ruling: WORST_FIRST.index(ruling.verdict))
    return tuple(dict.fromkeys(reason for ruling in ordered for reason in ruling.reasons))


def _on(question: Question, found: Findings, plan: Plan) -> Ruling:
    checks = [check for check in found.checks if ABOUT.get(check.name, "distribution") == question]
    failed = [check for check in checks if check.failed]
    if failed:
        return Ruling(question, "FAIL", tuple(_accusations(failed)))
    unsettled = counted(found.doubts.get(question, {}))
    if not unsettled and question == "distribution":
        unsettled = _too_few(checks, found.evidence, plan)
    if not unsettled and not any(check.made for check in checks):
        unsettled = [f"{check.name} was {check.detail}" for check in checks] or ["no answer was fit to be looked at"]
    rounding = found.rounding.get(question)
    if unsettled or rounding:
        told = (*unsettled, *([rounding] if rounding else []))
        return Ruling(question, "INCONCLUSIVE", told, by_rounding=not unsettled)
    return Ruling(question, "PASS", (_seen(question, [check for check in checks if check.made]),))


def _accusations(failed: Sequence[Check]) -> list[str]:
    told = [_accusation(check) for check in failed if not check.echo]
    echoes = ", ".join(check.name for check in failed if check.echo)
    if echoes:
        told.append(f"{echoes}: only echo uniform: as unevenly as u is spread, such tokens know nothing of each other")
    return told


def _accusation(check: Check) -> str:
    if check.adjusted is None:
        faults = "fault" if check.statistic == 1 else "faults"
        return f"{check.name}: {check.statistic:.0f} {faults} in {check.count}: {check.detail}"
    effect = f"effect {check.effect:.3g} {check.unit}"
    return (
        f"{check.name}: {is_shown(check.adjusted)} after Holm, {effect}, {check.count} tokens or pairs ({check.detail})"
    )


def _too_few(checks: Sequence[Check], evidence: Evidence, plan: Plan) -> list[str]:
    """Lines that say which resolution was not reached, and how many tokens would be enough."""
    bounds = {"quality": plan.resolution, "uniform": plan.uniformity}
    blind = [check for check in checks if check.name in bounds and check.detectable > bounds[check.name]]
    if not blind:
        return []
    told = [_blind(check, bounds[check.name]) for check in blind]
    if len(evidence):
        needed = tokens_needed(Unsure.of(evidence), plan)
        told.append(f"about {needed} tokens would do: {remedy(needed, len(evidence), plan)}")
    return told


def _blind(check: Check, bound: float) -> str:
    if not check.made:
        return f"too few tokens ({check.count}): {check.name} was {check.detail}"
    return (
        f"too few tokens ({check.count}): {check.name} would show {check.detectable:.3g} {check.unit} at the least, "
        f"where {bound:g} is asked for"
    )


def _seen(question: Question, made: Sequence[Check]) -> str:
    """What each check that was made could have detected, for the reasons of a PASS."""
    if question == "distribution":
        effects = ", ".join(f"{check.name} {check.detectable:.2g} {check.unit}" for check in made)
        return f"would have been seen, nine times in ten: {effects}"
    (check,) = made
    return f"{check.count} {check.detail}; faults in {check.detectable:.2g} {check.unit} would have been seen"
