"""Rounds a weight to few bits: blocks of 32 inputs, each with a scale d and a minimum m in float16. A weight becomes
d q + m.

The bytes of a block are d, m and then little-endian words of 4 bytes. The 32 inputs are divided into 8 groups of four,
numbered g = 0 to 7. Byte b of a word has bits of input 4 g + b, for one group g or several:

- 8 bits: word g has the q of each input of group g;
- 4, 5, 6 bits: word w has the lowest four bits of q, those of group 2 w in the low half of each byte and those of
  group 2 w + 1 in the high half;
- 5 bits: one word more, in which bit g of each byte is the fifth bit of q in group g;
- 6 bits: two words more, in which word h has the two high bits of q in the groups 4 h to 4 h + 3, from each byte's
  lowest bits on.

So one shift and one mask give the same bits of four inputs, which models/native/integers.h multiplies together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models.storage import Bits

BLOCK = 32
"""The inputs of a block. If a row's last block isn't full, it is filled with copies of the row's last weight."""
AT_ONCE = 1 << 18
"""The number of weights that are rounded together. Their temporaries fit into the processor's cache."""


def block_bytes(bits: Bits) -> int:
    """The bytes of a block, scale and minimum included."""
    return 4 + 4 * bits


def row_bytes(bits: Bits, inputs: int) -> int:
    """The bytes of the weights of one output."""
    return -(-inputs // BLOCK) * block_bytes(bits)


def rounded(weight: Tensor, bits: Bits, importance: Tensor | None = None) -> Tensor:
    """A weight (outputs, inputs), inputs > 0, as blocks (outputs, bytes of a row) uint8. A few rows are rounded at a
    time.

    importance: (inputs,), how much the squared error at each input counts; only its proportions matter. Without it no
    weight is clipped: m is at most the block's smallest weight, and d q + m reaches the largest. With it, d and m are
    fitted to the q that these give, for the smallest weighted squared error. The fitted ones are kept where they make
    that error smaller; inputs that count little may then be clipped. In both cases q is the nearest to the weight, with
    the d and m that are kept. In a block with a weight that is NaN, infinite or too large for float16, d and m are
    NaN."""
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
    """The float32 weight (outputs, inputs) that the blocks of rounded() stand for. d q is exact, and its sum with m is
    rounded once."""
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
    """The q, as floats, for which scale * q + least is nearest to each weight."""
    step = scale.float()
    q = (weight - least.float()[..., None]).mul_((1 / step).where(step > 0, 0.0)[..., None])
    return q.round_().clamp_(0, levels)


def counting_of(importance: Tensor, inputs: int) -> Tensor:
    """The importance of each input divided by the mean, (blocks, 32) float64. These shares are above 0, except for the
    inputs that fill up a row's last block, whose shares are 0. If the importance isn't finite, all shares are 1. A
    share has 21 bits, so that its product with a weight and a q is exact in float64."""
    shares = importance.float() / importance.float().mean()
    shares = shares.clamp(min=1e-6) if shares.isfinite().all() else torch.ones_like(shares)
    shares = (shares.view(torch.int32) & ~7).view(torch.float32).double()
    return F.pad(shares, (0, -inputs % BLOCK)).view(-1, BLOCK)


def _sum(terms: Tensor) -> Tensor:
    """The sum of each block's 32 numbers, always in the same order: the two halves are added, number by number, until
    one number is left."""
    while terms.shape[-1] > 1:
        first, second = terms.chunk(2, -1)
        terms = first + second
    return terms.squeeze(-1)


def _fitted(weight: Tensor, scale: Tensor, least: Tensor, levels: int, counting: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, minimum) by least squares, for the q that the given scale and minimum lead to. The squared errors are
    weighted by `counting`. Where the result isn't better than the given scale and minimum, these are returned."""
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
    better = (new_scale > 0) & (new < error(scale, least, q))  # False where a number is NaN
    return new_scale.where(better, scale), new_least.where(better, least)


def _half_below(numbers: Tensor) -> Tensor:
    """The largest float16 number that isn't above each number. NaN and infinities stay as they are."""
    near = numbers.half()
    bits = near.view(torch.int16)
    away = torch.where(bits < 0, 1, -1)  # one more in the bits of a negative number makes it smaller
    return (bits + away.where(near.float() > numbers, 0).to(torch.int16)).view(torch.float16)


def _half_above(numbers: Tensor) -> Tensor:
    """The smallest float16 number that isn't below each number; no number is negative. A float16 number that is below
    by no more than float32's rounding is taken too, so weights that lie on a grid already keep that grid."""
    near = numbers.half()
    below = near.float() < numbers * (1 - 2.0**-20)
    return (near.view(torch.int16) + below.to(torch.int16)).view(torch.float16)


def _packed(words: Tensor, bits: Bits) -> Tensor:
    """Packs words (..., 8) int32, which have four q each, into words (..., bits), as described at the top of this
    file."""
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
    """Undoes _packed(): the words (..., 8) int32."""
    if bits == 8:
        return words
    q, above = torch.stack([words[..., :4], words[..., :4] >> 4], -1).flatten(-2) & 0x0F0F0F0F, bits - 4
    for g in range(8 if above else 0):
        q[..., g] |= _above_four(words[..., 4 + g * above // 8] >> g * above % 8, above) << 4
    return q


def _above_four(words: Tensor, above: int) -> Tensor:
    """The lowest `above` bits of each byte."""
    return words & ((1 << above) - 1) * 0x01010101
