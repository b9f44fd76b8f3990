"""What proposes tokens, and how many."""

from sybil.drafting.contract import Context, Drafter, DrafterFactory, Outcome, Proposal
from sybil.drafting.lookup import DraftLookup, LookupDrafter
from sybil.drafting.model import DraftModel, ModelDrafter

__all__ = [
    "Context",
    "DraftLookup",
    "DraftModel",
    "Drafter",
    "DrafterFactory",
    "LookupDrafter",
    "ModelDrafter",
    "Outcome",
    "Proposal",
]
