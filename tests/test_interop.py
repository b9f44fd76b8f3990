"""model.generate(custom_generate=sybil.custom_generate): the tokens that transformers' own loop gives, or its law."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import foreign, gpt2, greedy, in_sybil, letters, llama, prompts, windowed
from torch import Tensor
from transformers import (
    DynamicCache,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    StopStringCriteria,
    SuppressTokensLogitsProcessor,
    SynthIDTextWatermarkingConfig,
    T5Config,
    T5ForConditionalGeneration,
    TypicalLogitsWarper,
    WatermarkingConfig,
)
from transformers.generation import EosTokenCriteria, GenerateDecoderOnlyOutput

from sybil import Decoder, custom_generate
from sybil.drafting import DraftModel
from sybil.errors import InvalidSetting, PromptTooLong, SybilError, UnsupportedModel, VocabularyMismatch
from sybil.interop.rows import Rows

COUNT, VOCAB, ALPHA = 18, 31, 1e-8
LENGTHS = [3, 9, 6]


def nearby(model: PreTrainedModel, noise: float = 0.05) -> PreTrainedModel:
    """A draft that often agrees: the model with noise on its weights."""
    near = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in near.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return near


TARGETS = {"gpt2": gpt2(seed=4), "llama": llama(), "windowed": windowed()}  # of those that don't fall into loops
DRAFTS = {family: nearby(model) for family, model in TARGETS.items()}
GPT2, NEAR_GPT2 = TARGETS["gpt2"], DRAFTS["gpt2"]


def padded(lengths: list[int] = LENGTHS, pad: int = 0) -> dict[str, Tensor]:
    """Left-padded input_ids and attention_mask."""
    rows = prompts(lengths)
    width = max(lengths)
    ids = torch.stack([torch.cat([torch.full((width - len(row),), pad), row]) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def plain(model: PreTrainedModel, inputs: dict[str, Tensor], **settings: Any) -> Any:
    settings = {"max_new_tokens": COUNT, "pad_token_id": 0, "eos_token_id": None, "do_sample": False, **settings}
    return model.generate(**inputs, **settings)


def ours(model: PreTrainedModel, inputs: dict[str, Tensor], draft: Any = None, **settings: Any) -> Any:
    settings = {"draft": draft, "custom_generate": custom_generate, **settings}
    return plain(model, inputs, **settings)


class Keyed(LogitsProcessor):
    """Bans two tokens in five, chosen by a hash of the whole prefix, padding included."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, ids in enumerate(input_ids.tolist()):
            generator = torch.Generator().manual_seed(hash(tuple(ids)) % 2**31)
            banned = torch.rand(scores.shape[-1], generator=generator) < 0.4
            scores = torch.where(banned & (torch.arange(len(scores)) == row)[:, None], float("-inf"), scores)
        return scores


