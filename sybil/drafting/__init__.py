"""What proposes tokens, and how many."""

from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.lookup import DraftLookup, LookupDrafter
from sybil.drafting.model import DraftModel, ModelDrafter
from sybil.drafting.self_draft import DraftSelf, SelfDrafter

__all__ = [
    "Context",
    "DraftLookup",
    "DraftModel",
    "DraftSelf",
    "Drafter",
    "DrafterFactory",
    "Generating",
    "LookupDrafter",
    "ModelDrafter",
    "Outcome",
    "Proposal",
    "SelfDrafter",
]
