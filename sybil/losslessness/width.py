"""Whether a decoder's greedy tokens are the same, however many tokens it verifies at once."""

from __future__ import annotations

from sybil.agreement import Tolerance, first_difference
from sybil.losslessness.evidence import Reference, greedy
from sybil.losslessness.faults import Fault
from sybil.losslessness.samples import Sample


def parting(
    reference: Reference, one: Sample, other: Sample, where: str, near_tie: Tolerance
) -> tuple[Fault, bool] | None:
    """The place where two greedy texts of one prompt first differ, as a Fault, and whether rounding explains the
    difference: the target has both tokens within near_tie of its likeliest. None for equal texts. where: the texts'
    name."""
    place = first_difference(one.tokens, other.tokens)
    if place is None:
        return None
    where = f"{where}, token {place}"
    if place == min(len(one.tokens), len(other.tokens)):
        return Fault(where, f"{len(other.tokens)} tokens where it says {len(one.tokens)} else"), False
    deficits, bound = [], 0.0
    for sample in (one, other):
        found = greedy(reference, Sample(sample.prompt, sample.tokens[: place + 1]))
        deficits.append(float(found.deficit[-1]))
        bound = float(near_tie.of(float(found.size[-1])))
    told = f"{deficits[1]:.3g} logits below the likeliest, the token that it says else {deficits[0]:.3g}"
    return Fault(where, told), max(deficits) <= bound