class Favourites(LogitsProcessor):
    """Holds something for each row of the batch."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = torch.tensor(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert len(input_ids) == len(self.tokens)
        turn = self.tokens + input_ids.sum(1) % 2
        return scores.scatter_add(1, turn[:, None], torch.full_like(scores[:, :1], 2.0))


def allowed(row: int, ids: Tensor) -> list[int]:
    return [token for token in range(VOCAB) if (token + row + int(ids[-1])) % 3]


# what model.generate makes its processors of; every one changes the output, as the test asserts
PROCESSORS: dict[str, Callable[[], dict[str, Any]]] = {
    "repetition_penalty": lambda: dict(repetition_penalty=1.6),
    "no_repeat_ngram": lambda: dict(no_repeat_ngram_size=2),
    "encoder_no_repeat_ngram": lambda: dict(encoder_no_repeat_ngram_size=1),
    "encoder_repetition_penalty": lambda: dict(encoder_repetition_penalty=0.5),
    "min_length": lambda: dict(min_length=18, eos_token_id=[3, 16, 18, 24]),
    "min_new_tokens": lambda: dict(min_new_tokens=9, eos_token_id=[3, 16, 18, 24]),
    "bad_words": lambda: dict(bad_words_ids=[[8], [3, 3], [16, 16], [24, 24], [1, 18]]),
    "sequence_bias": lambda: dict(sequence_bias=[[[5], 2.0], [[3], -9.0], [[5, 16], 9.0]]),
    "forced_eos": lambda: dict(forced_eos_token_id=5),
    "suppress": lambda: dict(suppress_tokens=[16, 24, 4]),
    "begin_suppress": lambda: dict(begin_suppress_tokens=list(range(0, 31, 2))),
    "exponential_decay": lambda: dict(exponential_decay_length_penalty=(3, 1.5), eos_token_id=7),
    "prefix_allowed": lambda: dict(prefix_allowed_tokens_fn=allowed),
    "watermark": lambda: dict(watermarking_config=WatermarkingConfig(bias=4.0)),
    "remove_invalid": lambda: dict(remove_invalid_values=True, bad_words_ids=[[16], [24], [3, 3]]),
    "renormalize": lambda: dict(renormalize_logits=True, repetition_penalty=1.6),
    "typical": lambda: dict(logits_processor=LogitsProcessorList([TypicalLogitsWarper(0.3)])),
    "whole_prefix": lambda: dict(logits_processor=LogitsProcessorList([Keyed()])),
    "per_row": lambda: dict(logits_processor=LogitsProcessorList([Favourites([3, 8, 21])])),
    "several": lambda: dict(
        repetition_penalty=1.2, no_repeat_ngram_size=3, min_new_tokens=5, eos_token_id=[3, 18], suppress_tokens=[4],
        logits_processor=[Keyed(), Favourites([3, 8, 21])], prefix_allowed_tokens_fn=allowed,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_greedily(name: str) -> None:
    inputs, chosen, changed = padded(), PROCESSORS[name], False
    for family, gammas in (("gpt2", (1, 4)), ("llama", (None, 3))):
        model = TARGETS[family]
        wanted = plain(model, inputs, **chosen())
        changed |= not torch.equal(wanted, plain(model, inputs, eos_token_id=chosen().get("eos_token_id")))
        for gamma in gammas:
            assert torch.equal(ours(model, inputs, DRAFTS[family] if gamma else None, gamma=gamma, **chosen()), wanted)
    assert changed, "the processor says nothing here"


@pytest.mark.parametrize("gamma", [1, 2, 3, 4, 5])
def test_rows_with_and_without_padding(gamma: int) -> None:
    for family, lengths in (("gpt2", [4]), ("gpt2", [1, 12, 7, 7]), ("llama", [1, 12, 7, 7]), ("windowed", [3, 11])):
        model, draft, inputs = TARGETS[family], DRAFTS[family], padded(lengths)
        first = plain(model, inputs)[0, max(lengths) :].tolist()
        for eos in (None, [first[2], first[5]])[gamma % 2 :]:
            wanted = plain(model, inputs, eos_token_id=eos, pad_token_id=30)
            assert torch.equal(ours(model, inputs, draft, gamma=gamma, eos_token_id=eos, pad_token_id=30), wanted)
    row = padded([9], pad=3)  # a single row with padding, and a mask that transformers makes up
    row["input_ids"][0, :4], row["attention_mask"][0, :4] = 3, 0
    assert torch.equal(ours(GPT2, row, NEAR_GPT2, gamma=gamma), plain(GPT2, row))
    bare = {"input_ids": padded(pad=30)["input_ids"]}
    assert torch.equal(ours(GPT2, bare, pad_token_id=30), plain(GPT2, bare, pad_token_id=30))


def test_forced_bos_follows_a_prompt_of_one_token() -> None:
    inputs = padded([1, 1])
    wanted = plain(GPT2, inputs, forced_bos_token_id=9)
    assert wanted[:, 1].tolist() == [9, 9]
    assert torch.equal(ours(GPT2, inputs, NEAR_GPT2, forced_bos_token_id=9), wanted)


def test_a_processor_shown_the_wrong_prefix_or_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above can fail."""
    shown = Rows.shown

    def differs(family: str, name: str) -> bool:
        model, chosen = TARGETS[family], PROCESSORS[name]
        found = ours(model, padded(), DRAFTS[family], gamma=3, **chosen())
        return not torch.equal(found, plain(model, padded(), **chosen()))

    def short(self: Any, row: int, ids: Tensor) -> Tensor:
        return shown(self, row, ids)[:, :-1]

    def other(self: Any, row: int, ids: Tensor) -> Tensor:
        return shown(self, (row + 1) % len(self.padding), ids)

    def unpadded(self: Any, row: int, ids: Tensor) -> Tensor:
        return ids

    def wrong_row(self: Any, processor: Any, row: int, ids: Tensor, scores: Tensor) -> Tensor:
        return processed(self, processor, (row + 1) % len(self.padding), ids, scores)

    processed = Rows.processed
    faults = {
        short: ["whole_prefix", "no_repeat_ngram", "bad_words"],
        other: ["whole_prefix"],
        unpadded: ["whole_prefix", "min_length", "forced_eos"],
        wrong_row: ["per_row", "prefix_allowed", "repetition_penalty"],
    }
    for fault, names in faults.items():
        with monkeypatch.context() as patched:
            patched.setattr(Rows, "processed" if fault is wrong_row else "shown", fault)
            for name in names:
                assert differs("gpt2", name) or differs("llama", name), (fault.__name__, name)


