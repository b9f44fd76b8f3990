"""One verdict a question: distribution, tokens, endings and width, and what the whole makes of them.

Everything is seeded. Null hypothesis wherever p-values are looked at: the tokens are the target's own draws. The
p-values of `alone` are compared with the uniform distribution by Kolmogorov and Smirnov's test at 1e-9 a check; with
200 values it sees, with power 0.9, distributions 0.28 apart, with 24 values 0.75 apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from test_losslessness import CHAIN, DRAFT, END, MANY, PLAN, PROMPTS, REQUEST, Drawing, Speculating, Tabled, cut, judge
from tiny import letters
from tokenizers import AddedToken

from sybil.agreement import FLOAT32, HALF, Q8_ACTIVATIONS, TOLERANCES, Tolerance, tolerance_of
from sybil.errors import InvalidSetting
from sybil.losslessness import advice, checks, ending
from sybil.losslessness.chisquare import is_shown, noncentrality, shown
from sybil.losslessness.evidence import Evidence
from sybil.losslessness.faults import Fault, counted, listed
from sybil.losslessness.judge import verify
from sybil.losslessness.report import Report, Ruling, Verdict
from sybil.losslessness.ruling import Findings, rule, whole
from sybil.losslessness.samples import Request, Sample, Subject

GREEDY = replace(PLAN, repeats=0, greedy=6, stopping=2)
HALF_PRECISION = HALF[torch.bfloat16]


class Near(Tabled):
    """A target whose second token stands `behind` logits behind the first."""

    behind = 0.1

    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        rows = super().logits(prompt, tokens)
        best = rows.topk(2, dim=-1)
        return rows.scatter(-1, best.indices[:, 1:], best.values[:, :1] - self.behind)


class Runner(Drawing):
    """Draws as it should, and greedily says the second likeliest token in one place of every text."""

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        for sample in super().sample(prompts, request, seed):
            if request.sampling.greedy and len(sample.tokens) > 1:
                row = Near(CHAIN).logits(sample.prompt, sample.tokens)[-1]
                sample = replace(sample, tokens=(*sample.tokens[:-1], int(row.topk(2).indices[1])))
            yield sample


def verdicts(report: Report) -> dict[str, Verdict]:
    return dict(report.verdicts)


# what follows from what


def ruled(question: str, verdict: Verdict, by_rounding: bool = False) -> Ruling:
    return Ruling(question, verdict, (), by_rounding)


@pytest.mark.parametrize(
    ("rulings", "wanted"),
    [
        ([ruled("tokens", "PASS"), ruled("endings", "PASS")], "PASS"),
        ([ruled("distribution", "PASS"), ruled("tokens", "FAIL")], "FAIL"),
        ([ruled("distribution", "INCONCLUSIVE"), ruled("endings", "FAIL")], "FAIL"),
        ([ruled("distribution", "PASS"), ruled("endings", "INCONCLUSIVE")], "INCONCLUSIVE"),
        ([ruled("distribution", "PASS"), ruled("tokens", "INCONCLUSIVE")], "INCONCLUSIVE"),
        ([ruled("distribution", "PASS"), ruled("tokens", "INCONCLUSIVE", True)], "PASS"),
        ([ruled("distribution", "INCONCLUSIVE"), ruled("tokens", "INCONCLUSIVE", True)], "INCONCLUSIVE"),
        ([ruled("tokens", "INCONCLUSIVE", True), ruled("endings", "PASS")], "INCONCLUSIVE"),
        ([ruled("tokens", "PASS"), ruled("width", "INCONCLUSIVE", True)], "PASS"),
        ([ruled("distribution", "PASS"), ruled("width", "FAIL")], "FAIL"),
    ],
)
def test_the_whole_follows_from_its_parts(rulings: list[Ruling], wanted: Verdict) -> None:
    assert whole(rulings) == wanted


def test_every_question_has_a_verdict_of_its_own() -> None:
    assert verdicts(judge(Speculating())) == {"distribution": "PASS", "tokens": "PASS", "endings": "PASS"}
    cold = judge(Drawing(warp=lambda probs, step: probs**1.6), MANY)
    assert verdicts(cold) == {"distribution": "FAIL", "tokens": "PASS", "endings": "PASS"}
    deaf = judge(Drawing(end=lambda tokens, request: cut(tokens, replace(request, stop_strings=()))), GREEDY)
    assert verdicts(deaf) == {"tokens": "PASS", "endings": "FAIL"}
    assert cold.as_dict()["verdicts"] == verdicts(cold)


def test_near_ties_do_not_veto_a_clean_verdict_on_sampling() -> None:
    """The decoder's precision is unknown, its greedy tokens leave the likeliest by 0.1 logits: that is told of the
    tokens alone, and sampling is judged."""
    report = verify(Mixed(), Near(CHAIN), PROMPTS, replace(PLAN, doubtful=HALF_PRECISION))
    assert verdicts(report) == {"distribution": "PASS", "tokens": "INCONCLUSIVE", "endings": "PASS"}
    assert report.verdict == "PASS"
    (tokens,) = (ruling for ruling in report.rulings if ruling.question == "tokens")
    assert tokens.reasons[0].startswith("3 of ")
    assert "greedy tokens" in tokens.reasons[0]
    assert "tolerance" in tokens.reasons[0]


class Mixed(Runner):
    """Draws from the target that Near is."""

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        if request.sampling.greedy:
            yield from super().sample(prompts, request, seed)
            return
        rng = np.random.default_rng(seed)
        for prompt in prompts:
            tokens = list[int]()
            while not tokens or cut(tokens, request) == len(tokens) < request.max_new_tokens:
                if tokens and tokens[-1] in request.eos_token_ids:
                    break
                row = Near(CHAIN).logits(prompt, [*tokens, 0])[-1]
                probs = (row / request.temperature).softmax(-1).numpy()
                tokens.append(int(rng.choice(len(probs), p=probs)))
            yield Sample(tuple(prompt), tuple(tokens))


# tolerance


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        ({}, "FAIL"),
        ({"near_tie": Tolerance(0.05)}, "FAIL"),
        ({"near_tie": Tolerance(0.2)}, "PASS"),
        ({"near_tie": Q8_ACTIVATIONS}, "PASS"),
        ({"doubtful": HALF_PRECISION}, "INCONCLUSIVE"),
    ],
)
def test_rounding_is_stated_apart_from_the_target_s_storage(stated: dict[str, Tolerance], wanted: Verdict) -> None:
    report = verify(Runner(), Near(CHAIN), PROMPTS, replace(GREEDY, stopping=0, **stated))
    assert report.verdicts["tokens"] == wanted
    if wanted == "PASS":
        assert "near-ties" in report.checks[0].detail


def test_a_tolerance_by_name_or_by_number() -> None:
    assert tolerance_of("q8 activations") is Q8_ACTIVATIONS
    assert tolerance_of(" Float32 ") is FLOAT32
    assert tolerance_of("0.25") == Tolerance(0.25)
    for wrong in ("-1", "0", "nan", "inf", "q9", ""):
        with pytest.raises(InvalidSetting, match="q8 activations") as error:
            tolerance_of(wrong)
        assert repr(wrong) in str(error.value)
    assert {tolerance_of(name) for name in TOLERANCES} == set(TOLERANCES.values())


# width


@dataclass
class Wide:
    """A decoder whose texts at two other widths are what `changed` makes of them."""

    changed: Callable[[Sample, Request], Sample]
    name: str = "wide"

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        return Drawing().sample(prompts, request, seed)

    def widths(self) -> Mapping[str, Subject]:
        return {"gamma 1": Drawing(), "gamma 8": Changed(self.changed)}


@dataclass
class Changed:
    changed: Callable[[Sample, Request], Sample]
    name: str = "changed"

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        for sample in Drawing().sample(prompts, request, seed):
            yield self.changed(sample, request)


def second_best(sample: Sample, request: Request) -> Sample:
    row = Tabled(CHAIN).logits(sample.prompt, sample.tokens)[-1]
    return replace(sample, tokens=(*sample.tokens[:-1], int(row.topk(2).indices[1])))


def at_width(changed: Callable[[Sample, Request], Sample], reference: Tabled | None = None, **stated: object) -> Report:
    return verify(Wide(changed), reference or Tabled(CHAIN), PROMPTS, replace(GREEDY, **stated))


def test_the_same_tokens_at_every_width_pass() -> None:
    report = at_width(lambda sample, request: sample)
    assert verdicts(report) == {"tokens": "PASS", "endings": "PASS", "width": "PASS"}
    (width,) = (check for check in report.checks if check.name == "width")
    assert width.count == 8  # four prompts, twice
    assert "gamma 1, gamma 8" in width.detail


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (second_best, "logits below the likeliest"),
        (lambda sample, request: replace(sample, tokens=sample.tokens[:-1]), "tokens where it says"),
        (lambda sample, request: replace(sample, tokens=(*sample.tokens, 0)), "tokens where it says"),
    ],
    ids=["another token", "one too few", "one too many"],
)
def test_a_text_that_depends_on_the_width_fails(changed: Callable[[Sample, Request], Sample], told: str) -> None:
    report = at_width(changed)
    assert verdicts(report) == {"tokens": "PASS", "endings": "PASS", "width": "FAIL"}
    assert report.verdict == "FAIL"
    assert "gamma 8" in report.reasons[0]
    assert "gamma 1" not in report.reasons[0]
    assert told in report.reasons[0]


def test_a_text_that_parts_at_a_near_tie_is_rounding() -> None:
    """Told, and no PASS of the width; nothing else is said of it."""
    report = at_width(second_best, Near(CHAIN), near_tie=HALF_PRECISION)
    assert verdicts(report) == {"tokens": "PASS", "endings": "PASS", "width": "INCONCLUSIVE"}
    assert report.verdict == "PASS"
    assert report.reasons[0].startswith("4 of 8 greedy texts are not the same")


def test_widths_that_are_not_tried_are_told() -> None:
    assert any("doesn't let one choose" in note for note in judge(Drawing(), GREEDY).reasons)
    left_out = at_width(second_best, widths=0)
    assert "width" not in left_out.verdicts
    assert "other widths were not tried" in left_out.reasons
    doubtful = at_width(lambda sample, request: replace(sample, doubt="read from text"))
    assert doubtful.verdicts["width"] == doubtful.verdict == "INCONCLUSIVE"
    assert "4 answers are in doubt: read from text" in doubtful.reasons


# endings


def named_letters():
    """The chain's letters, of which the last is a mark: the end of a turn."""
    tokenizer = letters(END)
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    assert tokenizer.token_to_id("<end>") == END
    return tokenizer


