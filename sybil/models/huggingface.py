"""Runs any other causal language model of transformers as a Model, also a quantised, offloaded or distributed one.

transformers' caches grow only at the end, by the same number of slots for every row. Rows that roll back by different
numbers of tokens would leave holes there. So their tokens are moved until all rows end at the last slot again. The
attention mask hides what lies before a row's first token, and each token keeps its own position.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from sybil.errors import UnsupportedModel
from sybil.models import forking
from sybil.models.objects import inside
from sybil.transfer import count_to, drawn_at, upload

KEYWORDS = ("input_ids", "attention_mask", "past_key_values", "use_cache", "position_ids", "logits_to_keep")
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "global", "local"}


class AlignedCache:
    """A DynamicCache whose rows all end at its last slot.

    A row's tokens lie next to each other, so a sliding window, which models count in slots, is right. There are never
    more slots than the longest row has tokens. Moving the rows in every round costs about what DynamicCache's own
    concatenation costs in every forward (measured on a CPU: 1.2 to 1.4 times as much)."""

    def __init__(self, batch: int) -> None:
        self.lengths = torch.zeros(batch, dtype=torch.int64, device="cpu")
        self.held = self.lengths  # tokens a row, rejected ones included; the largest is the number of slots
        self.slots = DynamicCache()  # keeps all tokens of all layers: forgotten ones can't be rolled back to

    def take_over(self, other: AlignedCache) -> None:
        """See models.Cache."""
        self.lengths, self.held, self.slots = other.lengths, other.held, other.slots

    def settle(self) -> None:
        """Drops the tokens beyond each row's length. All rows end at the last slot afterwards."""
        rejected = self.held - self.lengths
        if bool((rejected != rejected[0]).any()):
            self._move(rejected)
        elif int(rejected[0]):
            self.slots.crop(-int(rejected[0]))
        self.held = self.lengths

    def _move(self, rejected: Tensor) -> None:
        """Moves each row's tokens towards the end, over the row's rejected tokens."""
        slots = int(self.held.max())
        kept = count_to(slots)[slots - int(self.lengths.max()) :]
        kept = (kept - rejected[:, None]).clamp(min=0)  # (batch, slots from now on); hidden slots may hold anything
        layers = [layer for layer in self.slots.layers if layer.is_initialized]  # one may use another's keys
        kept_on = {device: upload(kept, device) for device in {layer.keys.device for layer in layers}}
        for layer in layers:
            layer.keys = _pick(layer.keys, kept_on[layer.keys.device])
            layer.values = _pick(layer.values, kept_on[layer.keys.device])

    def append(self, count: int) -> Tensor:
        """Counts the next tokens as held. Returns their positions (batch, count)."""
        positions = self.lengths[:, None] + count_to(count)
        self.lengths = self.held = self.lengths + count
        return positions

    def mask(self) -> Tensor:
        """The attention mask (batch, slots): 1 where a slot holds a token of the row."""
        slots = int(self.held.max())
        return (count_to(slots) >= slots - self.held[:, None]).long()


def _pick(states: Tensor, slots: Tensor) -> Tensor:
    """The states in some slots of each row. states: (batch, heads, all slots, head size). slots: (batch, count)."""
    batch, heads, count, size = states.shape
    firsts = torch.arange(batch * heads, dtype=torch.int64, device=slots.device).view(batch, heads, 1) * count
    picked = states.reshape(-1, size).index_select(0, (firsts + slots[:, None]).flatten())
    return picked.view(batch, heads, -1, size)


