"""Drafts with another tokenizer: their context is the text, encoded as a whole; what they say is the target's.

The text of random tokens of one vocabulary, added and taken back, is held to the other vocabulary's tokens of the whole
text. What is drafted is held to the draft's own forward over the whole text, and what is decoded to the target.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import ALPHA, DRAFTERS, TARGET, VOCAB, Case, p_values
from hypothesis import given, settings
from hypothesis import strategies as st
from proof import Problem, error
from tiny import gpt2, greedy, in_sybil, letters, prompts, save
from tiny import sybil as command
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import GPT2LMHeadModel
from translating import drafting, letters_of, whole, with_turned_ids
from vocabularies import TRAINED, byte_fallback, byte_level, bytes_alone, turned

import sybil
from sybil import Decoder, fit, verification
from sybil.chat import ChatTemplate
from sybil.conversation import Conversation
from sybil.drafting import Context, DraftLookup, Generating
from sybil.drafting.reader import RetokenizingReader
from sybil.drafting.reencoding import ReencodedRow
from sybil.drafting.surfaces import NOWHERE, Vocabulary, same_ends, shared
from sybil.errors import InvalidSetting, VocabularyMismatch
from sybil.noise import Noise
from sybil.pieces import Pieces
from sybil.sampling import Sampling, probabilities
from sybil.text import encode
from sybil.transfer import integers

KINDS = {
    "byte-level": byte_level(["ab", "sto", "op", "日", "n", " s", "😀"]),
    "byte fallback": byte_fallback(),
    **{name: make() for name, make in TRAINED.items()},
}
VOCABULARIES = {name: Vocabulary(tokenizer) for name, tokenizer in KINDS.items()}
TEXTS = [
    "the stop sign",
    " a 12345 naïve 日本語 text",
    "😀😀 x",
    "\n\n  \n",
    "<|im_end|> he said <s>",
    "don't  stop",
    "é",
]


@pytest.mark.parametrize("name", KINDS)
def test_surfaces_are_the_pieces_of_tokens(name: str) -> None:
    pieces, vocabulary = Pieces(KINDS[name]), VOCABULARIES[name]
    for token, surface in enumerate(vocabulary.surfaces):
        piece = pieces.of(token)
        assert piece is not None
        assert (piece.encode() if isinstance(piece, str) else piece) == surface
        if token not in vocabulary.special:
            assert vocabulary.surfaces[vocabulary.ids[surface]] == surface
    assert not vocabulary.special & set(vocabulary.ids.values())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_spelled_as_it_is_encoded(name: str, text: str) -> None:
    """In the middle of a text, where no space is added, and byte for byte."""
    vocabulary = VOCABULARIES[name]
    ids, ends = vocabulary.spelled(text.encode())
    if vocabulary.opens:  # before each part of a text, as such tokenizers do where special tokens part it
        assert "<s>" in text or vocabulary.spelled(f" {text}".encode())[0] == encode(KINDS[name], text, special=False)
    else:
        assert ids == encode(KINDS[name], text, special=False)
    if NOWHERE not in ends:
        assert b"".join(vocabulary.surfaces[token] for token in ids) == text.encode()
        assert ends[-1:] == [len(text.encode())]


def test_bytes_that_make_no_character_are_tokens_of_their_own() -> None:
    for name in ("byte-level", "byte fallback"):
        vocabulary = VOCABULARIES[name]
        data = b"a\xf0\x9fb" + "日".encode() + b"\xe6\x97"
        ids, ends = vocabulary.spelled(data)
        assert b"".join(vocabulary.surfaces[token] for token in ids) == data
        assert ends[-2:] == [len(data) - 1, len(data)]


@st.composite
def edits(draw: st.DrawFn, size: int) -> list[tuple[int, list[int]]]:
    """(how many of the tokens so far are taken back, those that follow)."""
    token = st.integers(0, size - 1)
    return draw(st.lists(st.tuples(st.integers(0, 6), st.lists(token, min_size=1, max_size=12)), max_size=8))


@pytest.mark.parametrize("draft", TRAINED)
@pytest.mark.parametrize("target", ["byte fallback", "trained byte-level", "trained byte fallback with a space"])
@settings(max_examples=40)
@given(data=st.data())
def test_a_text_that_grows_and_shrinks_is_encoded_as_a_whole(target: str, draft: str, data: st.DataObject) -> None:
    """After every change, whatever characters it cuts; and the tokens that are said to stay do."""
    theirs, own = VOCABULARIES[target], VOCABULARIES[draft]
    row, tokens = ReencodedRow(theirs, own), list[int]()
    for back, new in data.draw(edits(len(theirs.surfaces))):
        at, before = max(len(tokens) - back, 0), list(row.own)
        tokens = tokens[:at] + new
        kept = row.write(at, new)
        assert row.own == whole(theirs, own, tokens)
        assert row.own[:kept] == before[:kept]


@pytest.mark.parametrize(
    "text", ["日" * 40, "aaaaaaaab" * 20, "1234567890" * 9, " " * 80 + "x", "<|im_end|>" * 9, "international"]
)
def test_a_text_of_one_byte_after_the_other_is_encoded_as_a_whole(text: str) -> None:
    """Each cut inside a character, and inside a token that is looked for; and little is encoded again each time."""
    target = Vocabulary(bytes_alone())
    data = [target.ids[bytes([byte])] for byte in text.encode()]
    for name in TRAINED:
        draft = Counted(KINDS[name])
        row = ReencodedRow(target, draft)
        for place, token in enumerate(data):
            row.write(place, [token])
        assert max(draft.lengths) < 130
        assert row.own == draft.spelled(b" " * draft.opens + text.encode())[0]


class Counted(Vocabulary):
    """Notes how many bytes it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.lengths: list[int] = []
        super().__init__(tokenizer)

    def spelled(self, data: bytes) -> tuple[list[int], list[int]]:
        self.lengths.append(len(data))
        return super().spelled(data)


