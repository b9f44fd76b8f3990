"""Counter-based random numbers: each depends on its key alone, not on the numbers drawn before it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sybil.transfer import integers, upload

COLUMN = 64  # tokens in a column; a power of two
LARGE = 4096  # tokens; vocabularies of this size or larger have their exponentials in columns
FEW = 8  # the winner of a race is usually in one of this many columns
Array = np.ndarray


class Noise:
    """Random numbers keyed by (seed, row, position, index, use), and by nothing else.

    A row's noise does not depend on the rows beside it or on the rounds before it. Uniforms are keyed by the position
    at which a round begins and the index in the round, so none is used twice. Exponentials are keyed by the position of
    the token that they draw, so every round finds the same ones there. The keys are hashed with SplitMix64's finaliser
    (Steele, Lea, Flood 2014), twice a word."""

    PROPOSE, JUDGE, RACE = range(3)

    def __init__(self, seed: int) -> None:
        """seed: any integer. The attribute `seed` is its hash."""
        self._key = _mix(np.array([seed % 2**64], dtype=np.uint64))
        self.seed = int(self._key[0])
        self._words: dict[tuple[int, int], Array] = {}
        self._uploaded: dict[tuple[torch.device, int, int], Tensor] = {}

    def uniforms(self, rows: Tensor, positions: Tensor, count: int, use: int) -> Tensor:
        """Uniforms in [0, 1), (batch, count) float64 on the CPU. rows, positions: (batch,) int64. use: what the numbers
        are for; each use has its own."""
        bits = _mix(self.keys(rows.numpy(), positions.numpy())[..., None] ^ self.words(count, use))
        return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    def exponentials(self, rows: Tensor, positions: Tensor, vocab: int) -> Tensor:
        """Exponentials of mean 1, above 0, (batch, n, vocab) float64 on the CPU. rows: (batch,) int64. positions:
        (batch, n) int64."""
        return Exponentials(self, rows[:, None].expand_as(positions), positions, vocab).all()

    def keys(self, rows: Array, positions: Array) -> Array:
        """The hash keys of rows and positions, uint64 of their common shape."""
        key = self._key
        for word in (rows, positions):
            key = _mix(key ^ _mix(word.astype(np.uint64) + np.uint64(1)))
        return key

    def words(self, count: int, use: int) -> Array:
        """The words that the indices 0 .. count - 1 combine with a key, (count,) uint64."""
        if (count, use) not in self._words:
            index = np.arange(count, dtype=np.uint64) * np.uint64(3) + np.uint64(use)
            self._words[count, use] = _mix(index + np.uint64(0x632BE59BD9B4E019))
        return self._words[count, use]

    def words_on(self, device: torch.device, count: int, use: int) -> Tensor:
        """words() on a device, as int64 of the same bits."""
        if (device, count, use) not in self._uploaded:
            self._uploaded[device, count, use] = _as_int64(self.words(count, use), device)
        return self._uploaded[device, count, use]


@dataclass(frozen=True, slots=True)
class Exponentials:
    """An exponential of mean 1 for each token of the vocabulary at each of some places. It is made when it is needed.
    rows, positions: the row and the position of each place, int64 tensors of one shape.

    A large vocabulary is divided into columns: column c has the tokens c, c + width, c + 2 width, ... (COLUMN of them,
    some perhaps beyond the vocabulary). First the column's least exponential is drawn, which has mean 1 / COLUMN, and
    the token that it belongs to. Every other token's exponential is the least one plus an exponential of its own,
    because exponentials have no memory. So the tokens are as independent as if each were drawn by itself. A race needs
    the column's other exponentials only if the least one, with the column's largest probability, could still win."""

    noise: Noise
    rows: Tensor
    positions: Tensor
    vocab: int

    def __getitem__(self, places: Any) -> Exponentials:
        """The exponentials of some of the places."""
        return replace(self, rows=self.rows[places], positions=self.positions[places])

    @property
    def in_columns(self) -> bool:
        return self.vocab >= LARGE

    def on(self, device: torch.device) -> Exponentials | Tensor:
        """The exponentials in the form in which race() can use them several times on that device: a tensor on a GPU,
        and unchanged on the CPU."""
        return self if device.type == "cpu" else self.made_on(device)

    def all(self) -> Tensor:
        """All exponentials, (..., vocab) float64 on the CPU."""
        keys = self._keys()[..., None]
        own = _exponentials(_mix(keys ^ self._words()[: self.vocab]))
        if self.in_columns:
            least, holder = self._columns(keys)
            place, column = np.divmod(np.arange(self.vocab), self._width)
            own[holder[..., column] == place] = 0.0
            own += least[..., column]
        return torch.from_numpy(own)

    def made_on(self, device: torch.device) -> Tensor:
        """The result of all(), computed on a device from the same random bits. The device's logarithm may round the
        last bit differently."""
        keys = self._keys()[..., None]
        size = COLUMN * self._width if self.in_columns else self.vocab  # whole columns
        words = self.noise.words_on(device, self.vocab + self._width, Noise.RACE)[:size]
        bits = _mix_on_device(_as_int64(keys, device) ^ words)
        own = _logically_shifted(bits, 12).double().add_(0.5).mul_(2.0**-52).log_().neg_()
        if self.in_columns:
            least, holder = (upload(torch.from_numpy(each), device)[..., None, :] for each in self._columns(keys))
            columns = own.view(*own.shape[:-1], COLUMN, self._width)
            columns.scatter_(-2, holder, 0.0)
            columns += least
        return own[..., : self.vocab]

    def first(self, probs: Tensor) -> Tensor:
        """For each row of probs (..., vocab) on the CPU, the token whose exponential / probability is least; -1 where
        the row is no distribution. The vocabulary must be large enough for columns (in_columns)."""
        keys = self._keys().reshape(-1, 1)
        places = zip(probs.numpy().reshape(-1, self.vocab), keys, *self._columns(keys), strict=True)
        return integers([self._first(*place) for place in places]).reshape(probs.shape[:-1])

    def _first(self, row: Array, key: Array, least: Array, holder: Array) -> int:
        """first() for one place. row: probabilities (vocab,). key: (1,). least, holder: by _columns()."""

        def best(some: Array) -> tuple[float, int]:
            """(the largest probability / exponential in some columns, its token)."""
            tokens = some + self._width * np.arange(COLUMN)[:, None]
            own = _exponentials(_mix(key ^ self._words()[tokens]))
            own[holder[some], np.arange(len(some))] = 0.0
            own += least[some]
            quotients = row.take(tokens, mode="clip") / own
            quotients[-1, tokens[-1] >= self.vocab] = -1.0
            place = int(quotients.argmax())
            return float(quotients.flat[place]), int(tokens.flat[place])

        largest = _largest(row, self._width)
        bound = largest / least  # an upper bound for every token of a column
        if not 0 < bound.max() < np.inf:
            return -1
        few = np.argpartition(bound, -FEW)[-FEW:]
        found = best(few)
        bound[few] = -1.0
        others = np.flatnonzero(bound >= found[0])
        return max(found, best(others))[1] if len(others) else found[1]

    @property
    def _width(self) -> int:
        return -(-self.vocab // COLUMN)

    def _keys(self) -> Array:
        return self.noise.keys(self.rows.numpy(), self.positions.numpy())

    def _words(self) -> Array:
        """The words of the tokens, then the words of the columns."""
        return self.noise.words(self.vocab + self._width, Noise.RACE)

    def _columns(self, keys: Array) -> tuple[Array, Array]:
        """(each column's least exponential, the place in the column of the token that has it), both (..., width). keys:
        (..., 1)."""
        bits = _mix(keys ^ self._words()[self.vocab :])
        return _exponentials(bits) / COLUMN, (bits % np.uint64(COLUMN)).astype(np.int64)


def _largest(row: Array, width: int) -> Array:
    """The largest number of each column, (width,), of a row (vocab,)."""
    height = len(row) // width
    largest: Array = row[: height * width].reshape(height, width).max(0)
    rest = row[height * width :]
    np.maximum(largest[: len(rest)], rest, out=largest[: len(rest)])
    return largest


def _exponentials(bits: Array) -> Array:
    """Exponentials of mean 1, float64 above 0, each from the upper 52 of 64 random bits."""
    uniforms = (bits >> np.uint64(12)).astype(np.float64)
    uniforms += 0.5  # uniforms are neither 0 nor 1 then, so logarithms and quotients stay finite
    uniforms *= 2.0**-52
    return -np.log(uniforms, out=uniforms)


def _mix(x: Array) -> Array:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed


def _as_int64(words: Array, device: torch.device) -> Tensor:
    """uint64 words on a device, as int64 of the same bits, because torch has few operators for uint64."""
    return upload(torch.from_numpy(words.view(np.int64)), device)


def _mix_on_device(x: Tensor) -> Tensor:
    """_mix() of int64. The result has the same bits, because sums and products of int64 wrap as those of uint64 do."""
    x = x + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x.bitwise_xor_(_logically_shifted(x, shift)).mul_(_signed(factor))
    return x.bitwise_xor_(_logically_shifted(x, 31))


def _logically_shifted(x: Tensor, by: int) -> Tensor:
    """x >> by with zeros shifted in from the left; torch's own shift repeats the sign bit."""
    return (x >> by).bitwise_and_((1 << 64 - by) - 1)


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word whose highest bit is set."""
    return word - (1 << 64)
