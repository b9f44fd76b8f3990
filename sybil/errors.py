"""One exception for each way to fail. Each message is one line that names the conflicting values and the remedy."""

from __future__ import annotations

import reprlib

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 80


def shown(value: object) -> str:
    """A value or name from a file, made fit for a message: in one line, cut short, unprintable characters escaped."""
    if isinstance(value, int) and abs(value) >= 1 << 128:
        return f"of {value.bit_length()} bits"
    return " ".join(_shortened.repr(value).split())


def one_line(text: str, most: int = 200) -> str:
    """Text from outside, made fit for a message: in one line, without control characters, at most `most` characters."""
    line = " ".join(text[: 8 * most].split())
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
    return line if len(line) <= most else line[: most - 3] + "..."


def told(error: BaseException) -> str:
    """The message of another library's error, made fit for a message."""
    return one_line(str(error)) or type(error).__name__


class SybilError(Exception):
    """The base class of everything that Sybil raises on purpose. The command line prints its message and exits with
    2."""


class InvalidSetting(SybilError, ValueError):
    """A generation setting outside its range: gamma, top_p, temperature, ..."""


class EmptyPrompt(SybilError, ValueError):
    """A prompt without a single token: the model has nothing to continue."""


class PromptTooLong(SybilError, ValueError):
    """A prompt that fills the model's context and leaves no room for a new token."""


class UnknownPair(SybilError, LookupError):
    """A pair's name that is not registered."""


class NotAModel(SybilError):
    """A folder or hub repository that lacks what a model needs (config.json, safetensors, tokenizer.json)."""


class GatedModel(NotAModel):
    """A hub repository that can be read only by accounts to which its owner has granted access."""


class AdapterMismatch(SybilError):
    """An adapter that was made for another model, or that Sybil can't merge into a model's weights."""


class WeightsMismatch(SybilError):
    """Weights whose names or shapes differ from those that the config asks for."""


class VocabularyMismatch(SybilError):
    """A draft whose tokens are not the target's tokens."""


class UnsupportedModel(SybilError):
    """A model whose state can't be rolled back, or an architecture that is not a decoder-only language model."""


class PackageMissing(SybilError, ImportError):
    """A package that isn't installed and is needed, for example by a model's quantisation or for the hub's datasets."""


class HubUnreachable(SybilError, OSError):
    """A hub id that is not in the local cache and can't be fetched."""


class DatasetUnusable(SybilError):
    """A dataset of the hub that lacks the columns from which its prompts are made, or has no usable row."""


class DeviceUnavailable(SybilError):
    """A device that torch does not see."""


class OutOfMemory(SybilError, MemoryError):
    """More memory than the machine has free: fewer or shorter rows need less."""


class NumericalFailure(SybilError, ArithmeticError):
    """Logits with NaN, with +inf or without a finite entry: no distribution can be made from them."""


class CacheOutOfStep(SybilError, RuntimeError):
    """A KV cache whose lengths are not the numbers of committed tokens minus one. This is always a
    defect, never the user's fault."""


class ResultsMismatch(SybilError):
    """A results file that can't be resumed because it was written under other settings."""


class ResultsUnwritable(SybilError, OSError):
    """A results file that can't be written to: the disk is full, the folder isn't writable, or another process holds
    the file's lock."""


class OutputClosed(SybilError, OSError):
    """Standard output is closed, so nothing can be printed."""


class EndpointFailed(SybilError, OSError):
    """A server that can't be reached, that refuses a request, or that answers with something other than completions."""


class EndpointRefused(EndpointFailed):
    """A request that a server refuses. status: the HTTP status code. said: the server's answer, unchanged."""

    def __init__(self, line: str, status: int, said: str) -> None:
        super().__init__(line)
        self.status, self.said = status, said


class EndpointLost(EndpointFailed):
    """A server that isn't there, that broke off, or that is too busy. It may answer when it is asked again."""


class PeerFailed(SybilError):
    """Another system that was to be measured beside Sybil and that doesn't start or doesn't answer."""


class NotJudgeable(SybilError):
    """A decoder whose answers can't be judged. It gave no answer in time, raised an exception or exited, changed the
    prompts, used other token ids, or did not give one answer for each prompt."""
