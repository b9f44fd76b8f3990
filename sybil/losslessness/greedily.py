"""Judges greedy decoding: are its tokens the target's likeliest, does it end where it should, and is it the same at
every width?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from sybil.losslessness import ending
from sybil.losslessness.evidence import greedy
from sybil.losslessness.faults import Fault, certain, listed
from sybil.losslessness.samples import Subject
from sybil.losslessness.trial import Trial, within
from sybil.losslessness.width import parting

PROBED = 64  # prompts that are probed for one token each
FOREIGN = 0.25  # the share of wrong probed tokens above which the decoder probably has another model

Path = tuple[int, tuple[int, ...]]
"""A prompt's number, and greedy tokens that are certainly the target's own."""


def foreign(trial: Trial) -> str:
    """Why the target is probably not the decoder's model; "" where it may be."""
    request = replace(trial.greedily, max_new_tokens=1)
    samples = trial.ask("probe", trial.prompts[:PROBED], request, trial.plan.seed)
    fit = [within(sample, request) for sample in samples if not sample.doubt and sample.tokens]
    first = trial.reference.of_each(partial(greedy, trial.reference), fit)
    wrong = [float(each.deficit[0]) for each in first if each.deficit[0] > trial.widest.of(each.size)[0]]
    if len(wrong) <= FOREIGN * len(first):
        return ""
    return (
        f"the decoder seems to follow another target, or not to be greedy when asked: {len(wrong)} of {len(first)} "
        f"first tokens are not this target's likeliest (median {np.median(wrong):.3g} logits below): give its own"
    )


def likeliest(trial: Trial) -> list[Path]:
    """Compares greedy tokens with the target's likeliest, and returns the paths on which stops can be tried."""
    prompts = trial.prompts[: max(trial.plan.greedy, trial.plan.stopping)]
    faults, ties, paths, tokens, rounded = list[Fault](), list[Fault](), list[Path](), 0, 0
    answers = trial.ask("greedy", prompts, trial.greedily, trial.plan.seed)
    trial.said = {n: within(sample, trial.greedily) for n, sample in enumerate(answers) if not sample.doubt}
    measured = trial.reference.of_each(partial(greedy, trial.reference), list(trial.said.values()))
    for number, found in zip(trial.said, measured, strict=True):
        sample = answers[number]
        tokens += len(found.deficit)
        bound, near_tie = trial.widest.of(found.size), trial.plan.near_tie.of(found.size)
        rounded += int(((found.deficit > near_tie) & (found.deficit <= bound)).sum())
        for index in np.flatnonzero(found.deficit > 0):
            deficit, gap = found.deficit[index], found.gap[index]
            told = f"{deficit:.3g} logits below the likeliest, top-2 gap {gap:.3g}"
            (faults if deficit > bound[index] else ties).append(Fault(f"prompt {number}, token {index}", told))
        unsure = np.flatnonzero((found.deficit > 0) | (found.gap <= bound))
        fit = int(unsure[0]) if len(unsure) else len(sample.tokens)  # tokens that are certainly the target's
        if trial.ends_well(sample, trial.greedily, f"prompt {number}, greedy") and fit > 1:
            paths.append((number, sample.tokens[:fit]))
    near = f"near-ties: {listed(ties)}" if ties else "no near-tie"
    holds = f"tokens are the target's likeliest; {near}"
    trial.found.checks.append(certain("greedy", faults, tokens, "of tokens", holds))
    if rounded:
        trial.found.rounding["tokens"] = (
            f"{rounded} of {tokens} greedy tokens stand further below the likeliest than the target's own rounding "
            "explains, and nearer than half precision does: does the decoder round? say how far (dtype, tolerance)"
        )
    return paths[: trial.plan.stopping]


def stops(trial: Trial, paths: Sequence[Path]) -> int:
    """Tries an end token, a limit and a stop string on each path. The decoder must give the path up to the stop, and no
    further token. Returns the number of trials."""
    choice, tokenizer = np.random.default_rng([trial.plan.seed, 2]), trial.reference.tokenizer
    takes = getattr(trial.subject, "takes", lambda request: True)
    trials = [
        (number, path, request)
        for number, path in paths
        for request in ending.inside(trial.prompts[number], path, trial.greedily, tokenizer, choice)
        if takes(request) and (trial.plan.stop_strings or not request.stop_strings)
    ]
    prompts, requests = [trial.prompts[number] for number, _, _ in trials], [request for _, _, request in trials]
    samples = trial.ask("stopping", prompts, requests, trial.plan.seed)
    for (number, path, request), sample in zip(trials, samples, strict=True):
        where = f"prompt {number}, {ending.in_words(request, tokenizer)}"
        if sample.doubt or not trial.ends_well(sample, request, where):
            continue
        if sample.tokens != path[: ending.end(path, request, tokenizer)]:
            trial.end_faults.append(Fault(where, "another greedy text than without that stop"))
    return len(trials)


def at_widths(trial: Trial, others: Mapping[str, Subject]) -> None:
    """Compares greedy texts at other widths with the known ones. others: the subjects, by what is changed."""
    numbers = list(trial.said)[: trial.plan.widths]
    prompts, total = [trial.prompts[number] for number in numbers], len(numbers) * len(others)
    faults, near, texts = list[Fault](), list[Fault](), 0
    for turn, (name, subject) in enumerate(others.items()):
        answers = trial.ask(
            "width", prompts, trial.greedily, trial.plan.seed, turn * len(numbers), total, (name, subject)
        )
        for number, sample in zip(numbers, answers, strict=True):
            if sample.doubt:
                continue
            texts += 1
            where = f"prompt {number}, {name}"
            parted = parting(trial.reference, trial.said[number], sample, where, trial.widest)
            if parted is not None:
                (near if parted[1] else faults).append(parted[0])
    same = f"greedy texts are the same at every width: {', '.join(others)}"
    holds = f"greedy texts part at near-ties alone: {listed(near)}" if near else same
    trial.found.checks.append(certain("width", faults, texts, "of texts", holds))
    if near:
        trial.found.rounding["width"] = (
            f"{len(near)} of {texts} greedy texts are not the same at another width, and rounding alone explains "
            f"it: they part where two tokens are as good as equally likely ({listed(near)})"
        )
