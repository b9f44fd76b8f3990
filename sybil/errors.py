"""One exception per way to fail; each message names the values at odds and the remedy, in one line."""

from __future__ import annotations

import reprlib

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 80


def shown(value: object) -> str:
    """A file's value or name as a message shows it: in one line, cut short, odd characters escaped."""
    if isinstance(value, int) and abs(value) >= 1 << 128:
        return f"of {value.bit_length()} bits"
    return " ".join(_shortened.repr(value).split())


def one_line(text: str, most: int = 200) -> str:
    """Text of somebody else's, fit for a message: on one line, without control characters, `most` characters long."""
    line = " ".join(text[: 8 * most].split())
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
    return line if len(line) <= most else line[: most - 3] + "..."


def told(error: BaseException) -> str:
    """What another library says is wrong, fit for a message."""
    return one_line(str(error)) or type(error).__name__


class SybilError(Exception):
    """Base of everything Sybil raises on purpose. The command line prints it and exits with 2."""


class InvalidSetting(SybilError, ValueError):
    """A generation setting outside its range: gamma, top_p, temperature, ..."""


class EmptyPrompt(SybilError, ValueError):
    """A prompt without a single token: there is nothing to condition on."""


class PromptTooLong(SybilError, ValueError):
    """A prompt that fills the model's context and leaves no room for a new token."""


class UnknownPair(SybilError, LookupError):
    """A pair's name that is not registered."""


class NotAModel(SybilError):
    """A folder or hub repository that lacks what a model needs (config.json, safetensors, tokenizer.json)."""


class GatedModel(NotAModel):
    """A hub repository that only those may read whom its owner has let in."""


class AdapterMismatch(SybilError):
    """An adapter that was made for another model, or that does what Sybil can't merge into a model's weights."""


class WeightsMismatch(SybilError):
    """Weights whose names or shapes are not those that the config asks for."""


class VocabularyMismatch(SybilError):
    """A draft whose tokens are not the target's tokens."""


class UnsupportedModel(SybilError):
    """A model whose state can't be rolled back, or an architecture that is not a decoder-only language model."""


class PackageMissing(SybilError, ImportError):
    """A package that isn't installed, and that what was asked for needs: a model's quantisation, the hub's datasets."""


class HubUnreachable(SybilError, OSError):
    """A hub id that is neither in the local cache nor to be fetched."""


class DatasetUnusable(SybilError):
    """A dataset of the hub that has other columns than its prompts are made of, or no row that can be used."""


class DeviceUnavailable(SybilError):
    """A device that torch does not see."""


class OutOfMemory(SybilError, MemoryError):
    """More memory than the machine has free: fewer or shorter rows need less."""


class NumericalFailure(SybilError, ArithmeticError):
    """Logits with NaN, or with no finite entry: no distribution can be made of them."""


class CacheOutOfStep(SybilError, RuntimeError):
    """A cache whose lengths are not the committed tokens less one. Always a defect, never the user's fault."""


class ResultsMismatch(SybilError):
    """A results file to be resumed that was written under other settings."""


class ResultsUnwritable(SybilError, OSError):
    """A results file that can't be written to: a full disk, a folder of somebody else's, another process's lock."""


class OutputClosed(SybilError, OSError):
    """A standard output that is closed: nothing could be said."""


class EndpointFailed(SybilError, OSError):
    """A server that can't be reached, refuses a request, or answers with something else than completions."""


class EndpointRefused(EndpointFailed):
    """A request that a server doesn't take. status: HTTP's; said: the refusal as it came."""

    def __init__(self, line: str, status: int, said: str) -> None:
        super().__init__(line)
        self.status, self.said = status, said


class EndpointLost(EndpointFailed):
    """A server that isn't there, broke off, or is too busy: it may answer when it is asked again."""


class PeerFailed(SybilError):
    """Another system that was to be measured beside Sybil, and that doesn't start or answer."""


class NotJudgeable(SybilError):
    """A decoder whose answers can't be judged: none in time, an exception or an exit in place of one, other prompts,
    other token ids, or not one answer a prompt."""
