"""What proposes tokens, and how many."""

from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.datastore import Answers, Datastore
from sybil.drafting.hybrid import DraftHybrid, HybridDrafter
from sybil.drafting.lookup import DraftLookup, LookupDrafter
from sybil.drafting.model import DraftModel, ModelDrafter

__all__ = [
    "Answers",
    "Context",
    "Datastore",
    "DraftHybrid",
    "DraftLookup",
    "DraftModel",
    "Drafter",
    "DrafterFactory",
    "Generating",
    "HybridDrafter",
    "LookupDrafter",
    "ModelDrafter",
    "Outcome",
    "Proposal",
]