class EndsInSum(StoppingCriteria):
    """Looks at the whole sequence, padding included; one answer a row."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return (input_ids.sum(1) % 7 == 0) & (input_ids.shape[1] > 14)


class Quota(StoppingCriteria):
    """Holds something for each row, and ends in tokens it counts."""

    def __init__(self, quota: list[int]) -> None:
        self.quota = torch.tensor(quota)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return (input_ids > 15).sum(1) >= self.quota


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=letters(), pad_token="!")


CRITERIA: dict[str, Callable[[], list[StoppingCriteria]]] = {
    "whole_sequence": lambda: [EndsInSum()],
    "per_row": lambda: [Quota([8, 12, 9])],
    "stop_string": lambda: [StopStringCriteria(tokenizer(), [letters().decode([3, 16]), letters().decode([24, 24])])],
    "max_length": lambda: [MaxLengthCriteria(13)],
    "eos": lambda: [EosTokenCriteria([16, 24])],
    "both": lambda: [EndsInSum(), Quota([9, 9, 12])],
}


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_are_asked_after_every_token(name: str) -> None:
    inputs, ended = padded(), set()
    for family in ("gpt2", "llama"):
        for eos, gamma in ((30, 1), ([22, 29], 4)):
            wanted = plain(TARGETS[family], inputs, stopping_criteria=CRITERIA[name](), eos_token_id=eos)
            ended.add(wanted.shape[1])
            chosen = dict(stopping_criteria=CRITERIA[name](), eos_token_id=eos, gamma=gamma)
            assert torch.equal(ours(TARGETS[family], inputs, DRAFTS[family], **chosen), wanted)
    assert ended != {9 + COUNT}, "the criterion says nothing here"


def test_limits() -> None:
    inputs = padded()
    for chosen in (dict(max_length=14, max_new_tokens=None), dict(max_new_tokens=1), dict(max_time=0.0)):
        wanted = plain(GPT2, inputs, **chosen)
        assert torch.equal(ours(GPT2, inputs, NEAR_GPT2, **chosen), wanted)
        assert wanted.shape[1] < 15
    with pytest.warns(UserWarning, match="default `max_length`"):
        assert ours(GPT2, inputs, NEAR_GPT2, max_new_tokens=None).shape[1] == 9 + 20


def test_a_row_that_a_criterion_ended_is_padded_also_without_an_end_token() -> None:
    """Where transformers, lacking an end token, goes on writing in rows that have ended."""
    inputs = padded()
    found = ours(GPT2, inputs, NEAR_GPT2, stopping_criteria=CRITERIA["per_row"](), eos_token_id=None, pad_token_id=30)
    free = plain(GPT2, inputs)
    for row, wanted in zip(found, free, strict=True):
        kept = int((row != 30).sum())
        assert torch.equal(row[:kept], wanted[:kept])
        assert bool((row[kept:] == 30).all())
    with pytest.raises(InvalidSetting, match=r"3 rows .* pad_token_id"):
        ours(GPT2, inputs, stopping_criteria=CRITERIA["per_row"](), eos_token_id=None, pad_token_id=None)


class Collector:
    def __init__(self) -> None:
        self.puts: list[Any] = []

    def __len__(self) -> int:
        return 0  # a streamer may well be an empty list of its own

    def put(self, tokens: Tensor) -> None:
        self.puts.append((tokens.shape, tokens.tolist()))

    def end(self) -> None:
        self.puts.append("end")


def test_a_streamer_hears_what_transformers_would_tell_it() -> None:
    inputs, mine, theirs = padded([5]), Collector(), Collector()
    plain(GPT2, inputs, streamer=theirs)
    streaming = partial(custom_generate, draft=NEAR_GPT2, streamer=mine)
    plain(GPT2, inputs, custom_generate=streaming, gamma=4)
    assert mine.puts == theirs.puts
    with pytest.raises(InvalidSetting, match="3 rows"):
        plain(GPT2, padded(), custom_generate=streaming)


def test_a_callable_that_knows_its_draft_needs_nobody_s_stack() -> None:
    """Where no frame of generate() is above it, and another generate()'s is."""
    inputs, calls, draft = padded([5]), [], copy.deepcopy(NEAR_GPT2)
    wanted = plain(GPT2, inputs)
    draft.register_forward_hook(lambda *_: calls.append(1))

    def elsewhere(*arguments: Any, **keywords: Any) -> Any:
        with ThreadPoolExecutor() as pool:
            return pool.submit(partial(custom_generate, draft=draft, gamma=4), *arguments, **keywords).result()

    assert torch.equal(plain(GPT2, inputs, custom_generate=elsewhere), wanted)
    assert calls

    def inner(model: Any, input_ids: Tensor, **keywords: Any) -> Any:
        """A generate() of the same model inside its generate(): what the outer was given is none of the inner's."""
        return plain(model, inputs, custom_generate=custom_generate, draft=None)

    calls.clear()
    assert torch.equal(plain(GPT2, inputs, custom_generate=inner, assistant_model=draft), wanted)
    assert not calls


