"""docs/theory.md: every number is computed anew, and every proof holds for the shipped functions, by enumeration."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proof import Problem, accepted, cells, emitted, error, steps_of
from reading import formulas, numbers, tables, wrong
from theory_numbers import EXACT, GAMMA, PERFORMANCE, both_draw, kept_at_least, problem
from torch import Tensor
from translating import letters_of

from sybil.drafting.reader import RetokenizingReader
from sybil.drafting.surfaces import Vocabulary
from sybil.drafting.vocabulary import Intersection
from sybil.measuring.workload import RandomModel
from sybil.sampling import race
from sybil.verification import RULES, Proposed, Rule
from tools.theory import costs, example, figures
from tools.theory.example import DRAFT, TARGET, WORDS, row

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "theory.md").read_text()
SMALL = 1e-12
Mass = dict[tuple[int, ...], float]


@cache
def exact() -> dict[str, list[float]]:
    return {title: [float(each) for each in computed()] for title, computed in EXACT.items()}


def complaints(page: str) -> list[str]:
    return wrong(page, {title: lambda title=title: exact()[title] for title in EXACT})


def test_every_number_of_the_page_is_what_the_functions_give() -> None:
    assert complaints(PAGE) == []


def test_a_wrong_number_is_seen_wherever_it_stands() -> None:
    """The last digit of each number is changed, of all at once; then one is added, one is taken away."""
    planted, count = PAGE, 0
    for number in sorted((each for found in numbers(PAGE).values() for each in found), key=lambda each: -each.start):
        last = number.start + len(number.text) - 1
        planted = planted[:last] + str((int(planted[last]) + 1) % 10) + planted[last + 1 :]
        count += 1
    assert count > 500
    assert len(complaints(planted)) == count
    some = numbers(PAGE)["The coupled rule"][7]
    for more in ("", f"{some.text} 7"):
        assert complaints(PAGE[: some.start] + more + PAGE[some.start + len(some.text) :])
    assert complaints(PAGE.replace("## Papers\n", "## Papers\n7 of them.\n"))


def test_formulas_have_no_numbers_to_be_wrong() -> None:
    """0, 1, 2, and the 4 of the bound that is tested below."""
    found = [each.replace(r"\tanh(\omega / 4)", "") for each in formulas(PAGE)]
    assert len(found) > 100
    assert {number for each in found for number in re.findall(r"\d+", each)} == {"0", "1", "2"}
    assert all(each.count("{") == each.count("}") for each in found)


def test_the_words_of_the_round_are_the_rules_own() -> None:
    shown = tables(PAGE, "One round by hand")
    says = {0: "rejected", 1: "kept"}
    kept = int(RULES["token"](example.proposed(), example.UNIFORMS).accepted)
    wanted = [says[place < kept] if place <= kept else "not asked" for place in range(GAMMA)]
    assert [cells_of[-1] for cells_of in shown[2][1:]] == wanted
    agreeing = block_agrees()
    assert [cells_of[-1] for cells_of in shown[3][1:]] == [("refuses", "agrees")[each] for each in agreeing]
    drawn = [cells_of[-1] for cells_of in shown[4][1:] if cells_of[-1]]
    noise = example.EXPONENTIALS
    assert drawn == [
        WORDS[int(race(row(models, last), noise[place]))]
        for place, last in enumerate(("the", "cat"))
        for models in (DRAFT, TARGET)
    ]
    for rule, noise, said in (
        ("token", example.UNIFORMS, '"cat on", 2 words'),
        ("block", example.UNIFORMS, '"cat sat on the mat", 5 words'),
        ("coupled", example.exponentials(), '"cat on". Without'),
    ):
        verdict = RULES[rule](example.proposed(), noise)
        words = [*example.PROPOSAL[: int(verdict.accepted)], WORDS[int(verdict.next_token)]]
        assert said in " ".join(PAGE.split())
        assert " ".join(words) == said.split('"')[1]


def block_agrees() -> list[bool]:
    """Whether each place of the example agrees: the rule's own answer where every later place refuses."""
    found = []
    for place in range(GAMMA):
        noise = torch.ones_like(example.UNIFORMS)
        noise[0, place + 1] = example.UNIFORMS[0, place + 1]
        proposed = example.proposed()
        if place + 1 < GAMMA:  # then comes a word that the target never says: nothing after it can agree
            proposed.tokens[0, place + 1] = proposed.target_probs[0, place + 1].argmin()
        found.append(int(RULES["block"](proposed, noise).accepted) == place + 1)
    return found


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize(("gamma", "stops"), [(3, frozenset()), (2, frozenset({1, 7, 9})), (2, frozenset({0}))])
def test_the_example_is_exact_and_the_condition_holds(rule: str, gamma: int, stops: frozenset[int]) -> None:
    """Proposals that a window ends early among them, for looking at what stays in the proposal."""
    drawn = problem(gamma, stops)
    found = emitted_by(RULES[rule], drawn)
    assert (drawn.extended(found) - drawn.wanted()).abs().max() < SMALL
    assert broken(drawn, found) < SMALL


