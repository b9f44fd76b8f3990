"""Drafting by the target itself: by a copy of it in fewer bits, or by some of its layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sybil.drafting.contract import Context, Drafter, Generating, Proposal
from sybil.drafting.model import DraftModel, ModelDrafter
from sybil.models import Cache


@dataclass(frozen=True, slots=True)
class DraftSelf(DraftModel):
    """Makes a SelfDrafter for each generation. model: a copy of the target, or some of its layers.

    shares: whether the model uses the target's own weights in memory, and so takes none of its own."""

    shares: bool = field(default=False, kw_only=True)

    @property
    def weight_bytes(self) -> int:
        helpers = 0 if self.helper is None else self.helper.weight_bytes
        return helpers + (0 if self.shares else self.model.weight_bytes)

    def __call__(self, generating: Generating) -> Drafter:
        return SelfDrafter(self.model, generating, self.helper)


class SelfDrafter(ModelDrafter):
    """Drafts by a copy of the target in the target's own KV cache, which QuantSpec (arXiv 2502.10424) shares as well.

    The copy reads the target's own keys and values of all committed tokens, so it needs no prefill. It writes the keys
    and values of its drafted tokens beyond each row's length, which the target never reads. It restores the lengths
    before it returns the proposal, and the target's forward writes the same places again."""

    def cache_for(self, generating: Generating) -> Cache:
        return generating.cache

    def propose(self, context: Context, gamma: int) -> Proposal:
        held = self.cache.lengths
        try:
            return super().propose(context, gamma)
        finally:  # Ctrl-C may come during a forward
            self.cache.lengths = held

    def roll_back(self, lengths: Tensor) -> None:
        """Does nothing: the cache is the target's, and the decoding loop rolls it back."""