def test_an_end_at_a_special_token_is_a_doubt_and_named() -> None:
    """The decoder knows of an end token that the target's files don't tell."""

    def at_its_own(tokens: list[int], request: Request) -> int:
        return cut(tokens, replace(request, eos_token_ids=(*request.eos_token_ids, END)))

    plan = replace(PLAN, request=replace(REQUEST, eos_token_ids=()), greedy=12)
    reference = Tabled(CHAIN, DRAFT)
    reference.tokenizer = named_letters()
    report = verify(Drawing(end=at_its_own), reference, PROMPTS, plan)
    assert verdicts(report) == {"distribution": "PASS", "tokens": "PASS", "endings": "INCONCLUSIVE"}
    (told,) = (reason for reason in report.reasons if "in doubt" in reason)
    assert "the special token '<end>' (7)" in told
    named = replace(plan, request=REQUEST)  # as --eos does
    assert verify(Drawing(end=at_its_own), reference, PROMPTS, named).verdicts["endings"] == "PASS"
    reference.tokenizer = letters(8)  # to which token 7 is a letter like any other
    assert verify(Drawing(end=at_its_own), reference, PROMPTS, plan).verdicts["endings"] == "FAIL"


def test_an_end_token_that_is_passed_over_is_named() -> None:
    request, tokenizer = replace(REQUEST, eos_token_ids=(END,)), named_letters()
    assert (
        ending.judged((1, END, 2), request, tokenizer).fault == "goes on for 1 tokens after its end token '<end>' (7)"
    )
    assert ending.judged((1, END, 2), request, None).fault == "goes on for 1 tokens after its end token 7"
    assert ending.judged((1, END), request, tokenizer) == ending.End()
    assert ending.judged((1, 2), request, tokenizer).fault.startswith("ends after 2 of 24 tokens")