def test_the_coupled_rule_gives_the_target_whatever_is_proposed() -> None:
    assert error(RULES["coupled"], problem(1), coupled=True) < SMALL


def test_a_drawn_proposal_may_be_judged_as_certain() -> None:
    """And less is kept than with the draft's probabilities."""
    rule = "token"
    drawn = problem(2)
    proposals, weights = zip(*drawn.proposals(), strict=True)
    seen = drawn.proposed(list(proposals))
    silent = Proposed(seen.tokens, None, seen.target_probs, seen.counts)
    found = emitted(RULES[rule], silent, torch.tensor(weights, dtype=torch.float64))
    assert found is not None
    assert (drawn.extended(found) - drawn.wanted()).abs().max() < SMALL
    kept = sum(mass * (len(tokens) - 1) for tokens, mass in found.items())
    assert kept < sum(kept_at_least(rule, 2)) - 1


def emitted_by(rule: Rule, drawn: Problem) -> Mass:
    proposals, weights = zip(*drawn.proposals(), strict=True)
    found = emitted(rule, drawn.proposed(list(proposals)), torch.tensor(weights, dtype=torch.float64))
    assert found is not None
    return found


def broken(drawn: Problem, found: Mass) -> float:
    """How far a round is from the page's condition: that it has kept z_<i and emits z_i has the probability that it has
    kept z_<i and emits some token, times the target's."""
    worst = 0.0
    for count in range(1, drawn.gamma + 2):
        together: Mass = {}
        for tokens, mass in found.items():
            if len(tokens) >= count:
                together[tokens[:count]] = together.get(tokens[:count], 0.0) + mass
        before: Mass = {}
        for tokens, mass in together.items():
            before[tokens[:-1]] = before.get(tokens[:-1], 0.0) + mass
        for prefix, mass in before.items():
            for token, probability in enumerate(drawn.target[drawn.node(prefix)].tolist()):
                worst = max(worst, abs(together.get((*prefix, token), 0.0) - mass * probability))
    return worst


