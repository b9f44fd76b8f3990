"""The loop: the same greedy tokens as transformers, stops exact to the token, rows that keep to themselves."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import fixed, foreign, gpt2, greedy, in_sybil, letters, llama, perturbed, prompts
from torch import Tensor
from transformers import (
    MaxLengthCriteria,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
)

import sybil
from sybil import Decoder, Stats, Step
from sybil.drafting import Context, DraftLookup, DraftModel, ModelDrafter, Outcome, Proposal
from sybil.errors import CacheOutOfStep, EmptyPrompt, InvalidSetting, NumericalFailure, PromptTooLong, UnsupportedModel
from sybil.models.operators.static import StaticCache

COUNT = 24


def decoder(target: Any = None, draft: Any = None, **rest: Any) -> Decoder:
    target = in_sybil(gpt2()) if target is None else target
    return Decoder(target, None if draft is None else DraftModel(draft), **rest)


def agreeable(noise: float = 0.05) -> Any:
    """A draft that agrees with gpt2() often, not always."""
    return in_sybil(perturbed(gpt2(), noise))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 5),
    noise=st.sampled_from([0.0, 0.02, 0.1, 1.0]),
    gamma=st.integers(1, 8),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_greedy_speculative_is_autoregressive_is_transformers(
    seed: int, noise: float, gamma: int, lengths: list[int]
) -> None:
    model = gpt2(seed)
    inputs = prompts(lengths, seed=seed)
    wanted = [greedy(model, prompt, COUNT) for prompt in inputs]
    plain = decoder(in_sybil(model)).generate(inputs, max_new_tokens=COUNT, eos_token_id=[])
    drafted = decoder(in_sybil(model), in_sybil(perturbed(model, noise)))
    speculative = drafted.generate(inputs, max_new_tokens=COUNT, gamma=gamma, eos_token_id=[])
    assert [row.tolist() for row in plain.tokens] == wanted
    assert [row.tolist() for row in speculative.tokens] == wanted
    assert plain.stats.rounds == plain.stats.emitted == COUNT * len(lengths)
    if noise == 0.0:
        assert speculative.stats.acceptance_rate == 1.0
        assert speculative.stats.tokens_per_round > 1


@pytest.mark.parametrize("gamma", [1, 4])
def test_transformers_models_behind_the_loop(gamma: int) -> None:
    inputs = prompts([3, 9, 1])
    drafted = decoder(foreign(llama()), foreign(llama(seed=1, layers=1)))
    out = drafted.generate(inputs, max_new_tokens=COUNT, gamma=gamma, eos_token_id=[])
    assert [row.tolist() for row in out.tokens] == [greedy(llama(), prompt, COUNT) for prompt in inputs]


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    inputs = prompts([2, 7, 4, 4])
    drafted = decoder(draft=agreeable())
    chosen: dict[str, Any] = dict(max_new_tokens=COUNT, do_sample=True, seed=3, gamma=3)
    together = drafted.generate(inputs, **chosen)
    assert torch.equal(together.tokens[0], drafted.generate(inputs[:1], **chosen).tokens[0])
    longer = drafted.generate([inputs[0], torch.ones(50, dtype=torch.int64)], **chosen)  # ends early, at the context
    assert torch.equal(together.tokens[0], longer.tokens[0])
    assert longer.finish_reasons[1] in ("context", "eos")


@pytest.mark.parametrize("rule", ["token", "block"])
def test_what_is_looked_up_does_not_depend_on_the_room_of_the_rows_beside_it(rule: str) -> None:
    """Near its end a row may be offered less than its neighbours; where it looks must not be theirs to say."""
    inputs = [torch.tensor([3, 4, 5, 6, 3, 4, 3, 4]), torch.tensor([7])]
    looking = Decoder(in_sybil(gpt2()), DraftLookup(least=0.0))
    for seed in range(20):
        chosen: dict[str, Any] = dict(do_sample=True, seed=seed, rule=rule, eos_token_id=[], max_new_tokens=COUNT)
        alone, beside = (
            [(step.tokens[0], step.proposed[0]) for step in looking.stream(rows, **chosen) if step.tokens[0]]
            for rows in (inputs[:1], inputs)
        )
        assert alone == beside


def test_a_seed_repeats_and_another_differs() -> None:
    drafted = decoder(draft=agreeable())
    runs = [
        drafted.generate(prompts([5]), do_sample=True, seed=seed, max_new_tokens=COUNT).tokens[0]
        for seed in (1, 1, 2, None)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[3])


@given(gamma=st.integers(1, 8), count=st.integers(1, 12))
@settings(max_examples=20)
def test_max_new_tokens_is_never_overshot(gamma: int, count: int) -> None:
    out = decoder(draft=in_sybil(gpt2())).generate(prompts([4, 2]), max_new_tokens=count, gamma=gamma, eos_token_id=[])
    assert [len(row) for row in out.tokens] == [count, count]
    assert out.finish_reasons == ("length", "length")


@pytest.mark.parametrize("gamma", [1, 2, 3, 4, 5, 8])
def test_an_end_token_inside_a_block_ends_the_row_there(gamma: int) -> None:
    model = gpt2()
    for prompt in prompts([3, 5, 8, 13]):
        plain = greedy(model, prompt, COUNT)
        for eos in {plain[2], plain[5]}:
            wanted = plain[: plain.index(eos) + 1]
            out = decoder(draft=in_sybil(model)).generate([prompt], max_new_tokens=COUNT, gamma=gamma, eos_token_id=eos)
            assert out.tokens[0].tolist() == wanted == greedy(model, prompt, COUNT, eos_token_id=eos)
            assert out.finish_reasons == ("eos",)
            assert sum(out.stats.accepted_in_round) == out.stats.rounds
            assert out.stats.emitted == len(wanted) >= out.stats.accepted


def test_the_model_s_own_end_token_is_used_where_none_is_given() -> None:
    prompt = prompts([6])[0]
    plain = greedy(gpt2(), prompt, COUNT)
    out = decoder(draft=agreeable(), eos_token_ids=frozenset({plain[3]})).generate([prompt], max_new_tokens=COUNT)
    assert out.tokens[0].tolist() == plain[: plain.index(plain[3]) + 1]


@pytest.mark.parametrize("gamma", [1, 3, 8])
def test_a_stop_string_ends_the_row_with_the_token_that_completes_it(gamma: int) -> None:
    tokenizer = letters()
    prompt = prompts([6])[0]
    plain = greedy(gpt2(), prompt, COUNT)
    text = tokenizer.decode(plain)
    stop = text[4:7]
    out = decoder(draft=in_sybil(gpt2()), tokenizer=tokenizer).generate(
        [prompt], max_new_tokens=COUNT, gamma=gamma, stop_strings=[stop, "nowhere"], eos_token_id=[]
    )
    assert out.text == [text[: text.index(stop) + len(stop)]]
    assert out.finish_reasons == ("stop_string",)


class EndsInEven(StoppingCriteria):
    """Looks at the whole sequence, and must be asked after every token."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return (input_ids.shape[1] > 9) & (input_ids[:, -1] % 2 == 0)