def test_special_tokens_are_their_names_and_a_text_begins_once() -> None:
    begins = byte_level()
    begins.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begins.token_to_id("<s>"))]
    )
    target, draft = Vocabulary(begins), Vocabulary(begins)
    first, end = begins.token_to_id("<s>"), begins.token_to_id("<|im_end|>")
    assert target.before == draft.before == [first]
    row, other = ReencodedRow(target, draft), ReencodedRow(VOCABULARIES["byte-level"], draft)
    ids = encode(begins, "stop", special=True)
    assert ids[0] == first
    row.write(0, ids)
    assert row.own == ids[1:]  # and the draft's own is put before it, once
    row.write(len(ids), [end, first])
    assert row.own == [*ids[1:], end, first]  # in the middle they are what the text says
    other.write(0, [VOCABULARIES["byte-level"]._tokenizer.token_to_id("<s>"), *ids[1:]])
    assert other.own == ids[1:]  # a chat template's, of a target that has no first token of its own


# a draft over two vocabularies


WAYS = ("intersection", "strings")
OTHER = "?kjihgfedcba#zyxwvutsrqpon$ml"  # nearly the target's letters, in another order, with some of its own
MODEL = gpt2(20)


def decoder(way: str, draft: GPT2LMHeadModel | None = None, own: Tokenizer | None = None) -> Decoder:
    draft = with_turned_ids(MODEL) if draft is None else draft
    factory = drafting(way, MODEL, draft, letters(), turned(letters()) if own is None else own)
    return Decoder(in_sybil(MODEL), factory, letters())


@pytest.mark.parametrize("way", WAYS)
def test_the_same_model_under_other_ids_is_always_right(way: str) -> None:
    inputs = prompts([3, 8, 1, 5])
    wanted = [greedy(MODEL, prompt, 20) for prompt in inputs]
    for gamma in (1, 4):
        out = decoder(way).generate(inputs, max_new_tokens=20, gamma=gamma, eos_token_id=[])
        assert [tokens.tolist() for tokens in out.tokens] == wanted
        assert out.stats.acceptance_rate == 1
    for rule in ("token", "block", "coupled") if way == "intersection" else ():
        out = decoder(way).generate(
            inputs, max_new_tokens=20, gamma=4, do_sample=True, rule=rule, seed=1, eos_token_id=[]
        )
        assert out.stats.acceptance_rate == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("draft", [gpt2(7, vocab=29), gpt2(7, vocab=29, context=16), gpt2(7, vocab=40)])
def test_whatever_is_drafted_the_text_is_the_targets(way: str, draft: GPT2LMHeadModel) -> None:
    """Greedy: transformers'. Coupled: plain sampling's, processors and filters included. A draft whose context is
    shorter than the text forgets its beginning; one with more logits than tokens is never asked for the rest."""
    inputs = prompts([3, 8])
    drafted = decoder(way, draft, letters_of(OTHER))
    for window in ("constant", "heuristic", "confident"):
        out = drafted.generate(inputs, max_new_tokens=20, gamma=3, window=window, eos_token_id=[])
        assert [tokens.tolist() for tokens in out.tokens] == [greedy(MODEL, prompt, 20) for prompt in inputs]
        assert out.stats.proposed > 0
    for chosen in ({"top_k": 0}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.3}):
        asked = {"max_new_tokens": 20, "do_sample": True, "seed": 3, "eos_token_id": [], **chosen}
        plain = drafted.without_draft().generate(inputs, **asked)
        found = drafted.generate(inputs, rule="coupled", gamma=3, **asked)
        assert found.text == plain.text