def test_end_tokens_by_id_and_text() -> None:
    tokenizer = named_letters()
    assert ending.end_tokens(["<end>", "2", "a"], tokenizer) == (1, 2, END)
    for wrong in ("8", "<stop>", "99999999999", "", "²"):
        with pytest.raises(InvalidSetting, match="no token of the target"):
            ending.end_tokens([wrong], tokenizer)


# advice


def test_the_fewest_tokens_that_see_an_uneven_u() -> None:
    """Held to a walk over every number of tokens: from the advised one on each sees as much, and the one before not."""
    alpha = checks.each_share(1e-6)
    for bound in (0.15, 0.3, 0.45, 0.6, 1.0):
        advised = advice.for_uniform(bound, alpha)
        seen = {}
        for count in range(100, 5000):
            bins = min(20, count // 25)
            seen[count] = noncentrality(bins - 1, alpha) / count <= bound**2
        assert all(seen[count] for count in range(advised, 5000))
        assert advised == 100 or not seen[advised - 1]


def test_as_many_tokens_as_advised_pass() -> None:
    """Of one asking: the advice then given is enough, and it isn't twice too much."""
    few = judge(Drawing(), PLAN, repeats=1, resolution=0.2, uniformity=0.3)
    assert few.verdict == "INCONCLUSIVE"
    (told,) = (reason for reason in few.reasons if "would do" in reason)
    repeats = int(told.split("use ")[1].split()[0])
    assert judge(Drawing(), PLAN, repeats=repeats, resolution=0.2, uniformity=0.3).verdict == "PASS"
    assert judge(Drawing(), PLAN, repeats=repeats // 2, resolution=0.2, uniformity=0.3).verdict == "INCONCLUSIVE"


def test_advice_comes_before_the_first_token() -> None:
    events = list[str]()

    class Noting(Drawing):
        def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
            events.append("asked")
            return super().sample(prompts, request, seed)

    plan = replace(PLAN, repeats=1, resolution=0.1)
    verify(Noting(), Tabled(CHAIN), PROMPTS, plan, advise=events.append)
    assert events[0].startswith("at most 288 tokens will be sampled, too few for a PASS")
    assert "asked" in events
    repeats = int(events[0].split("use ")[1].split()[0])
    events.clear()
    verify(Noting(), Tabled(CHAIN), PROMPTS, replace(plan, repeats=repeats), advise=events.append)
    assert set(events) == {"asked"}


# what only echoes


def evidence(u: np.ndarray, sequences: int = 50) -> Evidence:
    """Tokens whose u are given (sequences, tokens)."""
    flat, number = np.ones(u.size), np.arange(u.size)
    length = u.size // sequences
    return Evidence(
        1 - u.ravel(), -flat, flat, flat, 0 * flat, -np.ones(u.size, dtype=np.int64), number // length, number % length,
        *[flat * np.nan] * 3,
    )  # fmt: skip


def test_pairs_that_only_echo_an_uneven_u_say_so() -> None:
    """u that lean to 0, each by itself: the pair checks fail with uniform, and tell that it is no more than that."""
    u = np.random.default_rng(0).random((50, 100)) ** 1.6
    found = {check.name: check for check in checks.every(evidence(u), 1e-6)}
    assert found["uniform"].failed
    assert not found["uniform"].echo
    for name in ("rows", "lag 1", "lag 2"):
        assert found[name].failed
        assert found[name].echo


def test_pairs_that_know_of_each_other_do_not_echo() -> None:
    """Each u is used for the next token as well, and they lean to 0."""
    u = np.random.default_rng(0).random((50, 100)) ** 1.6
    u[:, 1::2] = u[:, ::2]
    found = {check.name: check for check in checks.every(evidence(u), 1e-6)}
    assert found["uniform"].failed
    assert found["lag 1"].failed
    assert not found["lag 1"].echo
    assert found["lag 2"].failed
    assert found["lag 2"].echo


def pairs_alone(runs: int) -> None:
    """The p-values of pairs' dependence, under u that are even and uneven, are uniform."""
    for power in (1.0, 1.6):
        found: dict[str, list[float]] = {}
        for seed in range(runs):
            u = np.random.default_rng([seed, 1]).random((20, 60)) ** power
            for check in checks.every(evidence(u, 20), 1e-6):
                if check.alone is not None:
                    found.setdefault(check.name, []).append(check.alone)
        assert set(found) == {"rows", "lag 1", "lag 2", "lag 3", "lag 4"}
        for name, p_values in found.items():
            assert stats.kstest(p_values, "uniform").pvalue > 1e-9, name


def test_what_is_said_of_pairs_alone_is_uniform() -> None:
    pairs_alone(24)


@pytest.mark.slow
def test_what_is_said_of_pairs_alone_is_uniform_in_two_hundred_runs() -> None:
    pairs_alone(200)


# what lossless decoders get


class Lossless(Speculating):
    """With widths of its own, which change nothing."""

    def widths(self) -> Mapping[str, Subject]:
        return {"gamma 1": Drawing(), "plain": Drawing()}


def lossless(runs: int) -> None:
    """Not one is accused or doubted, of anything; p-values are uniform."""
    found: dict[str, list[float]] = {}
    for seed in range(runs):
        report = judge(Lossless(), seed=seed, greedy=2, stopping=1)
        assert set(report.verdicts.values()) == {"PASS"}
        assert set(report.verdicts) == {"distribution", "tokens", "endings", "width"}
        for check in report.checks:
            if check.p_value is not None:
                found.setdefault(check.name, []).append(check.p_value)
            assert not check.echo
    for name, p_values in found.items():
        assert stats.kstest(p_values, "uniform").pvalue > 1e-9, name


def test_a_lossless_decoder_passes_every_question() -> None:
    lossless(10)


@pytest.mark.slow
def test_a_lossless_decoder_passes_every_question_two_hundred_times() -> None:
    lossless(200)


# how it is said


def test_a_pass_tells_what_every_check_would_have_seen() -> None:
    report = judge(Speculating())
    told = " ".join(report.reasons)
    for check in report.checks:
        if check.name in ("greedy", "stopping"):
            assert f"faults in {check.detectable:.2g} {check.unit} would have been seen" in told
        elif check.made:
            assert f"{check.name} {check.detectable:.2g} {check.unit}" in told


def test_a_check_that_is_not_made_says_why() -> None:
    report = verify(Drawing(), Tabled(CHAIN), PROMPTS, replace(PLAN, repeats=1))
    found = {check.name: check.detail for check in report.checks if not check.made}
    assert found["draft"] == "not made: no draft is named"
    assert found["places"] == "not made: the decoder doesn't say which tokens came in one block"
    reference = Tabled(CHAIN)
    reference.no_draft = "draft d has other tokens than the target"
    report = verify(Drawing(block=4), reference, PROMPTS[:2], replace(PLAN, repeats=1, greedy=0, stopping=0))
    found = {check.name: check.detail for check in report.checks if not check.made}
    assert found["draft"] == "not made: draft d has other tokens than the target"
    assert found["places"] == "not made: no place of a block has the 100 tokens that it needs"
    assert "tokens are too few, it needs 100" in found["uniform"]
    assert "pairs of tokens are too few" in found["rows"]


def test_an_underflow_has_one_spelling() -> None:
    assert [shown(p_value) for p_value in (0.25, 2e-91, 1e-310, 0.0)] == ["0.25", "2e-91", "< 1e-300", "< 1e-300"]
    assert [is_shown(p_value) for p_value in (0.25, 0.0)] == ["p = 0.25", "p < 1e-300"]
    found = Findings(checks.every(evidence(np.full((50, 100), 0.01)), 1e-6))
    assert found.checks[0].p_value == 0
    (ruling,) = rule(found, PLAN, ["distribution"])
    assert ruling.reasons[0].startswith("uniform: p < 1e-300 after Holm")


def test_the_same_said_of_many_is_said_once() -> None:
    doubts = {"it counts 12 tokens": 2, "it counts 13 tokens": 1, "no ids": 1}
    assert counted(doubts) == [
        "3 answers are in doubt, for instance: it counts 12 tokens",
        "1 answer is in doubt: no ids",
    ]
    faults = [Fault(f"prompt {number}", "ends too soon") for number in range(5)]
    assert listed(faults) == "prompt 0; prompt 1; prompt 2; and 2 more: ends too soon"
    differing = [Fault(f"prompt {number}", f"ends {number} too soon") for number in range(2)]
    assert listed([*differing, Fault("prompt 9", "goes on")]) == (
        "prompt 0: ends 0 too soon; prompt 1: ends 1 too soon; prompt 9: goes on"
    )
    kinds = [Fault("here", what) for what in ("a", "b", "c", "d", "e")]
    assert listed(kinds).endswith("here: c; and 2 more kinds")


def test_a_doubt_that_every_phase_has_is_told_once() -> None:
    class Doubtful(Drawing):
        def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
            for number, sample in enumerate(super().sample(prompts, request, seed)):
                yield replace(sample, doubt=f"it counts {number} tokens")

    report = judge(Doubtful())
    assert set(report.verdicts.values()) == {"INCONCLUSIVE"}
    for ruling in report.rulings:
        assert len(ruling.reasons) == 1
        assert "answers are in doubt" in ruling.reasons[0]
