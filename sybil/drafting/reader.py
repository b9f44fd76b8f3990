"""Wraps a draft that has another tokenizer as a Model over the target's tokens. The draft reads their text in its own
tokens."""

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
        """model: the draft. context: the target's. The draft's own context is no limit, because the draft drops the
        beginning of a long text."""
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
        """Changes the lengths only. The draft reads the tokens when logits are needed."""
        cache.write(tokens.tolist())
        cache.lengths = cache.lengths + tokens.shape[1]

    def forward(self, tokens: Tensor, cache: ReaderCache) -> Tensor:
        """See Model; (batch, n, the draft's own vocabulary). The logits of a place follow the whole text up to that
        place, encoded by the draft's tokenizer. Where a later token changes how that text is encoded, the place needs a
        forward of its own."""
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
        """The draft's logits (batch, n, own vocabulary) at n places. ends: (n, batch), how many of each row's own
        tokens come before the place."""
        places, own = integers(ends).T - 1, cache.own
        first = places[:, 0]
        own.lengths = torch.minimum(own.lengths, first)
        if int((first - own.lengths).max()) > 1:  # more tokens than a round leaves unread
            prefill(self.model, own, cache.ids, first)
        starts, block = missing(own, cache.ids, cache.ends.tolist(), int((cache.ends - own.lengths).max()))
        logits = self.model.forward(block, own)
        own.lengths = cache.ends
        at = upload(places - integers(starts)[:, None], logits.device)
        return logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))


class ReaderCache:
    """What a reader has read: the text of each row, and the draft's own cache.

    lengths: (batch,), the target's tokens. ids: (batch, capacity), the texts in the draft's own tokens. ends: (batch,),
    the numbers of those tokens. own: the draft's cache, which holds the first own.lengths of them."""

    def __init__(self, reader: RetokenizingReader, batch: int, capacity: int) -> None:
        self._model, self._lead = reader.model, reader.draft.before
        self._rows = [ReencodedRow(reader.target, reader.draft) for _ in range(batch)]
        self._forgotten = [0] * batch  # own tokens at each text's beginning that the draft has no room for
        self._nothing = (reader.draft.ends or [0])[0]  # the token that stands for an empty text
        capacity = min(max(capacity, len(self._lead)), self._model.context)
        self.own = self._model.new_cache(batch, capacity)
        self.ids = torch.zeros(batch, capacity, dtype=torch.int64, device="cpu")
        self.ids[:, : len(self._lead)] = integers(self._lead)
        self.lengths = self.ends = integers([0] * batch)

    def take_over(self, other: ReaderCache) -> None:
        """See models.Cache."""
        self.__dict__.update(other.__dict__)

    def write(self, tokens: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """Set the tokens of the target that follow the first self.lengths tokens of each row. Returns (how many of each
        row's own tokens are unchanged, how many own tokens each row has now)."""
        kept, ends = [], []
        for row, (at, new) in enumerate(zip(self.lengths.tolist(), tokens, strict=True)):
            stays, end = self._written(row, at, new)
            kept.append(stays)
            ends.append(end)
        self.make_room(max(ends))
        numbers = self.ids.numpy()  # the same memory; writing to it takes a tenth of the time of torch's indexing
        for row, (stays, end) in enumerate(zip(kept, ends, strict=True)):
            numbers[row, stays:end] = self._own(row, stays)
        self.own.lengths = torch.minimum(self.own.lengths, integers(kept))
        self.ends = integers(ends)
        return kept, ends

    def expect(self, own: Sequence[Sequence[int]]) -> None:
        """Note that the draft's cache holds these own tokens of each row after the row's text."""
        for row, (end, new) in enumerate(zip(self.ends.tolist(), own, strict=True)):
            self._rows[row].expect(new)
            self.ids[row, end : end + len(new)] = integers(new)

    def make_room(self, count: int) -> None:
        """Make room for `count` own tokens in each row."""
        batch, capacity = self.ids.shape
        if count <= capacity:
            return
        larger = max(count, min(2 * capacity, self._model.context))
        ids, own = self.ids.new_zeros(batch, larger), self._model.new_cache(batch, larger)
        ids[:, :capacity] = self.ids
        own.take_over(self.own)
        self.ids, self.own = ids, own

    def _written(self, row: int, at: int, tokens: Sequence[int]) -> tuple[int, int]:
        """write() for one row: (how many of its own tokens are unchanged, how many there are). The tokens that are put
        before every text count."""
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
