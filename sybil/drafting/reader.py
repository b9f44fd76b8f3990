"""A draft with another tokenizer as a Model over the target's tokens: it reads their text in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sybil.drafting.reencoding import ReencodedRow
from sybil.drafting.surfaces import Vocabulary
from sybil.models import Model, missing, prefill
from sybil.transfer import integers, upload


class RetokenizingReader:
    """A Model whose tokens and cache lengths are the target's, and whose logits are over the draft's own vocabulary."""

    def __init__(self, model: Model, target: Vocabulary, draft: Vocabulary, context: int) -> None:
        """context: the target's. The draft's own context is no limit, because the draft drops the beginning of a long
        text."""
        self.model, self.target, self.draft, self.context = model, target, draft, context
        self.vocab_size, self.device = model.vocab_size, model.device
        self.storage = getattr(model, "storage", None)  # which reports name

    @property
    def weight_bytes(self) -> int:
        return self.model.weight_bytes

    @property
    def idle(self) -> object:
        """See measuring.memory.idle()."""
        return getattr(self.model, "idle", None)

    def new_cache(self, batch: int, capacity: int) -> ReaderCache:
        return ReaderCache(self, batch, capacity)

    def prefill(self, tokens: Tensor, cache: ReaderCache) -> None:
        """Only the lengths change here. The draft reads the tokens when logits are asked for."""
        cache.write(tokens.tolist())
        cache.lengths = cache.lengths + tokens.shape[1]

    def forward(self, tokens: Tensor, cache: ReaderCache) -> Tensor:
        """See Model. The logits of a place are those after the text up to there, encoded as a whole. Where a later
        token changes how that text is encoded, the place takes a forward of its own."""
        rows, count = tokens.tolist(), tokens.shape[1]
        written = [cache.write([row[: place + 1] for row in rows]) for place in range(count)]
        alone = [
            place
            for place, (_, ends) in enumerate(written)
            if any(kept < end for later, _ in written[place + 1 :] for kept, end in zip(later, ends, strict=True))
        ]
        logits: dict[int, Tensor] = {}
        for place in alone:
            _, ends = cache.write([row[: place + 1] for row in rows])
            logits[place] = self._after(cache, [ends])[:, 0]
        if alone:
            cache.write(rows)
        together = [place for place in range(count) if place not in logits]
        found = self._after(cache, [written[place][1] for place in together])
        logits |= {place: found[:, index] for index, place in enumerate(together)}
        cache.lengths = cache.lengths + count
        return torch.stack([logits[place] for place in range(count)], 1) if alone else found

    def _after(self, cache: ReaderCache, ends: Sequence[Sequence[int]]) -> Tensor:
        """The draft's logits (batch, n, own vocabulary) after so many of each row's own tokens: ends, (n, batch)."""
        places, own = integers(ends).T - 1, cache.own
        first = places[:, 0]
        own.lengths = torch.minimum(own.lengths, first)
        if int((first - own.lengths).max()) > 1:  # more than a round leaves
            prefill(self.model, own, cache.ids, first)
        starts, block = missing(own, cache.ids, cache.ends.tolist(), int((cache.ends - own.lengths).max()))
        logits = self.model.forward(block, own)
        own.lengths = cache.ends
        at = upload(places - integers(starts)[:, None], logits.device)
        return logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))


class ReaderCache:
    """What a reader has read: the text of each row, and the draft's own cache.

    lengths: (batch,) tokens of the target. ids: (batch, capacity), the texts in the draft's own tokens; ends: (batch,),
    how many those are; own: the draft's cache, which holds the first own.lengths of them."""

    def __init__(self, reader: RetokenizingReader, batch: int, capacity: int) -> None:
        self._model, self._lead = reader.model, reader.draft.before
        self._rows = [ReencodedRow(reader.target, reader.draft) for _ in range(batch)]
        self._forgotten = [0] * batch  # own tokens from a text's beginning that the draft has no room for
        self._nothing = (reader.draft.ends or [0])[0]  # what stands for a text that is empty
        capacity = min(max(capacity, len(self._lead)), self._model.context)
        self.own = self._model.new_cache(batch, capacity)
        self.ids = torch.zeros(batch, capacity, dtype=torch.int64, device="cpu")
        self.ids[:, : len(self._lead)] = integers(self._lead)
        self.lengths = self.ends = integers([0] * batch)

    def take_over(self, other: ReaderCache) -> None:
        """See models.Cache."""
        self.__dict__.update(other.__dict__)

    def write(self, tokens: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """These tokens of the target follow the first self.lengths of each row, and no others do: how many of a row's
        own tokens stay as they were, and how many there are now."""
        kept, ends = [], []
        for row, (at, new) in enumerate(zip(self.lengths.tolist(), tokens, strict=True)):
            stays, end = self._written(row, at, new)
            kept.append(stays)
            ends.append(end)
        self.make_room(max(ends))
        numbers = self.ids.numpy()  # the same memory: writing there costs a tenth of torch's indexing
        for row, (stays, end) in enumerate(zip(kept, ends, strict=True)):
            numbers[row, stays:end] = self._own(row, stays)
        self.own.lengths = torch.minimum(self.own.lengths, integers(kept))
        self.ends = integers(ends)
        return kept, ends

    def expect(self, own: Sequence[Sequence[int]]) -> None:
        """The draft's cache holds these own tokens of each row behind its text."""
        for row, (end, new) in enumerate(zip(self.ends.tolist(), own, strict=True)):
            self._rows[row].expect(new)
            self.ids[row, end : end + len(new)] = integers(new)

    def make_room(self, count: int) -> None:
        """For so many own tokens a row."""
        batch, capacity = self.ids.shape
        if count <= capacity:
            return
        larger = max(count, min(2 * capacity, self._model.context))
        ids, own = self.ids.new_zeros(batch, larger), self._model.new_cache(batch, larger)
        ids[:, :capacity] = self.ids
        own.take_over(self.own)
        self.ids, self.own = ids, own

    def _written(self, row: int, at: int, tokens: Sequence[int]) -> tuple[int, int]:
        """Of a row's own tokens, the first ones before every text included: how many stay, and how many there are."""
        text, lead, most = self._rows[row], len(self._lead), self._model.context
        kept, forgotten = text.write(at, tokens), self._forgotten[row]
        room = most - lead - len(text.own) + forgotten
        if room < most // 8 or len(text.own) <= forgotten:
            forgotten = max(lead + len(text.own) - most // 2, 0)
        if forgotten != self._forgotten[row]:
            self._forgotten[row], kept = forgotten, 0
        return lead + max(kept - forgotten, 0), max(lead + len(text.own) - forgotten, 1)

    def _own(self, row: int, start: int) -> list[int]:
        """A row's own tokens from that place on."""
        text = self._rows[row].own
        return text[self._forgotten[row] + start - len(self._lead) :] if text or self._lead else [self._nothing]
