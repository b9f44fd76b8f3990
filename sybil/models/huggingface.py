"""Any other transformers causal LM behind the same face.

transformers' caches only grow at the end, the same for every row. Rows that roll back by unequal numbers
therefore leave holes: slots that the attention mask hides, while each token keeps its own position.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from sybil.errors import UnsupportedModel


class HoledCache:
    """A DynamicCache, and which of its slots hold which token of each row.

    places: (batch, slots), the place in its row of the token in a slot, -1 for a hole."""

    def __init__(self, batch: int) -> None:
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        self.places = torch.zeros(batch, 0, dtype=torch.int64)
        self.slots = DynamicCache()  # every token of every layer: a window that forgets could not be rolled back

    def settle(self) -> None:
        """Turn what lies beyond each row's length into holes, and drop the slots that are holes in every row."""
        self.places = self.places.masked_fill(self.places >= self.lengths[:, None], -1)
        used = (self.places >= 0).any(0).nonzero()
        surplus = self.places.shape[1] - (int(used[-1]) + 1 if len(used) else 0)
        if surplus:
            self.slots.crop(-surplus)
            self.places = self.places[:, :-surplus]

    def append(self, count: int) -> Tensor:
        """Make room for count tokens a row; their positions (batch, count)."""
        positions = self.lengths[:, None] + torch.arange(count)
        self.places = torch.cat([self.places, positions], 1)
        self.lengths = self.lengths + count
        return positions


class HuggingFaceModel:
    """forward(tokens, cache) -> logits for a transformers model with a growing key-value cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        text = model.config.get_text_config()
        if model.config.is_encoder_decoder or not model.can_generate():
            raise UnsupportedModel(f"{type(model).__name__} is not a decoder-only language model: give one of those")
        takes = inspect.signature(model.forward).parameters
        layers = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "attention_layers", None) or ())}
        recurrent = getattr(model, "_is_stateful", False) or layers & {"conv", "linear_attention", "mamba", "recurrent"}
        if recurrent or "past_key_values" not in takes:
            raise UnsupportedModel(
                f"{type(model).__name__} has layers without a key-value cache, which can't be rolled back after a "
                "rejection: give a model with attention only"
            )
        self._takes = {name for name in ("position_ids", "logits_to_keep") if name in takes}
        windowed = bool(layers - {"full_attention", "global"})
        windowed |= bool(getattr(text, "sliding_window", None)) and not layers
        self._holes_are_exact = "position_ids" in self._takes and not windowed
        self.vocab_size = int(text.vocab_size)
        self.context = _context(text)
        self.device: torch.device = model.device

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.model.parameters())

    def new_cache(self, batch: int, capacity: int) -> HoledCache:
        """Raises UnsupportedModel for several rows where the model counts distances in slots, holes and all."""
        if batch > 1 and not self._holes_are_exact:
            raise UnsupportedModel(
                f"{type(self.model).__name__} counts distances in cache slots (a sliding window, or no position_ids), "
                f"which would go wrong with {batch} rows side by side: generate one prompt at a time"
            )
        return HoledCache(batch)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: HoledCache) -> Tensor:
        """tokens (batch, n) -> logits (batch, n, vocab)."""
        return self._run(tokens, cache, logits_to_keep=0)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, cache: HoledCache) -> None:
        """forward() with the last token's logits only, which nobody reads."""
        self._run(tokens, cache, logits_to_keep=1)

    def _run(self, tokens: Tensor, cache: HoledCache, logits_to_keep: int) -> Tensor:
        cache.settle()
        # a padded row may stand past the context: what is computed there is never read
        positions = cache.append(tokens.shape[1]).clamp(max=self.context - 1)
        known = {"position_ids": positions.to(self.device), "logits_to_keep": logits_to_keep}
        logits: Tensor = self.model(
            input_ids=tokens.to(self.device),
            attention_mask=(cache.places >= 0).long().to(self.device),
            past_key_values=cache.slots,
            use_cache=True,
            **{name: known[name] for name in self._takes},
        ).logits
        return logits


def _context(config: Any) -> int:
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