def test_a_draft_that_does_not_come_through_is_said() -> None:
    """transformers keeps assistant_model from a callable: decoding plainly in silence would be slow for no reason."""
    for given in ({"assistant_model": NEAR_GPT2}, {}):
        with pytest.raises(InvalidSetting, match=r"no draft: give generate\(\) draft=.* or draft=None"):
            plain(GPT2, padded(), custom_generate=custom_generate, **given)


def test_a_model_in_training_mode_is_refused_and_a_draft_is_left_so() -> None:
    with pytest.raises(InvalidSetting, match="GPT2LMHeadModel is in training mode"):
        ours(copy.deepcopy(GPT2).train(), padded())
    draft = copy.deepcopy(NEAR_GPT2).train()
    assert torch.equal(ours(GPT2, padded(), draft), plain(GPT2, padded()))
    assert all(part.training for part in draft.modules())


def test_the_draft_is_used_and_gamma_with_it() -> None:
    target, inputs = copy.deepcopy(GPT2), padded([5])
    wanted, calls = plain(GPT2, inputs), []
    target.register_forward_hook(lambda *_: calls.append(1))

    def forwards(**given: Any) -> int:
        calls.clear()
        assert torch.equal(plain(target, inputs, custom_generate=custom_generate, **given), wanted)
        return len(calls)

    alone = forwards(draft=None)
    assert alone == 1 + COUNT  # the prompt but for its last token, then a token at a time
    drafted, short = forwards(draft=NEAR_GPT2, gamma=4), forwards(draft=NEAR_GPT2, gamma=1)
    assert drafted == forwards(draft=NEAR_GPT2, gamma=4, rule="token")
    assert drafted < short < alone
    assert short <= forwards(draft=NEAR_GPT2) <= alone  # gamma auto, where nothing is said