@pytest.mark.parametrize("gamma", [2, 5, 8])
def test_criteria_are_asked_after_every_token(gamma: int) -> None:
    for prompt in prompts([3, 5, 8]):
        wanted = greedy(gpt2(), prompt, COUNT, stopping_criteria=[EndsInEven()])
        out = decoder(draft=in_sybil(gpt2())).generate(
            [prompt], max_new_tokens=COUNT, gamma=gamma, stopping_criteria=[EndsInEven()], eos_token_id=[]
        )
        assert out.tokens[0].tolist() == wanted
    out = decoder(draft=in_sybil(gpt2())).generate(
        prompts([3]), gamma=gamma, stopping_criteria=[MaxLengthCriteria(8)], eos_token_id=[]
    )
    assert len(out.tokens[0]) == 5


@pytest.mark.parametrize("gamma", [1, 4])
def test_processors_are_those_of_transformers(gamma: int) -> None:
    inputs = prompts([3, 8, 5])
    processors = [NoRepeatNGramLogitsProcessor(2)]
    wanted = [greedy(gpt2(), prompt, COUNT, repetition_penalty=1.3, no_repeat_ngram_size=2) for prompt in inputs]
    out = decoder(draft=agreeable()).generate(
        inputs, max_new_tokens=COUNT, gamma=gamma, repetition_penalty=1.3, logits_processor=processors, eos_token_id=[]
    )
    assert [row.tolist() for row in out.tokens] == wanted
    assert out.stats.accepted > 0
    prompt = inputs[0]
    eos = greedy(gpt2(), prompt, COUNT)[1]
    least = MinNewTokensLengthLogitsProcessor(len(prompt), 7, eos)
    out = decoder(draft=agreeable()).generate(
        [prompt], max_new_tokens=COUNT, gamma=gamma, logits_processor=[least], eos_token_id=eos
    )
    assert out.tokens[0].tolist() == greedy(gpt2(), prompt, COUNT, min_new_tokens=7, eos_token_id=eos)