def test_a_rule_that_breaks_the_condition_is_seen() -> None:
    def from_the_target(proposed: Proposed, noise: Tensor) -> Any:
        """The page's first easy mistake: a rejected token is replaced by a draw from the target."""
        verdict = RULES["token"](proposed, noise)
        nothing = Proposed(proposed.tokens[:, :0], None, proposed.target_probs, torch.zeros_like(proposed.counts))
        at = proposed.target_probs[torch.arange(len(noise)), verdict.accepted][:, None]
        return type(verdict)(
            verdict.accepted,
            RULES["token"](Proposed(nothing.tokens, None, at, nothing.counts), noise[:, :1]).next_token,
        )

    assert broken(problem(2), emitted_by(from_the_target, problem(2))) > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_the_lemma_of_the_block_rule(seed: int) -> None:
    """P(n >= i | x_<=i) = w_i by block, and the product of min(1, ratio) by token, which is never more."""
    gamma, vocab = 3, 3
    generator = torch.Generator().manual_seed(seed)
    nodes = sum(vocab**depth for depth in range(gamma + 1))
    target, draft = (
        torch.randn(2, nodes, vocab, dtype=torch.float64, generator=generator).mul(0.5 + seed).softmax(-1).unbind()
    )
    drawn = Problem(gamma, target, draft)
    proposals, weights = zip(*drawn.proposals(), strict=True)
    proposed = drawn.proposed(list(proposals))
    chances = {}
    for rule in ("token", "block"):
        found: list[Mass] = [{} for _ in range(gamma + 1)]
        for share, noise in cells(steps_of(RULES[rule], proposed)):
            kept = accepted(RULES[rule], proposed, noise).tolist()
            for proposal, weight, part, count in zip(proposals, weights, share.tolist(), kept, strict=True):
                for place in range(count + 1):
                    prefix = proposal[:place]
                    found[place][prefix] = found[place].get(prefix, 0.0) + weight * part
        chances[rule] = found
    for proposal in proposals:
        weight = product = drafted = 1.0
        for place, token in enumerate(proposal, start=1):
            node = drawn.node(proposal[: place - 1])
            ratio = float(target[node, token] / draft[node, token])
            weight, product = min(1.0, weight * ratio), product * min(1.0, ratio)
            drafted *= float(draft[node, token])
            assert abs(chances["block"][place].get(proposal[:place], 0.0) - drafted * weight) < SMALL
            assert abs(chances["token"][place].get(proposal[:place], 0.0) - drafted * product) < SMALL
            assert weight >= product


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 6), sharp=st.sampled_from([0.3, 1.0, 3.0]))
def test_how_often_two_races_agree(seed: int, size: int, sharp: float) -> None:
    """The formula, the draw's own probabilities, and the bounds on both sides."""
    generator = torch.Generator().manual_seed(seed)
    target, draft = torch.randn(2, size, dtype=torch.float64, generator=generator).mul(sharp).softmax(-1).unbind()
    target = torch.where(target > 0.5 / size, target, 0.0)
    target /= target.sum()
    found = both_draw(target, draft)
    for word in range(size):
        wanted = 0.0
        if target[word] * draft[word] > 0:
            wanted = 1 / float(torch.maximum(target / target[word], draft / draft[word]).sum())
        assert abs(float(found[word]) - wanted) < SMALL
    both = float(target.minimum(draft).sum())
    assert both / (2 - both) - SMALL <= float(found.sum()) <= both + SMALL
    torch.testing.assert_close(both_draw(draft, draft), draft, rtol=0, atol=SMALL)