def test_a_cascade_over_the_intersection_proposes_the_same() -> None:
    """Lookup drafts for the draft, in the target's tokens."""
    inputs = prompts([3, 8])
    drafted = decoder("intersection", gpt2(7, vocab=29), letters_of(OTHER))
    helped = drafted.with_draft(replace(drafted.draft, helper=DraftLookup()))  # type: ignore[type-var]
    for chosen in ({}, {"do_sample": True, "rule": "token"}, {"do_sample": True, "rule": "block"}):
        one, other = (
            each.generate(inputs, max_new_tokens=16, gamma=4, seed=1, eos_token_id=[], **chosen)
            for each in (drafted, helped)
        )
        assert one.text == other.text
        assert one.stats.accepted == other.stats.accepted


@pytest.mark.parametrize("way", WAYS)
def test_a_row_is_the_same_alone(way: str) -> None:
    inputs = prompts([3, 8, 1, 5])
    drafted = decoder(way, gpt2(7, vocab=29), letters_of(OTHER))
    for rule in ("token", "block"):
        asked = {"max_new_tokens": 12, "do_sample": True, "seed": 3, "rule": rule, "eos_token_id": []}
        for first in range(4):
            together = drafted.generate(inputs[first:] + inputs[:first], gamma=3, window="heuristic", **asked).text[0]
            assert together == drafted.generate(inputs[first : first + 1], gamma=3, window="heuristic", **asked).text[0]


@torch.no_grad()
@pytest.mark.parametrize(
    "names", [("trained byte-level", "trained byte fallback"), ("byte fallback", "trained byte-level")]
)
def test_logits_are_those_of_the_whole_text(names: tuple[str, str]) -> None:
    """After every token of a block, in a batch, when tokens are taken back, and when the cache has to grow."""
    theirs, own = (VOCABULARIES[name] for name in names)
    model = gpt2(3, vocab=len(own.surfaces), layers=1, width=8, context=256)
    read = RetokenizingReader(in_sybil(model), theirs, own, 256)
    cache, generator = read.new_cache(2, 6), torch.Generator().manual_seed(0)
    tokens = [list[int](), list[int]()]
    for count in (5, 1, 2, 4, 1, 3, 2):
        new = torch.randint(len(theirs.surfaces), (2, count), generator=generator)
        back = torch.randint(0, 3, (2,), generator=generator)
        cache.lengths = (cache.lengths - back).clamp(min=0)
        tokens = [row[:length] for row, length in zip(tokens, cache.lengths.tolist(), strict=True)]
        found = read.forward(new, cache)
        for row, known in enumerate(tokens):
            for place in range(count):
                known.append(int(new[row, place]))
                ids = torch.tensor([whole(theirs, own, known)])
                assert (found[row, place] - model(input_ids=ids).logits[0, -1]).abs().max() < 1e-9


def test_the_intersection_is_renormalised_over_what_both_have() -> None:
    """Of each token that only one has, nothing; of the others, what the draft gives it among them."""
    target, draft = gpt2(5, vocab=6), gpt2(7, vocab=5)
    factory = drafting("intersection", target, draft, letters_of("!abcde"), letters_of("c?a!e"))
    tokens, generating = torch.tensor([[1, 3, 0, 0, 0]]), Generating(1, 5, 6, Sampling(1.0), None)  # type: ignore[arg-type]
    proposal = factory(generating).propose(Context(tokens, integers([2]), Noise(0)), 1)
    mass = torch.zeros(6).double()
    own = draft(input_ids=torch.tensor([[2, 0]])).logits[0, -1].softmax(-1)  # "ac" in the draft's tokens
    for theirs, its in {0: 3, 1: 2, 3: 0, 5: 4}.items():
        mass[theirs] = own[its]
    assert (proposal.probs[0, 0] - mass / mass.sum()).abs().max() < 1e-12


@pytest.mark.parametrize("rule", verification.RULES)
@torch.no_grad()
def test_the_rules_are_exact_over_the_intersection(rule: str) -> None:
    """The joint distribution of gamma + 1 tokens, integrated over all proposals and noise, is the target's."""
    target, draft, gamma = gpt2(5, vocab=3), gpt2(7, vocab=3), 2
    factory = drafting("intersection", target, draft, letters_of("!ab"), letters_of("?b!"))
    prompt, rows = [1, 2], list[Tensor]()
    prefixes = [list(prefix) for depth in range(gamma + 1) for prefix in itertools.product(range(3), repeat=depth)]
    for prefix in prefixes:
        ids = torch.tensor([prompt + prefix])
        logits = factory.model.forward(ids, factory.model.new_cache(1, 8))[0, -1]
        rows.append(probabilities(logits, Sampling(0.8)))
    theirs = [
        target(input_ids=torch.tensor([prompt + prefix])).logits[0, -1].div(0.8).softmax(-1) for prefix in prefixes
    ]
    problem = Problem(gamma, torch.stack(theirs), torch.stack(rows), frozenset())
    assert error(verification.RULES[rule], problem, coupled=rule == "coupled") < 1e-12


