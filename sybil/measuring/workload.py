"""Models of published shapes with random weights, and a draft that replays the target's tokens.

A step's cost depends on a model's shape and not on its training. So these models stand for published ones whose weights
aren't available. Every forward is real, the draft's too. But a random draft doesn't agree with a random target.
ReplayDrafter supplies the agreement at a chosen rate, and everything measured with it is called a replay."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sybil.decoding import Decoder
from sybil.drafting import Context, Drafter, DraftModel, Generating, ModelDrafter, Proposal, SelfDrafter
from sybil.errors import InvalidSetting
from sybil.models import Model
from sybil.models.building import build
from sybil.models.checkpoints.families import understand
from sybil.models.checkpoints.sources import Source
from sybil.models.shape import Shape
from sybil.models.storage import Kept, storage_of
from sybil.transfer import count_to, upload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A transformers config with seeded random weights. They are normal with standard deviation 1 / sqrt(width), around
    1 for a norm's gain and around 0 elsewhere. The name is the seed: the same name and config give the same weights."""

    name: str
    config: Mapping[str, Any]

    def build(self, dtype: torch.dtype, device: torch.device, kept: Kept | None = None) -> Model:
        """The model in Sybil. dtype may be int8. kept: the storage of a copy that is made from the weights in dtype. At
        most one tensor is in memory in addition to the model."""
        return build(self.shape, self.weights(dtype, device), kept or storage_of(dtype), device)

    def weights(self, dtype: torch.dtype, device: torch.device) -> Mapping[str, Tensor]:
        """The weights by Sybil's names, each made when it is asked for, in dtype (in float32 where dtype is int8)."""
        return _SeededWeights(self, dtype, device)

    def twin(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """A transformers model with the same weights. It has no end tokens."""
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        config = AutoConfig.for_model(**self.config, bos_token_id=None, eos_token_id=None)
        with torch.device("meta"):
            kind = type(AutoModelForCausalLM.from_config(config))
        state = {
            theirs: self._stored(ours, theirs, size).to(dtype)
            for ours, source in self._sources().items()
            for theirs, size in source.parts
        }
        return kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype).to(device).eval()

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(math.prod(source.size) for source in self._sources().values())

    @property
    def shape(self) -> Shape:
        return understand(self.config)[1]

    @property
    def vocab_size(self) -> int:
        return self.shape.vocab_size

    def _sources(self) -> dict[str, Source]:
        family, shape = understand(self.config)
        prefix = family.prefixes[0]
        return dict(family.sources(self.config, shape, prefix, prefix + family.embedding, family.head[0]))

    def _stored(self, ours: str, theirs: str, size: tuple[int, ...]) -> Tensor:
        """One tensor in the form in which a checkpoint would store it, float32 on the CPU."""
        digest = hashlib.sha256(f"{self.name}/{theirs}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        around = 1.0 if ours.endswith("_norm.weight") else 0.0
        return torch.empty(size, dtype=torch.float32, device="cpu").normal_(
            around, self.shape.width**-0.5, generator=generator
        )


class _SeededWeights(Mapping[str, Tensor]):
    """A RandomModel's weights by Sybil's names, each made when it is asked for, in dtype (in float32 where dtype is
    int8)."""

    def __init__(self, model: RandomModel, dtype: torch.dtype, device: torch.device) -> None:
        self._model, self._device, self._sources = model, device, model._sources()
        self._dtype = dtype if dtype.is_floating_point else torch.float32

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        dtype = source.kept_in(self._dtype)
        parts = [source.arranged(self._model._stored(name, theirs, size), dtype) for theirs, size in source.parts]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.to(self._device, dtype).contiguous()

    def __contains__(self, name: object) -> bool:
        return name in self._sources  # the method of Mapping would make the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def _gpt2(name: str, layers: int, width: int, heads: int) -> RandomModel:
    return RandomModel(name, {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": heads})


def _opt(name: str, layers: int, width: int, heads: int) -> RandomModel:
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    return RandomModel(name, {"model_type": "opt", "num_hidden_layers": layers, "num_attention_heads": heads, **sizes})


SHAPES: Mapping[str, RandomModel] = {
    model.name: model
    for model in (
        _gpt2("gpt2", 12, 768, 12),
        _gpt2("gpt2-medium", 24, 1024, 16),
        _gpt2("gpt2-xl", 48, 1600, 25),
        _opt("opt-125m", 12, 768, 12),
        _opt("opt-1.3b", 24, 2048, 32),
    )
}
"""The published shapes. Settings that a config leaves out, such as vocabulary and context, are its family's
defaults."""


@dataclass(frozen=True, slots=True)
class RandomPair:
    """A target and a draft of published shapes."""

    target: RandomModel
    draft: RandomModel

    def prompts(self, count: int, length: int) -> list[Tensor]:
        """Seeded random tokens, (length,) each."""
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randint(self.target.vocab_size, (length,), generator=generator, device="cpu") for _ in range(count)
        ]


WORKLOADS: Mapping[str, RandomPair] = {
    "gpt2:medium": RandomPair(SHAPES["gpt2-medium"], SHAPES["gpt2"]),
    "gpt2:xl": RandomPair(SHAPES["gpt2-xl"], SHAPES["gpt2"]),
    "opt:1.3b": RandomPair(SHAPES["opt-1.3b"], SHAPES["opt-125m"]),
}


def workload(name: str) -> RandomPair:
    """The workload of that name; raises InvalidSetting."""
    if name not in WORKLOADS:
        raise InvalidSetting(f"there is no workload {name!r}: the workloads are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


@dataclass(frozen=True, slots=True)
class Script:
    """A text to replay. tokens: the target's own tokens, (n,), prompt included. proposed: the tokens that are proposed
    at the same places, (n,)."""

    tokens: Tensor
    proposed: Tensor


def token_rate(acceptance_rate: float, gamma: int) -> float:
    """The probability a that a proposed token is the target's, given that all before it were, for which
    accepted / proposed is acceptance_rate: the root of (a + a^2 + ... + a^gamma) / gamma = acceptance_rate.

    At gamma 4, accepting 75 % of what is proposed takes a = 0.888."""
    if not 0 <= acceptance_rate <= 1:
        raise InvalidSetting(f"acceptance is {acceptance_rate}: use a rate from 0 to 1")
    from scipy import optimize

    powers = range(1, gamma + 1)
    return float(optimize.brentq(lambda a: sum(a**power for power in powers) / gamma - acceptance_rate, 0.0, 1.0))


def record(
    target: Model, prompts: Sequence[Tensor], new_tokens: int, acceptance_rate: float, gamma: int
) -> tuple[Script, ...]:
    """Decode each prompt greedily without a draft, and make a corrupted copy of the text: each position's token is
    independently replaced by another one with probability 1 - token_rate(acceptance_rate, gamma). No prompt may be the
    beginning of another. A position is judged at most once, so the judgements are independent, too.

    In a short text the rate would often be missed by chance. So 100 corruptions are tried, and the one whose rounds of
    gamma tokens come nearest to the rate is used."""
    decoder, rate = Decoder(target), token_rate(acceptance_rate, gamma)
    scripts = []
    for prompt in prompts:
        tokens = torch.cat([prompt, *decoder.generate([prompt], max_new_tokens=new_tokens).tokens])
        seeded = (torch.Generator().manual_seed(seed) for seed in range(100))
        tries = [torch.rand(len(tokens), generator=each, dtype=torch.float32, device="cpu") >= rate for each in seeded]
        misses = [abs(_acceptance_rate(spoilt[len(prompt) :].tolist(), gamma) - acceptance_rate) for spoilt in tries]
        spoilt = tries[misses.index(min(misses))]
        scripts.append(Script(tokens, torch.where(spoilt, (tokens + 1) % target.vocab_size, tokens)))
    return tuple(scripts)


def _acceptance_rate(spoilt: list[bool], gamma: int) -> float:
    """accepted / proposed in rounds of gamma over the new tokens. spoilt: for each new token, whether the proposal is
    wrong."""
    place = accepted = proposed = 0
    while place < len(spoilt):
        block = spoilt[place : min(place + gamma, len(spoilt) - 1)]
        kept = block.index(True) if True in block else len(block)
        place, accepted, proposed = place + kept + 1, accepted + kept, proposed + len(block)
    return accepted / max(proposed, 1)


@dataclass(frozen=True, slots=True)
class Replay(DraftModel):
    """Makes a ReplayDrafter for each generation. scripts: those that record() made, in any order."""

    scripts: tuple[Script, ...]

    def __call__(self, generating: Generating) -> Drafter:
        if not generating.sampling.greedy:
            raise InvalidSetting("a replay is greedy: leave do_sample out")
        return ReplayDrafter(self, generating)


class ReplayDrafter(ModelDrafter):
    """Runs its model as ModelDrafter does, then proposes the scripts' tokens in place of the model's own.

    The model's own tokens are proposed after a script's end, and for a row that no script begins like."""

    def __init__(self, replay: Replay, generating: Generating) -> None:
        super().__init__(replay.model, generating)
        self._scripts = replay.scripts
        self._said: Tensor | None = None  # (batch, capacity), -1 where the model's own token is proposed

    def propose(self, context: Context, gamma: int) -> Proposal:
        own = super().propose(context, gamma)
        if self._said is None:
            self._said = self._assign(context)
        places = context.lengths[:, None] + count_to(own.tokens.shape[1])
        said = upload(self._said.gather(1, places.clamp(max=self._said.shape[1] - 1)), own.tokens.device)
        return Proposal(torch.where(said < 0, own.tokens, said), None, own.counts)

    def _assign(self, context: Context) -> Tensor:
        said = torch.full_like(context.tokens, -1)
        for row, prefix in zip(said, context.prefixes(), strict=True):
            for script in self._scripts:
                if torch.equal(script.tokens[: len(prefix)], prefix):
                    count = min(len(script.proposed), len(row))
                    row[:count] = script.proposed[:count]
                    break
        return said


@dataclass(frozen=True, slots=True)
class SelfReplay(Replay):
    """A Replay whose model is a copy of the target and drafts in the target's cache."""

    def __call__(self, generating: Generating) -> Drafter:
        return SelfReplayDrafter(self, generating)


class SelfReplayDrafter(ReplayDrafter, SelfDrafter):
    """A drafter with the costs of a SelfDrafter and the proposals of a ReplayDrafter."""