@given(seed=st.integers(0, 2**32), size=st.integers(2, 8), spread=st.sampled_from([0.01, 0.3, 1.0, 4.0]))
def test_the_bound_for_drafts_in_fewer_bits(seed: int, size: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, errors = torch.randn(2, size, dtype=torch.float64, generator=generator).unbind()
    errors = (errors - errors.min()) / (errors.max() - errors.min()) * spread
    kept = float(logits.softmax(-1).minimum((logits + errors).softmax(-1)).sum())
    assert kept >= 1 - math.tanh(spread / 4) - SMALL
    # it is reached, by two tokens
    half = torch.tensor([spread / 4, -spread / 4], dtype=torch.float64)
    assert abs(float(half.softmax(-1).minimum((-half).softmax(-1)).sum()) - (1 - math.tanh(spread / 4))) < SMALL


@given(
    survivals=st.lists(st.floats(0, 1), min_size=1, max_size=12).map(lambda each: sorted(each, reverse=True)),
    step=st.floats(0, 1),
    more=st.floats(0, 1),
)
def test_speculation_pays_exactly_if_its_first_token_does(survivals: list[float], step: float, more: float) -> None:
    speeds = [(1 + sum(survivals[:count])) / (1 + count * (step + more)) for count in range(1, len(survivals) + 1)]
    if survivals[0] > step + more:
        assert speeds[0] > 1
    else:
        assert max(speeds) <= 1 + SMALL


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("step", [0.05, 0.1, 0.5, 0.9])
def test_the_two_limits_of_the_speed_up(kept: float, step: float) -> None:
    speeds = costs.speed_ups(kept, costs.costs(step))
    assert max(speeds) < 1 / (1 - kept)
    assert max(speeds[1:]) < 1 / step
    best, length = costs.best(kept, costs.costs(step))
    assert best == max(speeds) == speeds[length]


def test_an_intersection_is_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sybil's own, of vocabularies whose tokens are the words' initials; and every rule is exact with it."""
    missing, other = example.OTHER_WORD
    initials = "".join(word[0] for word in WORDS)
    own = Vocabulary(letters_of(initials.replace(missing[0], other[0])))
    like = SimpleNamespace(vocab_size=len(WORDS), context=16, device=torch.device("cpu"))
    draft: Any = Intersection(like, Vocabulary(letters_of(initials)), own, like)  # type: ignore[arg-type]
    monkeypatch.setattr(RetokenizingReader, "forward", lambda self, tokens, cache: DRAFT.log()[None])
    drawn = draft.forward(torch.zeros(1, 1), None)[0].softmax(-1)
    _, *shown = tables(PAGE, "Two tokenizers")[0]
    column = {cells_of[0]: cells_of[2] for cells_of in shown}
    for word, probability in zip(WORDS, drawn[WORDS.index("the")].tolist(), strict=True):
        assert abs(float(column[word]) - probability) <= 0.0005
    last = [WORDS.index(example.PROMPT), *range(len(WORDS))]
    for rule in ("token", "block"):
        assert error(RULES[rule], Problem(1, TARGET[last], drawn[last])) < SMALL


def test_what_was_measured_stands_in_the_page_of_measurements() -> None:
    assert f"({costs.CORES_GB} GB/s)" in PERFORMANCE
    assert f"{costs.CORES_FUSED} thousand million a second each" in PERFORMANCE


def test_a_copys_bytes_are_those_that_were_measured() -> None:
    sizes = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30)
    heads = dict(num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    smollm2 = RandomModel("smollm2", {"model_type": "llama", **sizes, **heads})
    (table,) = (
        each
        for each in tables(PERFORMANCE, "Drafting without a second model")
        if each[0][:4] == ["bits", "MB", "step, ms", "over its bytes"]
    )
    assert len(table) == 5
    for bits, megabytes, *_ in table[1:]:
        assert round(costs.copy_bytes(smollm2, int(bits)) / 1e6) == int(megabytes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_shows_the_numbers_that_are_computed_now(name: str) -> None:
    file = figures.FOLDER / f"{name}.svg"
    assert f"theory/{name}.svg)" in PAGE
    compute, _ = figures.FIGURES[name]
    shown, computed = figures.told(file.read_text()), compute()
    assert not differing(shown, computed)
    series = next(iter(shown))
    shown[series][-1] += 1e-3 * abs(shown[series][-1] or 1)
    assert differing(shown, computed) == [series]


def differing(shown: figures.Series, computed: figures.Series) -> list[str]:
    return [
        name
        for name in {**shown, **computed}
        if list(shown.get(name, [])) != pytest.approx(list(computed.get(name, [])), rel=1e-5, abs=1e-6)
    ]


def test_the_notebook_has_the_pages_example() -> None:
    notebook = json.loads((ROOT / "notebooks" / "worked_example.ipynb").read_text())
    made: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if "example" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), made)
    torch.set_default_dtype(torch.float32)  # a cell has set float64
    assert made["words"] == list(WORDS)
    assert torch.equal(made["target"], TARGET)
    assert torch.equal(made["draft"], DRAFT)
    assert made["proposal"] == list(example.PROPOSAL)
    assert torch.equal(made["uniforms"], example.UNIFORMS)
    assert torch.equal(made["exponentials"], example.exponentials())
