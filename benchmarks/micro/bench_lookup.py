"""What it costs to look for a text's ending where it stood before."""

from __future__ import annotations

import pytest
import torch
from conftest import Measure

from sybil.drafting import Context, LookupDrafter
from sybil.noise import Noise

pytestmark = pytest.mark.benchmark(group="lookup")
VOCAB, GAMMA = 50_257, 4


@pytest.mark.parametrize("length", [1024, 16_384], ids="context {}".format)
@pytest.mark.parametrize("ending", ["found", "nowhere"])
@pytest.mark.parametrize("device", [torch.device("cpu")], ids=str)  # a search asks no other
def test_lookup(ending: str, length: int, measure: Measure) -> None:
    """A proposal of 4 tokens, or of none, which takes a search by three, two and one token."""
    tokens = torch.randint(VOCAB - 1, (1, length), generator=torch.Generator().manual_seed(0))
    if ending == "found":
        tokens[0, -LookupDrafter.LONGEST :] = tokens[0, length // 2 : length // 2 + LookupDrafter.LONGEST]
    else:
        tokens[0, -1] = VOCAB - 1  # no other token is the last one
    context, drafter = Context(tokens, torch.tensor([length]), Noise(0)), LookupDrafter()

    proposal = measure(lambda: drafter.propose(context, GAMMA), rounds=15)
    assert proposal.counts == [GAMMA if ending == "found" else 0]
    if proposal.counts[0]:
        measure.tokens(proposal.counts[0], "one proposed")
