"""Random models of published shapes, and a draft that replays its target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sybil.decoding import Decoder
from sybil.errors import InvalidSetting
from sybil.measuring.workload import SHAPES, WORKLOADS, RandomModel, Replay, SelfReplay, record, token_rate, workload
from sybil.models import Model
from sybil.models.storage import Rounding

CPU = torch.device("cpu")
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
}
SMALL = {"vocab_size": 97, "max_position_embeddings": 256, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 64}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 97, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "llama": {**SMALL, "num_key_value_heads": 2},
    "gpt_neox": SMALL,
}


def tiny(kind: str = "gpt2", name: str = "tiny") -> RandomModel:
    return RandomModel(name, {"model_type": kind, **TINY[kind]})


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_published_numbers_of_parameters(name: str) -> None:
    shape = SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape.config))
    assert shape.parameters == model.num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("kind", TINY)
def test_the_twin_says_the_same(kind: str) -> None:
    model = tiny(kind)
    ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))
    twin, ours = model.twin(torch.float32, CPU), model.build(torch.float32, CPU)
    assert model.parameters == twin.num_parameters()
    with torch.no_grad():
        wanted = twin(input_ids=ids).logits
    assert wanted.std() > 0.5  # logits that differ: a mistake would show
    assert torch.allclose(ours.forward(ids, ours.new_cache(2, 20)), wanted, atol=1e-4)


def test_weights_are_their_names_and_no_others() -> None:
    ids = torch.arange(20)[None]

    def logits(model: RandomModel) -> Tensor:
        built = model.build(torch.float32, CPU)
        return built.forward(ids, built.new_cache(1, 20))

    assert torch.equal(logits(tiny()), logits(tiny()))
    assert not torch.allclose(logits(tiny()), logits(tiny(name="other")))


def test_weights_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    stored = RandomModel._stored

    def noting(self: RandomModel, ours: str, theirs: str, size: tuple[int, ...]) -> Tensor:
        made.append(theirs)
        return stored(self, ours, theirs, size)

    monkeypatch.setattr(RandomModel, "_stored", noting)
    tiny("opt").build(torch.float32, CPU)
    assert len(made) == len(set(made)) > 20  # each once: asking whether there is a bias makes none


class Counted:
    """A model that counts its forwards."""

    def __init__(self, model: Model) -> None:
        self.model, self.forwards = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, cache: Any) -> Tensor:
        self.forwards += 1
        return self.model.forward(tokens, cache)


@pytest.mark.parametrize(("acceptance", "gamma"), [(0.75, 4), (0.3, 4), (0.9, 2), (0.5, 7)])
def test_a_replay_is_real_and_accepts_what_was_dialled(acceptance: float, gamma: int) -> None:
    target, draft = tiny().build(torch.float32, CPU), Counted(tiny(name="draft").build(torch.int8, CPU))
    prompts = [torch.arange(start, start + length) for start, length in ((1, 4), (2, 9), (3, 6))]
    scripts = record(target, prompts, 120, acceptance, gamma)
    decoder = Decoder(target, Replay(draft, scripts))
    accepted = proposed = rounds = 0
    for prompt in prompts:
        plain = decoder.without_draft().generate([prompt], max_new_tokens=120)
        out = decoder.generate([prompt], max_new_tokens=120, gamma=gamma)
        assert torch.equal(out.tokens[0], plain.tokens[0])
        accepted, proposed = accepted + out.stats.accepted, proposed + out.stats.proposed
        rounds += sum(out.stats.accepted_in_round)
    assert accepted / proposed == pytest.approx(acceptance, abs=0.01)
    assert draft.forwards == proposed
    batch = decoder.generate([*reversed(prompts)], max_new_tokens=120, gamma=gamma)  # scripts are found, not counted
    assert (batch.stats.accepted, batch.stats.proposed, batch.stats.rounds) == (accepted, proposed, rounds)
    for tokens, script in zip(reversed(batch.tokens), scripts, strict=True):
        assert torch.equal(tokens, script.tokens[-120:])


def test_past_a_script_the_draft_speaks_for_itself() -> None:
    target = tiny().build(torch.float32, CPU)
    prompt, other = torch.arange(1, 6), torch.arange(7, 12)
    decoder = Decoder(target, Replay(target, record(target, [prompt], 10, 0.0, 4)))
    assert decoder.generate([other], max_new_tokens=30, gamma=4).stats.acceptance_rate == 1
    stats = decoder.generate([prompt], max_new_tokens=60, gamma=4).stats
    assert stats.accepted_in_round == (10, 0, 0, 0, 10)  # the script's ten tokens one by one, then five at a time
    with pytest.raises(InvalidSetting, match="greedy"):
        decoder.generate([prompt], do_sample=True)


def test_a_token_rate_gives_its_acceptance_rate() -> None:
    """Simulated: 20,000 rounds, standard error of accepted / proposed below 0.003; the bound is five of them."""
    uniforms = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))
    accepted = (uniforms < token_rate(0.75, 4)).long().cumprod(1).sum(1)
    assert float(accepted.float().mean()) / 4 == pytest.approx(0.75, abs=0.015)
    assert token_rate(0.0, 4) == 0
    assert token_rate(1.0, 4) == token_rate(1.0, 1) == 1
    assert token_rate(0.6, 1) == pytest.approx(0.6)
    with pytest.raises(InvalidSetting, match=r"1\.5"):
        token_rate(1.5, 4)


def test_a_workload_that_there_is_not() -> None:
    with pytest.raises(InvalidSetting, match=r"'gpt3'.*gpt2:medium"):
        workload("gpt3")
    assert workload("opt:1.3b") is WORKLOADS["opt:1.3b"]


def test_a_copy_replays_in_the_targets_own_cache() -> None:
    target = tiny().build(torch.float32, CPU)
    copy = Counted(tiny().build(torch.float32, CPU, Rounding(4)))
    copy.new_cache = None  # it needs none
    prompt = torch.arange(1, 6)
    scripts = record(target, [prompt], 20, 0.75, 4)
    out = Decoder(target, SelfReplay(copy, scripts)).generate([prompt], max_new_tokens=20, gamma=4)
    assert out.tokens[0].tolist() == scripts[0].tokens[5:].tolist()
    assert out.stats.accepted
    assert copy.forwards >= out.stats.proposed - out.stats.rounds  # each token that is proposed was drafted for