def test_generation_ends_at_the_context() -> None:
    out = decoder(draft=agreeable()).generate(prompts([60, 3]), max_new_tokens=10, gamma=5, eos_token_id=[])
    assert [len(row) for row in out.tokens] == [4, 10]
    assert out.finish_reasons == ("context", "length")
    assert out.tokens[0].tolist() == greedy(gpt2(), prompts([60, 3])[0], 4)


def test_a_draft_with_a_shorter_context_stops_proposing() -> None:
    out = decoder(draft=in_sybil(gpt2(seed=4, context=16))).generate(
        prompts([4]), max_new_tokens=COUNT, gamma=4, eos_token_id=[]
    )
    assert out.tokens[0].tolist() == greedy(gpt2(), prompts([4])[0], COUNT)
    assert out.stats.proposed < 4 * out.stats.rounds


def test_a_row_beyond_the_draft_s_context_does_not_shorten_its_neighbours_proposals() -> None:
    short = decoder(draft=in_sybil(gpt2(seed=4, context=16)))
    inputs, chosen = prompts([4, 15]), dict(max_new_tokens=COUNT, do_sample=True, seed=0, eos_token_id=[])
    together, alone = short.generate(inputs, **chosen), short.generate(inputs[:1], **chosen)  # type: ignore[arg-type]
    assert torch.equal(together.tokens[0], alone.tokens[0])


@pytest.mark.parametrize("vocab", [24, 40])
def test_a_draft_with_a_padded_or_shorter_vocabulary(vocab: int) -> None:
    drafted = decoder(draft=in_sybil(gpt2(seed=4, vocab=vocab)))
    inputs = prompts([4], vocab=24)
    out = drafted.generate(inputs, max_new_tokens=6, eos_token_id=[])
    assert out.tokens[0].tolist() == greedy(gpt2(), inputs[0], 6)
    sampled = drafted.generate(inputs, max_new_tokens=COUNT, do_sample=True, eos_token_id=[], seed=0)
    assert int(sampled.tokens[0].max()) < 31


def test_leaving_a_stream_early_leaves_the_decoder_as_it_was() -> None:
    drafted = decoder(draft=agreeable())
    wanted = drafted.generate(prompts([5]), max_new_tokens=COUNT).tokens[0]
    stream = drafted.stream(prompts([5]), max_new_tokens=COUNT)
    first = next(iter(stream))
    assert isinstance(first, Step)
    assert first.tokens[0] == tuple(wanted[: len(first.tokens[0])].tolist())
    stream.close()  # type: ignore[attr-defined]
    assert torch.equal(drafted.generate(prompts([5]), max_new_tokens=COUNT).tokens[0], wanted)
    assert not torch.is_inference_mode_enabled()