def test_several_sequences_for_a_prompt() -> None:
    inputs = padded([4, 6])
    chosen = dict(num_return_sequences=2, do_sample=True, custom_generate=custom_generate, draft=NEAR_GPT2)
    torch.manual_seed(0)
    found = plain(GPT2, inputs, **chosen)
    assert found.shape[0] == 4
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[:, :6], inputs["input_ids"].repeat_interleave(2, 0))
    again = plain(GPT2, inputs, **chosen)
    assert not torch.equal(found, again)
    torch.manual_seed(0)
    assert torch.equal(plain(GPT2, inputs, **chosen), found)
    torch.manual_seed(1)
    seeded = [plain(GPT2, inputs, seed=seed, **chosen) for seed in (5, 5, 6)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    before = torch.get_rng_state()
    ours(GPT2, inputs, NEAR_GPT2)
    assert torch.equal(torch.get_rng_state(), before), "greedy decoding drew a seed"


def test_output_as_a_dictionary() -> None:
    out = ours(GPT2, padded(), NEAR_GPT2, return_dict_in_generate=True)
    assert isinstance(out, GenerateDecoderOnlyOutput)
    assert torch.equal(out.sequences, plain(GPT2, padded()))
    assert torch.equal(ours(GPT2, padded(), output_scores=True), out.sequences)  # says nothing without a dictionary


def test_the_context_ends_the_output() -> None:
    """Each row where its own tokens fill it, whatever padding stands before them."""
    with pytest.warns(UserWarning, match="context of 64 tokens"):
        found = ours(GPT2, padded([60, 50]), NEAR_GPT2, max_new_tokens=10)
    for row, (length, count) in enumerate(((60, 4), (50, 10))):
        prompt = padded([60, 50])["input_ids"][row : row + 1, 60 - length :]
        wanted = plain(GPT2, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}, max_new_tokens=count)
        assert torch.equal(found[row, 60 - length : 60 + count], wanted[0])


