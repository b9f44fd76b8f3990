"""Drafters, which propose tokens, and windows, which decide how many tokens they propose."""

from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.datastore import Answers, Datastore
from sybil.drafting.hybrid import DraftHybrid, HybridDrafter
from sybil.drafting.lookup import DraftLookup, LookupDrafter
from sybil.drafting.model import DraftModel, ModelDrafter
from sybil.drafting.narrowed import DraftNarrowed
from sybil.drafting.self_draft import DraftSelf, SelfDrafter
from sybil.drafting.vocabulary import DraftIntersection, DraftStrings, StringDrafter

__all__ = [
    "Answers",
    "Context",
    "Datastore",
    "DraftHybrid",
    "DraftIntersection",
    "DraftLookup",
    "DraftModel",
    "DraftNarrowed",
    "DraftSelf",
    "DraftStrings",
    "Drafter",
    "DrafterFactory",
    "Generating",
    "HybridDrafter",
    "LookupDrafter",
    "ModelDrafter",
    "Outcome",
    "Proposal",
    "SelfDrafter",
    "StringDrafter",
]