def test_steps_add_up() -> None:
    drafted = decoder(draft=agreeable())
    steps = list(drafted.stream(prompts([5, 2]), max_new_tokens=COUNT, gamma=3, eos_token_id=[]))
    stats = Stats.of(steps)
    assert stats.emitted == sum(len(tokens) for step in steps for tokens in step.tokens) == 2 * COUNT
    assert stats.rounds == sum(stats.accepted_in_round)
    assert stats.accepted == sum(n * rounds for n, rounds in enumerate(stats.accepted_in_round)) <= stats.proposed
    assert 0 < stats.time_to_first_token <= stats.seconds
    assert stats.tokens_per_second == pytest.approx(stats.emitted / stats.seconds)
    assert [step.finished.count("length") for step in steps][-1] == 2
    assert Stats().acceptance_rate == Stats().tokens_per_round == Stats().tokens_per_second == 0.0


class Collector:
    def __init__(self) -> None:
        self.put_tokens: list[list[int]] = []
        self.ended = False

    def put(self, tokens: Tensor) -> None:
        self.put_tokens.append(tokens.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_the_prompt_and_then_the_tokens() -> None:
    streamer, prompt = Collector(), prompts([4])[0]
    out = decoder(draft=agreeable()).generate([prompt], max_new_tokens=9, streamer=streamer)
    assert streamer.put_tokens[0] == prompt.tolist()
    assert [token for put in streamer.put_tokens[1:] for token in put] == out.tokens[0].tolist()
    assert streamer.ended
    with pytest.raises(InvalidSetting, match="2 rows"):
        decoder().generate(prompts([4, 4]), streamer=streamer)


def test_inputs_in_every_form() -> None:
    drafted = decoder(draft=agreeable(), tokenizer=letters())
    one, two = drafted.generate(["ab", "cd"], max_new_tokens=5).text
    assert drafted.generate("ab", max_new_tokens=5).text == [one]
    ids = torch.tensor([[1, 2], [3, 4]])
    assert drafted.generate(ids, max_new_tokens=5).text == [one, two]
    assert drafted.generate([ids[0], ids[1]], max_new_tokens=5).text == [one, two]
    assert drafted.generate("ab", max_new_tokens=5, num_return_sequences=2).text == [one, one]


@pytest.mark.parametrize(
    ("inputs", "chosen", "error", "named"),
    [
        ("", {}, EmptyPrompt, "0 tokens"),
        ([], {}, EmptyPrompt, "at least one prompt"),
        ("a" * 64, {}, PromptTooLong, "64 tokens .* 64: shorten it to at most 63"),
        ([torch.tensor([31])], {}, InvalidSetting, "31 to 31 .* 0 to 30"),
        ("a", {"gamma": 0}, InvalidSetting, "gamma is 0"),
        ("a", {"gamma": -3}, InvalidSetting, "gamma is -3"),
        ("a", {"max_new_tokens": 0}, InvalidSetting, "max_new_tokens is 0"),
        ("a", {"do_sample": True, "temperature": 0}, InvalidSetting, "greedy"),
        ("a", {"do_sample": True, "top_p": 0.0}, InvalidSetting, "top_p is 0.0"),
        ("a", {"top_p": 1.2}, InvalidSetting, "top_p is 1.2"),
        ("a", {"repetition_penalty": 0.0}, InvalidSetting, "repetition_penalty is 0.0"),
        ("a", {"rule": "typical"}, InvalidSetting, "'typical'"),
        ("a", {"tempreature": 1}, InvalidSetting, "tempreature.*temperature"),
        ("a", {"stop_strings": [""]}, InvalidSetting, "''"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    inputs: Any, chosen: dict[str, Any], error: type, named: str
) -> None:
    drafted = decoder(draft=agreeable(), tokenizer=letters())
    with pytest.raises(error, match=named):
        drafted.stream(inputs, **chosen)


class NothingAfter:
    """A grammar that allows no token after the end token, as constraint processors do."""

    def __init__(self, eos: int) -> None:
        self.eos = eos

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, float("-inf")) if int(ids[0, -1]) == self.eos else scores


@pytest.mark.parametrize("do_sample", [False, True])
def test_what_lies_beyond_an_end_token_is_never_judged(do_sample: bool) -> None:
    inputs = prompts([3, 5])
    eos = greedy(gpt2(), inputs[0], COUNT)[2]
    chosen: dict[str, Any] = dict(max_new_tokens=COUNT, eos_token_id=eos, logits_processor=[NothingAfter(eos)], seed=0)
    out = decoder(draft=in_sybil(gpt2())).generate(inputs, gamma=6, do_sample=do_sample, **chosen)
    if not do_sample:
        assert [row.tolist() for row in out.tokens] == [greedy(gpt2(), p, COUNT, eos_token_id=eos) for p in inputs]
    for row in out.tokens:
        assert eos not in row[:-1]


def test_none_is_the_default_and_wrong_types_are_named() -> None:
    drafted = decoder(draft=agreeable(), tokenizer=letters())
    plain = drafted.generate("ab", max_new_tokens=5).text
    nothing = dict(temperature=None, logits_processor=None, stopping_criteria=None, top_k=None, gamma=None)
    assert drafted.generate("ab", max_new_tokens=5, **nothing).text == plain
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("ab", {"temperature": "0.8"}, "temperature is '0.8'"),
        ("ab", {"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ("ab", {"seed": 1.5}, "seed is 1.5"),
        ({"input_ids": torch.ones(1, 2)}, {}, "mapping"),
        (torch.tensor([1, 2]), {}, "1-d LongTensors"),
        (torch.ones(1, 2), {}, "float32"),
        ([1, 2], {}, "holds 1"),
    ]
    for inputs, chosen, named in wrong:
        with pytest.raises(InvalidSetting, match=named):
            drafted.generate(inputs, **chosen)


def test_rotary_scalings_that_look_at_the_longest_row_end_the_context_where_they_set_in() -> None:
    config = copy.deepcopy(llama().config)
    config.rope_parameters = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    model = type(llama())(config).double().eval()
    assert foreign(model).context == 16
    out = decoder(foreign(model)).generate(prompts([9]), max_new_tokens=COUNT, eos_token_id=[])
    assert out.finish_reasons == ("context",)
    assert foreign(llama()).context == 64


def test_fixed_shapes_give_the_same_tokens_and_a_cache_is_used_again() -> None:
    target, draft = fixed(gpt2()), fixed(perturbed(gpt2(), 0.05))
    rows = prompts([3, 40, 17])
    wanted = decoder().generate(rows, max_new_tokens=COUNT, gamma=3, eos_token_id=[])
    stores = set()
    for _ in range(2):
        cache = target.new_cache(3, 70)
        assert isinstance(cache, StaticCache)
        stores.add(id(cache.store))
        del cache
        found = decoder(target, draft).generate(rows, max_new_tokens=COUNT, gamma=3, eos_token_id=[])
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
    assert len(stores) == 1


def test_text_needs_a_tokenizer() -> None:
    for chosen in ({"inputs": "a"}, {"inputs": prompts([2]), "stop_strings": "a"}):
        with pytest.raises(InvalidSetting, match="no tokenizer"):
            decoder().generate(**chosen)  # type: ignore[arg-type]


def test_nan_logits_are_an_error_not_a_token() -> None:
    broken = in_sybil(perturbed(gpt2(), 0.0))  # a copy
    broken.final_norm.weight[3] = float("nan")
    for draft in (None, agreeable()):
        for chosen in ({"do_sample": True}, {}, {"stop_strings": "a"}):
            with pytest.raises(NumericalFailure, match="NaN"):
                decoder(broken, draft, tokenizer=letters()).generate(prompts([3]), **chosen)
    # a draft of no numbers proposes nothing that is kept
    out = decoder(in_sybil(gpt2()), broken).generate(
        prompts([3]), do_sample=True, max_new_tokens=COUNT, eos_token_id=[]
    )
    assert len(out.tokens[0]) == COUNT
    assert out.stats.accepted == 0


def test_a_cache_used_again_holds_nothing_of_a_broken_generation() -> None:
    target = fixed(perturbed(gpt2(), 0.0))  # a copy
    wanted = decoder().generate(prompts([3]), max_new_tokens=COUNT, eos_token_id=[]).tokens[0]
    kept = target.token_embedding.clone()
    target.token_embedding[:] = float("nan")
    with pytest.raises(NumericalFailure):
        decoder(target).generate(prompts([40]), max_new_tokens=COUNT, eos_token_id=[])
    target.token_embedding.copy_(kept)
    assert decoder(target).generate(prompts([3]), max_new_tokens=COUNT, eos_token_id=[]).tokens[0].equal(wanted)


def test_a_cache_out_of_step_is_noticed() -> None:
    class Lagging(ModelDrafter):
        def propose(self, context: Context, gamma: int) -> Proposal:
            context.lengths = context.lengths + 1  # a planted fault: the loop's own state is moved
            return Proposal.nothing(len(context.lengths))

        def observe(self, outcome: Outcome) -> None: ...

    with pytest.raises(CacheOutOfStep, match="defect"):
        Decoder(in_sybil(gpt2()), partial(Lagging, in_sybil(gpt2()))).generate(prompts([3]), gamma=4)


def test_models_passed_as_objects() -> None:
    loaded = sybil.load(gpt2(), draft=perturbed(gpt2(), 0.05), tokenizer=letters())
    out = loaded.generate("abc", max_new_tokens=COUNT, eos_token_id=[])
    assert out.tokens[0].tolist() == greedy(gpt2(), torch.tensor([1, 2, 3]), COUNT)
    assert out.lossless


def test_a_sliding_window_is_exact_and_a_mask_as_long_as_the_context_refused_in_batches() -> None:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=6, max_position_embeddings=64, initializer_range=0.4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = MistralForCausalLM(config).double().eval()
    neo = GPTNeoConfig(
        vocab_size=31, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="2 rows"):
        decoder(foreign(GPTNeoForCausalLM(neo).double())).generate(prompts([3, 12]))
    drafted = decoder(foreign(model), foreign(llama(seed=1, layers=1)))
    for prompt in prompts([3, 12]):
        out = drafted.generate([prompt], max_new_tokens=COUNT, gamma=3, eos_token_id=[])
        assert out.tokens[0].tolist() == greedy(model, prompt, COUNT)


def test_processors_that_remember_or_count_rows_are_refused_where_they_would_be_wrong() -> None:
    from transformers import PrefixConstrainedLogitsProcessor, SynthIDTextWatermarkLogitsProcessor

    stateful = SynthIDTextWatermarkLogitsProcessor(3, [1, 2], 100, 0, 1, torch.device("cpu"))
    with pytest.raises(InvalidSetting, match=r"SynthID.*remembers"):
        decoder().generate(prompts([3]), logits_processor=[stateful])
    by_row = PrefixConstrainedLogitsProcessor(lambda row, _: [row + 1], 1)
    with pytest.raises(InvalidSetting, match="2 rows"):
        decoder().generate(prompts([3, 4]), logits_processor=[by_row])
    assert set(decoder().generate(prompts([3]), logits_processor=[by_row], max_new_tokens=5).tokens[0].tolist()) == {1}


def test_a_factory_says_its_models_and_goes_over_others() -> None:
    target, draft, other = in_sybil(gpt2()), in_sybil(gpt2(seed=1)), in_sybil(gpt2(seed=2))
    factory = DraftModel(draft)
    assert (factory.models, DraftLookup().models) == ((draft,), ())
    assert factory.over(other).models == (other,)
    assert DraftLookup().over() == DraftLookup()
    assert [Decoder(target, each).models for each in (None, DraftLookup(), factory)] == [
        (target,), (target,), (target, draft),
    ]  # fmt: skip
    assert Decoder(target, factory).without_draft().models == (target,)