REFUSED: dict[str, tuple[dict[str, Any], type[SybilError], str]] = {
    "beams": (dict(num_beams=2), InvalidSetting, "beam_search"),
    "lookup": (dict(prompt_lookup_num_tokens=3), InvalidSetting, "assisted_generation"),
    "scores": (dict(output_scores=True, return_dict_in_generate=True), InvalidSetting, "output_scores"),
    "attentions": (dict(output_attentions=True, return_dict_in_generate=True), InvalidSetting, "output_attentions"),
    "cache": (dict(past_key_values=DynamicCache()), InvalidSetting, "past_key_values"),
    "types": (dict(token_type_ids=torch.zeros(3, 9, dtype=torch.int64)), InvalidSetting, "token_type_ids"),
    "embeds": (dict(inputs_embeds=torch.zeros(3, 9, 16).double()), InvalidSetting, "inputs_embeds"),
    "positions": (dict(position_ids=torch.arange(9).expand(3, -1)), InvalidSetting, "position_ids"),
    "guidance": (dict(guidance_scale=1.5), InvalidSetting, "UnbatchedClassifierFreeGuidanceLogitsProcessor .*leave"),
    "synthid": (
        dict(watermarking_config=SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3)),
        InvalidSetting, "SynthIDTextWatermarkLogitsProcessor .*leave",
    ),
    "gamma": (dict(gamma=0), InvalidSetting, "gamma is 0"),
    "rule": (dict(rule="typical"), InvalidSetting, "'typical'"),
    "vocabulary": (dict(draft=gpt2(vocab=40)), VocabularyMismatch, "31 tokens .* 40: choose"),
    "no model": (dict(draft="gpt2"), InvalidSetting, "draft is 'gpt2': give a transformers model"),
    "no transformers model": (dict(draft=torch.nn.Linear(2, 2)), UnsupportedModel, "of type Linear"),
    "no streamer": (dict(custom_generate=partial(custom_generate, streamer=5)), InvalidSetting, "streamer is 5: use"),
    "a class as streamer": (
        dict(custom_generate=partial(custom_generate, streamer=list)), InvalidSetting, "streamer is <class",
    ),
    "no decoder": (dict(draft=gpt2().transformer), UnsupportedModel, "GPT2Model is not a decoder-only"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")  # transformers' own, about what is refused here
def test_what_the_loop_does_not_do_is_refused(name: str) -> None:
    chosen, error, named = REFUSED[name]
    with pytest.raises(error, match=named):
        ours(gpt2(), padded(), **chosen)


def test_prompts_and_models_that_are_refused() -> None:
    right = padded()
    right["attention_mask"] = right["attention_mask"].flip(1)
    nothing = padded()
    nothing["attention_mask"][0] = 0
    for inputs in (right, nothing):
        with pytest.raises(InvalidSetting, match="pad on the left"):
            ours(gpt2(), inputs, pad_token_id=None)
    with pytest.raises(PromptTooLong, match="64"):
        ours(gpt2(), padded([64]))
    config = T5Config(
        vocab_size=31, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    with pytest.raises(UnsupportedModel, match="T5ForConditionalGeneration is not a decoder-only"):
        ours(T5ForConditionalGeneration(config).eval(), padded())
    neo = GPTNeoConfig(
        vocab_size=31, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    counting = GPTNeoForCausalLM(neo).double().eval()
    with pytest.raises(UnsupportedModel, match="3 rows"):
        ours(counting, padded())
    row = padded([9])
    assert torch.equal(ours(counting, row, NEAR_GPT2), plain(counting, row))


def test_padded_vocabularies_are_no_mismatch() -> None:
    target, draft = gpt2(seed=4, vocab=64), gpt2(seed=4, vocab=60)
    inputs = padded()
    assert torch.equal(ours(target, inputs, draft), plain(target, inputs))
    assert torch.equal(ours(draft, inputs, target), plain(draft, inputs))
    with pytest.raises(VocabularyMismatch):
        ours(target, inputs, gpt2(vocab=4096, width=4, layers=1))


def test_importing_sybil_does_not_import_transformers() -> None:
    code = "import sys, sybil; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# sampling: what transformers' own step gives after every prefix is the null hypothesis

LAW = gpt2(seed=5, vocab=4, layers=2, width=8)
NEAR_LAW = nearby(LAW, 0.12)
ROWS, PROMPT = 1000, torch.tensor([[1, 3, 2]])
WARPERS: dict[str, dict[str, Any]] = {
    "temperature_and_top_k": dict(temperature=1.7, top_k=3),
    "top_p_and_min_p": dict(top_p=0.9, min_p=0.2, top_k=0),
    "typical_p": dict(typical_p=0.7, top_k=0),
    "cutoffs": dict(epsilon_cutoff=0.08, eta_cutoff=0.2, top_k=0),
    "top_h": dict(top_h=0.6, top_k=0),
    "processed": dict(repetition_penalty=1.5, sequence_bias=[[[2, 1], 1.5]], top_k=0, renormalize_logits=True),
}


def law(**settings: Any) -> Tensor:
    """(4, 4, 4): the joint distribution of three tokens, from the scores that transformers samples from."""
    joint = torch.ones(1, dtype=torch.float64)
    for depth in range(3):
        prefixes = torch.tensor(list(itertools.product(range(4), repeat=depth)), dtype=torch.int64).view(
            4**depth, depth
        )
        ids = torch.cat([PROMPT.expand(4**depth, -1), prefixes], 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        out = plain(
            LAW, inputs, max_new_tokens=1, do_sample=True, output_scores=True, return_dict_in_generate=True, **settings
        )
        joint = (joint[:, None] * out.scores[0].double().softmax(-1)).flatten()
    return joint.view(4, 4, 4)


def counted(**settings: Any) -> Tensor:
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    tokens = plain(
        LAW, inputs, max_new_tokens=3, do_sample=True, num_return_sequences=ROWS, seed=11, draft=NEAR_LAW, gamma=2,
        custom_generate=custom_generate, **settings,
    )[:, 3:]  # fmt: skip
    return torch.bincount(tokens[:, 0] * 16 + tokens[:, 1] * 4 + tokens[:, 2], minlength=64).view(4, 4, 4)


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Pearson's chi-square, the rarest cells pooled to an expected 5; 0 where something impossible was counted."""
    if int(counts[expected == 0].sum()):
        return 0.0
    order = expected.flatten().argsort()
    found, due = counts.flatten()[order].double().numpy(), expected.flatten()[order].double().numpy()
    pooled = int(np.searchsorted(due.cumsum(), 5.0)) + 1
    found = np.concatenate([[found[:pooled].sum()], found[pooled:]])
    due = np.concatenate([[due[:pooled].sum()], due[pooled:]])
    return float(stats.chisquare(found, due).pvalue)


@pytest.mark.parametrize("name", WARPERS)
def test_sampled_tokens_have_transformers_law(name: str) -> None:
    """Null hypothesis: three tokens have the joint distribution of transformers' own steps. 1,000 independent
    sequences, a fixed seed; false alarms 1e-8 for each of 6 tests. With at most 63 degrees of freedom a root mean
    square relative error of 38 % over the cells (noncentrality 141) is seen with power 0.99. The planted fault: the
    same counts are not those of the unwarped distribution."""
    counts = counted(**WARPERS[name])
    assert p_value(counts, law(**WARPERS[name]) * ROWS) > ALPHA
    assert p_value(counts, law(top_k=0) * ROWS) < ALPHA


def test_a_draft_that_lies_about_its_law_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the draft's probabilities are not those its tokens were drawn from."""
    from sybil.drafting import ModelDrafter, Proposal

    propose = ModelDrafter.propose

    def lying(self: Any, context: Any, gamma: int) -> Proposal:
        proposal = propose(self, context, gamma)
        assert proposal.probs is not None
        return Proposal(proposal.tokens, torch.full_like(proposal.probs, 0.25), proposal.counts)

    monkeypatch.setattr(ModelDrafter, "propose", lying)
    assert p_value(counted(**WARPERS["temperature_and_top_k"]), law(**WARPERS["temperature_and_top_k"]) * ROWS) < ALPHA


# Sybil's own face, with transformers' processors

OWN: dict[str, tuple[Callable[[int], LogitsProcessor], dict[str, Any]]] = {
    "repetition_penalty": (lambda _: RepetitionPenaltyLogitsProcessor(1.6), dict(repetition_penalty=1.6)),
    "no_repeat_ngram": (lambda _: NoRepeatNGramLogitsProcessor(2), dict(no_repeat_ngram_size=2)),
    "min_length": (lambda _: MinLengthLogitsProcessor(14, [3, 16, 18, 24]), dict(min_length=14)),
    "min_new_tokens": (
        lambda length: MinNewTokensLengthLogitsProcessor(length, 7, [3, 16, 18, 24]), dict(min_new_tokens=7),
    ),
    "bad_words": (lambda _: NoBadWordsLogitsProcessor([[8], [3, 3]]), dict(bad_words_ids=[[8], [3, 3]])),
    "sequence_bias": (
        lambda _: SequenceBiasLogitsProcessor([[[5], 2.0], [[3], -9.0]]), dict(sequence_bias=[[[5], 2.0], [[3], -9.0]]),
    ),
    "suppress": (lambda _: SuppressTokensLogitsProcessor([16, 24, 4]), dict(suppress_tokens=[16, 24, 4])),
    "typical": (lambda _: TypicalLogitsWarper(0.3), dict(logits_processor=[TypicalLogitsWarper(0.3)])),
    "whole_prefix": (lambda _: Keyed(), dict(logits_processor=[Keyed()])),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_processors_of_a_decoder(name: str) -> None:
    make, chosen = OWN[name]
    eos = [3, 16, 18, 24] if name.startswith("min") else []
    inputs = prompts(LENGTHS)
    wanted = [greedy(GPT2, prompt, COUNT, **chosen, eos_token_id=eos or None) for prompt in inputs]
    assert wanted != [greedy(GPT2, prompt, COUNT, eos_token_id=eos or None) for prompt in inputs]
    batches = [[place] for place in range(3)] if name == "min_new_tokens" else [[0, 1, 2]]
    for wrapped, gamma in [*((in_sybil, gamma) for gamma in range(1, 6)), (foreign, 3)]:
        decoder = Decoder(wrapped(GPT2), DraftModel(wrapped(NEAR_GPT2)))
        for batch in batches:
            processors = LogitsProcessorList([make(LENGTHS[batch[0]])])
            out = decoder.generate(
                [inputs[place] for place in batch], max_new_tokens=COUNT, gamma=gamma, logits_processor=processors,
                eos_token_id=eos,
            )  # fmt: skip
            assert [row.tolist() for row in out.tokens] == [wanted[place] for place in batch]
