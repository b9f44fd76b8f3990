"""A weight in few bits: blocks of 32 inputs, each with a scale d and a minimum m in float16. A weight is d q + m.

A block's bytes are d, m and then little-endian words of 4 bytes. Byte b of a word belongs to input 4 g + b of the
block, g being a number from 0 to 7:

- 8 bits: word g has the q of each byte's input;
- 4, 5, 6 bits: word w has the lowest four bits of q, those of g = 2 w in each byte's low half, those of
  g = 2 w + 1 in its high half;
- 5 bits: one word more, whose bit g of a byte is the fifth bit of q;
- 6 bits: two words more, word h for g = 4 h to 4 h + 3, two bits of a byte each, from its lowest bits on.

So one shift and one mask give the same bits of four inputs: models/native/integers.h multiplies them together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models.storage import Bits

BLOCK = 32
"""Inputs of a block. Where a row's last block is not full, the row's last weight fills it."""
AT_ONCE = 1 << 18
"""Weights that are rounded together: their temporaries stay in the processor's cache."""


def block_bytes(bits: Bits) -> int:
    """The bytes of a block, scale and minimum included."""
    return 4 + 4 * bits


def row_bytes(bits: Bits, inputs: int) -> int:
    """The bytes of an output's weights."""
    return -(-inputs // BLOCK) * block_bytes(bits)


def rounded(weight: Tensor, bits: Bits, importance: Tensor | None = None) -> Tensor:
    """weight (outputs, inputs), inputs > 0, as blocks (outputs, bytes of a row) uint8. Some rows are rounded at a time.

    importance: (inputs,), what the square of an error at that input counts; its scale is of no account. Without it no
    weight is clipped: m is at most a block's least weight, and d q + m reaches its largest. With it d and m are those
    of least weighted squared error for that q, where that makes the error less, and weights that count little may be
    clipped. q is what comes nearest with the d and m that are kept. Where a weight is NaN or infinite, or too large for
    float16, d and m are NaN."""
    outputs, inputs = weight.shape
    numbers = torch.empty(outputs, row_bytes(bits, inputs), dtype=torch.uint8, device="cpu")
    rows, missing = max(1, AT_ONCE // inputs), -inputs % BLOCK
    counting = None if importance is None else counting_of(importance, inputs)
    for first in range(0, outputs, rows):
        part = weight[first : first + rows].detach().float().contiguous()
        if missing:
            part = F.pad(part[None], (0, missing), "replicate")[0]
        numbers[first : first + rows] = _blocks(part.reshape(len(part), -1, BLOCK), bits, counting).flatten(1)
    return numbers


def decoded(numbers: Tensor, bits: Bits, inputs: int) -> Tensor:
    """What rounded() gave, as the float32 weight (outputs, inputs) that it stands for: d q is exact, and its sum with
    m is rounded once."""
    blocks = numbers.view(len(numbers), -1, block_bytes(bits))
    scale, least = blocks[..., :4].contiguous().view(torch.float16).float().unbind(-1)
    words = blocks[..., 4:].contiguous().view(torch.int32)
    q = _unpacked(words, bits).view(torch.uint8).float()
    return (scale[..., None] * q + least[..., None]).flatten(1)[:, :inputs].contiguous()


def _blocks(weight: Tensor, bits: Bits, counting: Tensor | None) -> Tensor:
    """weight (outputs, blocks, 32), counting (blocks, 32) -> (outputs, blocks, bytes of a block)"""
    levels = (1 << bits) - 1
    low, high = weight.amin(2) + 0.0, weight.amax(2) + 0.0  # no negative zero
    least = _half_below(low)
    scale = _half_above((high - least.float()) / levels)
    if counting is not None:
        scale, least = _fitted(weight, scale, least, levels, counting)
    sound = least.isfinite() & scale.isfinite()
    scale, least = scale.where(sound, torch.nan), least.where(sound, torch.nan)
    q = _nearest(weight, scale, least, levels)
    if not sound.all():
        q.nan_to_num_(0.0)
    words = q.to(torch.uint8).view(torch.int32)
    scales = torch.stack([scale, least], -1).view(torch.uint8)
    return torch.cat([scales, _packed(words, bits).view(torch.uint8)], -1)


def _nearest(weight: Tensor, scale: Tensor, least: Tensor, levels: int) -> Tensor:
    """The q, as floats, with which scale q + least is nearest to the weights of each block."""
    step = scale.float()
    q = (weight - least.float()[..., None]).mul_((1 / step).where(step > 0, 0.0)[..., None])
    return q.round_().clamp_(0, levels)


def counting_of(importance: Tensor, inputs: int) -> Tensor:
    """(blocks, 32) float64: shares of the mean, never nothing; alike where they aren't numbers. What fills a row up
    counts nothing. A share has 21 bits, so that its product with a weight and a q is exact in float64."""
    shares = importance.float() / importance.float().mean()
    shares = shares.clamp(min=1e-6) if shares.isfinite().all() else torch.ones_like(shares)
    shares = (shares.view(torch.int32) & ~7).view(torch.float32).double()
    return F.pad(shares, (0, -inputs % BLOCK)).view(-1, BLOCK)


def _sum(terms: Tensor) -> Tensor:
    """The sum of each block's 32 numbers, in one order: halves are added, number by number, until one is left."""
    while terms.shape[-1] > 1:
        first, second = terms.chunk(2, -1)
        terms = first + second
    return terms.squeeze(-1)


def _fitted(weight: Tensor, scale: Tensor, least: Tensor, levels: int, counting: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of least squares for the q that the given ones lead to, each input counting as it does; the
    given ones where these are no better."""
    q = _nearest(weight, scale, least, levels)
    total, counted = _sum(counting), q * counting
    of_q, of_weight = _sum(counted), _sum(weight * counting)
    spread = total * _sum(counted * q) - of_q * of_q
    slope = (total * _sum(counted * weight) - of_q * of_weight) / spread
    new_scale = slope.float().half()
    new_least = ((of_weight - slope * of_q) / total).float().half()

    def error(scale: Tensor, least: Tensor, q: Tensor) -> Tensor:
        away = weight - least.float()[..., None] - q * scale.float()[..., None]
        return _sum(away.square_() * counting)

    new = error(new_scale, new_least, _nearest(weight, new_scale, new_least, levels))
    better = (new_scale > 0) & (new < error(scale, least, q))  # never where a number is NaN
    return new_scale.where(better, scale), new_least.where(better, least)


def _half_below(numbers: Tensor) -> Tensor:
    """The largest float16 numbers that are at most these; NaN and infinities as they are."""
    near = numbers.half()
    bits = near.view(torch.int16)
    away = torch.where(bits < 0, 1, -1)  # a step of the bits of a negative number makes it smaller
    return (bits + away.where(near.float() > numbers, 0).to(torch.int16)).view(torch.float16)


def _half_above(numbers: Tensor) -> Tensor:
    """The least float16 numbers that are at least these, which are not negative; one that is less by no more than
    float32's rounding will do, so that weights which lie on a grid already keep it."""
    near = numbers.half()
    below = near.float() < numbers * (1 - 2.0**-20)
    return (near.view(torch.int16) + below.to(torch.int16)).view(torch.float16)


def _packed(words: Tensor, bits: Bits) -> Tensor:
    """words (..., 8) int32 of four q each -> (..., bits): see the top of this file."""
    if bits == 8:
        return words
    low = words & 0x0F0F0F0F
    parts, above = [low[..., 0::2] | low[..., 1::2] << 4], bits - 4
    for first in range(0, 8 * above, 8):
        word = torch.zeros_like(words[..., 0])
        for place in range(0, 8, above):
            word |= _above_four(words[..., (first + place) // above] >> 4, above) << place
        parts.append(word[..., None])
    return torch.cat(parts, -1)


def _unpacked(words: Tensor, bits: Bits) -> Tensor:
    """What _packed() gave, back: (..., 8) int32."""
    if bits == 8:
        return words
    q, above = torch.stack([words[..., :4], words[..., :4] >> 4], -1).flatten(-2) & 0x0F0F0F0F, bits - 4
    for g in range(8 if above else 0):
        q[..., g] |= _above_four(words[..., 4 + g * above // 8] >> g * above % 8, above) << 4
    return q


def _above_four(words: Tensor, above: int) -> Tensor:
    """The lowest bits of each byte, so many."""
    return words & ((1 << above) - 1) * 0x01010101
