"""What proposes tokens, and how many."""

from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.lookup import DraftLookup, LookupDrafter
from sybil.drafting.model import DraftModel, ModelDrafter
from sybil.drafting.vocabulary import DraftIntersection, DraftStrings, StringDrafter

__all__ = [
    "Context",
    "DraftIntersection",
    "DraftLookup",
    "DraftModel",
    "DraftStrings",
    "Drafter",
    "DrafterFactory",
    "Generating",
    "LookupDrafter",
    "ModelDrafter",
    "Outcome",
    "Proposal",
    "StringDrafter",
]