class HuggingFaceModel:
    """A Model over a transformers model with a growing KV cache.

    The model's own forward is called, in evaluation mode. The model isn't moved, and is in its former mode afterwards.
    device: where its token ids go."""

    def __init__(self, model: nn.Module) -> None:
        """model: a transformers model, or a module around one. Raises UnsupportedModel where it can't be rolled back or
        its logits would be wrong."""
        self.model, self._inner = model, inside(model)
        inner, config = self._inner, self._inner.config
        text = config.get_text_config()
        if config.is_encoder_decoder or not inner.can_generate():
            raise UnsupportedModel(f"{type(inner).__name__} is not a decoder-only language model: give one of those")
        takes = keywords_of(inner)
        layers = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "attention_layers", None) or ())}
        if getattr(inner, "_is_stateful", False) or layers - ATTENTION or "past_key_values" not in takes:
            raise UnsupportedModel(
                f"{type(inner).__name__} has layers without a plain key-value cache, which can't be rolled back after "
                "a rejection: give a model with attention only"
            )
        threshold = getattr(getattr(config, "quantization_config", None), "llm_int8_threshold", 0.0)
        if getattr(inner, "is_loaded_in_8bit", False) and threshold:
            raise UnsupportedModel(
                f"{type(inner).__name__} has llm_int8_threshold {threshold}: which columns stay unrounded depends "
                "on all tokens in a call, so verifying would change the output: load it with llm_int8_threshold=0.0"
            )
        self._takes = takes & {"position_ids", "logits_to_keep"}
        if model is not inner:
            _check_around(model, type(inner).__name__, takes & {*KEYWORDS})
        self._parts = tuple(model.modules())
        self.counts_slots = "position_ids" not in takes or "local" in layers
        # a head that was replaced may have another size than the config says
        self.vocab_size = int(getattr(inner.get_output_embeddings(), "out_features", text.vocab_size))
        self.context = context_of(text)
        self.device = entrance(inner)
        self.is_shared_by_ranks = any(hasattr(weight, "device_mesh") for weight in inner.parameters())

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights, on whatever device, with the buffers of quantised ones."""
        return int(self._inner.get_memory_footprint())

    def new_cache(self, batch: int, capacity: int) -> AlignedCache:
        """An empty cache for `batch` rows. Raises UnsupportedModel for several rows where the model computes positions
        or masks from the number of slots."""
        if batch > 1 and self.counts_slots:
            raise UnsupportedModel(
                f"{type(self._inner).__name__} makes up positions or masks from the number of cache slots, which would "
                f"go wrong with {batch} rows of unequal length side by side: generate one prompt at a time"
            )
        self._parts = tuple(self.model.modules())  # some may have been replaced since
        forking.note_use()
        return AlignedCache(batch)

    def forward(self, tokens: Tensor, cache: AlignedCache) -> Tensor:
        """tokens (batch, n) -> logits (batch, n, vocab)."""
        logits = self._run(tokens, cache, logits_to_keep=0)
        due = (*tokens.shape, self.vocab_size)
        if not isinstance(logits, Tensor) or logits.shape != due:
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
            raise UnsupportedModel(
                f"{type(self.model).__name__} gives logits of {found} where {due} was asked for: its forward must give "
                "one row of logits a token, as transformers' causal language models do"
            )
        return upload(logits, drawn_at(logits.device))

    def prefill(self, tokens: Tensor, cache: AlignedCache) -> None:
        """forward() without the logits, except for the last token's, which aren't read."""
        self._run(tokens, cache, logits_to_keep=1)

    # as in transformers' generate(): tensors that a part keeps from inference mode can't be trained on later
    @torch.inference_mode(False)
    @torch.no_grad()
    def _run(self, tokens: Tensor, cache: AlignedCache, logits_to_keep: int) -> Any:
        """The forward's logits, or its whole output where that has no field of this name."""
        cache.settle()
        # a padded row may run past the context; what is computed there is never read
        positions = cache.append(tokens.shape[1]).clamp(max=self.context - 1)
        known = {"position_ids": upload(positions, self.device), "logits_to_keep": logits_to_keep}
        tokens = tokens.clone() if tokens.is_inference() else tokens
        with evaluating(self._parts):
            out = self.model(
                input_ids=upload(tokens, self.device),
                attention_mask=upload(cache.mask(), self.device),
                past_key_values=cache.slots,
                use_cache=True,
                **{name: known[name] for name in self._takes},
            )
        return getattr(out, "logits", out)


def keywords_of(model: PreTrainedModel) -> set[str]:
    """The names of the arguments that a model's forward() takes. Where it takes any (**kwargs), the names of the
    forward that it replaces are added, since it passes its arguments on to that."""
    names: set[str] = set()
    for forward in (model.forward, *(vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind))):
        parameters = inspect.signature(forward).parameters
        names |= {*parameters}
        if not _takes_any(parameters):
            break
    return names


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(each.kind == each.VAR_KEYWORD for each in parameters.values())


def _check_around(model: nn.Module, inner: str, needed: set[str]) -> None:
    """Raises UnsupportedModel where a module around a model lacks arguments, spreads the model over several GPUs, or
    adds learned tokens. inner: the name of the model's class. needed: the arguments that the forward must take."""
    kind = type(model).__name__
    takes = inspect.signature(model.forward).parameters
    lacking = sorted(needed - takes.keys())
    if lacking and not _takes_any(takes):
        raise UnsupportedModel(f"{kind} around {inner} takes no {', '.join(lacking)}: give the {inner} itself")
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise UnsupportedModel(
            f"{kind} spreads {inner} over {len(model.device_ids)} GPUs, where its cache can't follow: give its .module"
        )
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UnsupportedModel(
            f"{kind} puts learned tokens before the prompt of {inner}, in the places of its cache: give a model with "
            "adapters in its weights (LoRA), or none"
        )


@contextmanager
def evaluating(parts: Iterable[nn.Module]) -> Iterator[None]:
    """A context in which every part is in evaluation mode, where dropout is off. Each is in its former mode afterwards.

    The flags are set one by one, because a module's own eval() may do more, such as merging adapters into weights."""
    training = [part for part in parts if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def entrance(model: PreTrainedModel) -> torch.device:
    """The device that token ids go to: the embedding's, or the one to which accelerate brings its offloaded weights."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        device = getattr(each, "execution_device", None)
        if device is not None:
            return torch.device(device)
    first: Tensor = next(embedding.parameters())
    return first.device


def context_of(config: Any) -> int:
    """The most tokens that a sequence may have. Some rotary scalings set in at a certain length and depend on the
    longest sequence in a call. For those models that length is the limit: beyond it, a token's logits would depend on
    the tokens that are verified with it."""
    context = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # each kind of layer may have its own scaling
    nested = [scaling, *(part for part in scaling.values() if isinstance(part, dict))]
    for part in nested:
        if part.get("rope_type") in ("longrope", "dynamic"):
            original = part.get("original_max_position_embeddings")
            context = min(
                context, int(original or getattr(config, "original_max_position_embeddings", None) or context)
            )
    return context