@pytest.mark.parametrize("case", [Case("token", "intersection"), Case("block", "intersection")], ids=str)
def test_what_is_sampled_follows_the_target(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = drafting(case.drafter, TARGET, gpt2(9, vocab=4, layers=1, width=8), letters(VOCAB), letters_of("c?!a"))
    monkeypatch.setitem(DRAFTERS, case.drafter, factory)
    for name, p_value in p_values(case, sequences=3_000).items():
        assert p_value > ALPHA, (name, p_value)


# what loading makes of it


def test_the_way_is_chosen_by_what_both_have(tmp_path: Path) -> None:
    exact: dict[str, Any] = {"dtype": torch.float64, "draft_dtype": torch.float64, "device": "cpu"}
    target = save(MODEL, tmp_path / "target", letters())
    ways = {}
    alphabets = {"half": letters_of("?!acegikmoqsuwyBC "), "none": letters_of("?$")}
    for name, tokenizer in {"same": letters(), "turned": turned(letters()), **alphabets}.items():
        draft = save(gpt2(7, vocab=tokenizer.get_vocab_size()), tmp_path / name, tokenizer)
        if name == "none":
            with pytest.raises(VocabularyMismatch, match=r"31 tokens .* 2, and they share none"):
                sybil.load(target, draft, **exact)
            continue
        if name == "half":
            with pytest.raises(InvalidSetting, match="another tokenizer than the target: name it alone"):
                sybil.load(target, f"cascade:lookup,{draft}", **exact)
        drafted = sybil.load(target, draft, **exact)
        ways[name] = fit.way_of(drafted.draft)
        prompt = prompts([4])
        out = drafted.generate(prompt, max_new_tokens=12, eos_token_id=[])
        assert out.tokens[0].tolist() == greedy(MODEL, prompt[0], 12)
    assert ways == {"same": None, "turned": "intersection", "half": "strings"}


def test_end_tokens_are_the_same_by_name_or_by_meaning() -> None:
    ends = {token: byte_level().token_to_id(token) for token in ("<|im_end|>", "<s>")}
    both, one, none = (Vocabulary(byte_level(), each) for each in (list(ends.values()), [ends["<s>"]], []))
    other = Vocabulary(byte_fallback(), [byte_fallback().token_to_id("<|im_end|>")])
    assert same_ends(both, other) == {ends["<|im_end|>"]: other.ends[0]}
    assert same_ends(one, other) == {ends["<s>"]: other.ends[0]}
    assert same_ends(none, other) == {}
    theirs, own = shared(one, other)
    assert theirs == sorted(theirs)
    assert (ends["<s>"], other.ends[0]) in zip(theirs, own, strict=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_conversations_draft_reads_its_new_tokens_only(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}")
    model = gpt2(13, context=512)
    factory = drafting(way, model, with_turned_ids(model), letters(), turned(letters()))
    drafted = Decoder(in_sybil(model), factory, letters(), chat_template=template)
    fed, inner = list[int](), factory.model.model
    for name in ("forward", "prefill"):
        original = getattr(inner, name)

        def noted(tokens: Tensor, cache: Any, original: Any = original) -> Any:
            fed.append(tokens.shape[1])
            return original(tokens, cache)

        monkeypatch.setattr(inner, name, noted)
    chat = Conversation(drafted)
    for text in ("abc" * 30, "de", "fgh"):
        asked = [*chat.messages, {"role": "user", "content": text}]
        fed.clear()
        answer = chat.ask(text, max_new_tokens=10, gamma=3).text
        assert len(asked) == 1 or max(fed) < 20
        assert answer == drafted.generate(asked, max_new_tokens=10).text


def test_verify_judges_a_draft_with_another_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save(gpt2(2, vocab=8, layers=1), tmp_path / "target", letters(8))
    draft = save(gpt2(7, vocab=7, layers=1), tmp_path / "draft", letters_of("?gfedcb"))
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "bcde", "cdefg", "abcdef") * 2))
    status = command(
        "verify", "--target", target, "--draft", draft, "--prompts", file, "--max-new-tokens", 24, "--repeats", 16,
        "--resolution", 0.4, "--greedy", 4, "--stopping", 4, "--out", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert status == 0, capsys.readouterr().out
