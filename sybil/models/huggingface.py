"""Any other transformers causal LM behind the same face, also quantised, offloaded or spread over devices.

transformers' caches only grow at the end, the same for every row. Rows that roll back by unequal numbers would
leave holes there, so they are moved until they end side by side again; the attention mask hides what lies before
a row's first token, while each token keeps its own position.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from sybil.errors import UnsupportedModel

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "global", "local"}


class AlignedCache:
    """A DynamicCache whose rows all end at its last slot.

    A row's tokens stand next to each other, so that what a model counts in slots (a sliding window) is right, and
    there are never more slots than the longest row has tokens. Moving the rows every round costs about what
    DynamicCache's own concatenation costs in every forward (measured on a CPU: 1.2 to 1.4 times it)."""

    def __init__(self, batch: int) -> None:
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        self.held = self.lengths  # tokens a row in the slots, rejected ones included; the largest is the slots' number
        self.slots = DynamicCache()  # every token of every layer: a window that forgets could not be rolled back

    def settle(self) -> None:
        """Drop what lies beyond each row's length; the rows then end side by side."""
        rejected = self.held - self.lengths
        if bool((rejected != rejected[0]).any()):
            self._move(rejected)
        elif int(rejected[0]):
            self.slots.crop(-int(rejected[0]))
        self.held = self.lengths

    def _move(self, rejected: Tensor) -> None:
        """Each row's tokens towards the end, over those it has rejected."""
        slots = int(self.held.max())
        kept = torch.arange(slots - int(self.lengths.max()), slots)
        kept = (kept - rejected[:, None]).clamp(min=0)  # (batch, slots from now on); hidden ones hold anything
        layers = [layer for layer in self.slots.layers if layer.is_initialized]  # one may use another's keys
        kept_on = {device: kept.to(device) for device in {layer.keys.device for layer in layers}}
        for layer in layers:
            layer.keys = _pick(layer.keys, kept_on[layer.keys.device])
            layer.values = _pick(layer.values, kept_on[layer.keys.device])

    def append(self, count: int) -> Tensor:
        """Count the next tokens in; their positions (batch, count)."""
        positions = self.lengths[:, None] + torch.arange(count)
        self.lengths = self.held = self.lengths + count
        return positions

    def mask(self) -> Tensor:
        """(batch, slots), 1 where there is a token of the row."""
        slots = int(self.held.max())
        return (torch.arange(slots) >= slots - self.held[:, None]).long()


def _pick(states: Tensor, slots: Tensor) -> Tensor:
    """Of states (batch, heads, all slots, head size) those in slots (batch, count)."""
    batch, heads, count, size = states.shape
    firsts = torch.arange(batch * heads, device=slots.device).view(batch, heads, 1) * count
    picked = states.reshape(-1, size).index_select(0, (firsts + slots[:, None]).flatten())
    return picked.view(batch, heads, -1, size)


class HuggingFaceModel:
    """forward(tokens, cache) -> logits for a transformers model with a growing key-value cache.

    The model stays where and as it is; device is where its token ids go."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        text = model.config.get_text_config()
        if model.config.is_encoder_decoder or not model.can_generate():
            raise UnsupportedModel(f"{type(model).__name__} is not a decoder-only language model: give one of those")
        takes = inspect.signature(model.forward).parameters
        layers = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "attention_layers", None) or ())}
        if getattr(model, "_is_stateful", False) or layers - ATTENTION or "past_key_values" not in takes:
            raise UnsupportedModel(
                f"{type(model).__name__} has layers without a plain key-value cache, which can't be rolled back after "
                "a rejection: give a model with attention only"
            )
        threshold = getattr(getattr(model.config, "quantization_config", None), "llm_int8_threshold", 0.0)
        if getattr(model, "is_loaded_in_8bit", False) and threshold:
            raise UnsupportedModel(
                f"{type(model).__name__} has llm_int8_threshold {threshold}: which columns stay unrounded depends "
                "on all tokens in a call, so verifying would change the output: load it with llm_int8_threshold=0.0"
            )
        self._takes = {name for name in ("position_ids", "logits_to_keep") if name in takes}
        self.counts_slots = "position_ids" not in takes or "local" in layers
        self.vocab_size = int(text.vocab_size)
        self.context = context_of(text)
        self.device = entrance(model)
        self.is_shared_by_ranks = any(hasattr(weight, "device_mesh") for weight in model.parameters())

    @property
    def weight_bytes(self) -> int:
        """Wherever they lie, quantised ones' buffers included."""
        return int(self.model.get_memory_footprint())

    def new_cache(self, batch: int, capacity: int) -> AlignedCache:
        """Raises UnsupportedModel for several rows where the model makes up positions, or masks no longer than its
        context, from the number of slots."""
        if batch > 1 and self.counts_slots:
            raise UnsupportedModel(
                f"{type(self.model).__name__} makes up positions or masks from the number of cache slots, which would "
                f"go wrong with {batch} rows of unequal length side by side: generate one prompt at a time"
            )
        return AlignedCache(batch)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: AlignedCache) -> Tensor:
        """tokens (batch, n) -> logits (batch, n, vocab)."""
        return self._run(tokens, cache, logits_to_keep=0)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, cache: AlignedCache) -> None:
        """forward() with the last token's logits only, which nobody reads."""
        self._run(tokens, cache, logits_to_keep=1)

    def _run(self, tokens: Tensor, cache: AlignedCache, logits_to_keep: int) -> Tensor:
        cache.settle()
        # a padded row may stand past the context: what is computed there is never read
        positions = cache.append(tokens.shape[1]).clamp(max=self.context - 1)
        known = {"position_ids": positions.to(self.device), "logits_to_keep": logits_to_keep}
        logits: Tensor = self.model(
            input_ids=tokens.to(self.device),
            attention_mask=cache.mask().to(self.device),
            past_key_values=cache.slots,
            use_cache=True,
            **{name: known[name] for name in self._takes},
        ).logits
        return logits


def entrance(model: PreTrainedModel) -> torch.device:
    """Where token ids go: the embedding's device, or the one where accelerate brings its offloaded weights."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        device = getattr(each, "execution_device", None)
        if device is not None:
            return torch.device(device)
    first: Tensor = next(embedding.parameters())
    return first.device


def context_of(config: Any) -> int:
    """How long a sequence may get. Rotary scalings that depend on the longest sequence in a call stop where they
    set in: beyond, a token's logits would depend on the tokens verified with it."""
    context = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [scaling, *(part for part in scaling.values() if isinstance(part, dict))]  # one a kind of layer, or one
    for part in nested:
        if part.get("rope_type") in ("longrope", "dynamic"):
            original = part.get("original_max_position_embeddings")
            context = min(
                context, int(original or getattr(config, "original_max_position_embeddings", None) or context)
            )
    return context
