"""The output of `sybil check`, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from sybil.checking.check import PairFacts, Tokens
from sybil.checking.memory import MemoryNeed, Placed
from sybil.checking.ollama import OllamaAnswer, OllamaModel
from sybil.checking.promise import ACCEPTANCES
from sybil.checking.smoke import Smoke
from sybil.cli.terminal import make_table
from sybil.errors import one_line
from sybil.models.copies import BITS

MEGABYTE = 1e6
DRAFT_MODEL = "the draft"
ROUNDED = {f"r{bits}": f"{bits} bits" for bits in BITS}
TOLD: dict[Tokens, str] = {
    "same": "the draft's are the target's",
    "padded": "the draft's are the target's, padded otherwise",
    "intersection": "the draft has others: it draws among those that both have ({share:.0%} of an English text's)",
    "strings": "the draft has others ({share:.0%} of an English text's are shared): it writes text, encoded again",
}


def print_found(console: Console, found: PairFacts) -> None:
    """Print all that was found before anything was loaded."""
    setup = found.setup
    where = "its weights are on this machine" if setup.helper is None else "the weights of both are on this machine"
    _say(console, f"target {found.target}: {_about(setup.target)}")
    if setup.helper is not None:
        _say(console, f"draft {found.draft}: {_about(setup.helper)}")
    elif found.draft is not None:
        _say(console, f"draft {found.draft}")
    _say(console, where if found.here else "not all weights are on this machine: nothing of them has been downloaded")
    if found.tokens is not None:
        _say(console, f"tokens: {TOLD[found.tokens].format(share=found.share or 0)}")
    _print_memory(console, found)
    _print_promises(console, found)


def _about(part: Placed) -> str:
    """A model in one line: its kind, its size, and the storage of its weights."""
    kind = one_line(str(part.checkpoint.config.get("model_type") or "a model"), 40)
    forward = "" if part.checkpoint.known else ", by transformers' forward"
    weights = part.weights
    kept = ", ".join(f"{ROUNDED.get(word, word)} {_megabytes(size)} MB" for word, size in _largest(weights.kept))
    return f"{kind}, {_count(weights.parameters)} parameters{forward}; {kept}"


def _largest(kept: Any) -> list[tuple[str, int]]:
    """The bytes of weights by storage, the largest first. A storage with less than 1 % is left out."""
    total = sum(kept.values())
    return sorted(((word, size) for word, size in kept.items() if size >= total / 100), key=lambda each: -each[1])


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _print_memory(console: Console, found: PairFacts) -> None:
    extent, device = found.setup.extent, found.setup.target.device
    rows = "1 row" if extent.batch == 1 else f"{extent.batch} rows"
    table = make_table(console, f"memory on {device}, {rows} of {extent.context:,} tokens", "MB")
    for name, size in found.memory.parts.items():
        table.add_row(name, _megabytes(size))
    table.add_row("together, while decoding", _megabytes(found.memory.decoding))
    table.add_row("at most, while loading", _megabytes(found.memory.loading))
    table.add_row("free", "unknown" if found.free is None else _megabytes(found.free))
    console.print(table)
    if found.context and extent.context < found.context:
        _say(console, f"the target takes up to {found.context:,} tokens: --context N reckons with so many")
    if found.fits is None:
        return
    if found.fits:
        _say(console, "it fits")
        return
    free, needed = (_megabytes(size) for size in (found.free or 0, found.memory.peak))
    _say(console, f"it doesn't fit: {needed} MB are needed, and {free} MB are free")
    for each in found.alternatives:
        _say(console, f"  would fit: {', '.join(each.words)} ({_megabytes(each.memory.peak)} MB)")
    if not found.alternatives:
        _say(console, "  nothing of it would fit: choose a smaller model, or fewer rows")


def _print_promises(console: Console, found: PairFacts) -> None:
    headings = ("drafter", "MB more", "cost", *(f"{each:.0%}" for each in ACCEPTANCES))
    table = make_table(console, *headings)
    bare = min((each.memory for each in found.candidates), key=lambda memory: memory.decoding)
    for each in found.candidates:
        name = DRAFT_MODEL if found.setup.helper is not None and each.name == found.draft else each.name
        more = _megabytes(each.memory.decoding - bare.decoding)
        if each.promise is None:
            table.add_row(name, more, "unknown", *[""] * len(ACCEPTANCES))
            continue
        speeds = (f"{speed.times:.2f}/{speed.gamma}" for speed in each.promise.speeds)
        table.add_row(name, more, f"{each.promise.cost:.2f}", *speeds)
    console.print(table)
    _say(
        console,
        "times as fast as without a draft, by the chance that a drafted token is kept, and behind the stroke how many "
        "to draft in a round; cost: a drafted token's, in forwards of the target, by the bytes that both read. `sybil "
        "compare --drafters all` measures what is kept.",
    )


def print_smoke(console: Console, tried: Smoke) -> None:
    """Print the result of decoding ten tokens."""
    computed = "" if tried.kept == tried.dtype else f", computed in {tried.dtype},"
    _say(
        console,
        f"tried: {tried.kept}{computed} on {tried.device}, loaded in {tried.loading:.1f} s, {tried.tokens} tokens in "
        f"{tried.seconds:.2f} s: {tried.prompt!r} {tried.text!r}",
    )


def recorded(found: PairFacts, tried: Smoke | None) -> dict[str, Any]:
    """All findings as one JSON object. Sizes are in bytes."""
    setup = found.setup
    return {
        "target": {"name": found.target, **_record_of(setup.target)},
        "draft": None if found.draft is None else {"name": found.draft, **_record_of(setup.helper)},
        "here": found.here,
        "device": str(setup.target.device),
        "batch": setup.extent.batch,
        "context": setup.extent.context,
        "longest_context": found.context,
        "tokens": found.tokens,
        "shared": found.share,
        "memory": _memory(found.memory),
        "free": found.free,
        "fits": found.fits,
        "alternatives": [{"change": list(each.words), **_memory(each.memory)} for each in found.alternatives],
        "drafters": [
            {
                "name": each.name,
                "peak": each.memory.peak,
                "promise": None if each.promise is None else asdict(each.promise),
            }
            for each in found.candidates
        ],
        "tried": None if tried is None else asdict(tried),
    }


def _record_of(part: Placed | None) -> dict[str, Any]:
    if part is None:
        return {}
    weights = part.weights
    return {
        "model_type": part.checkpoint.config.get("model_type"),
        "own_forward": part.checkpoint.known is not None,
        "parameters": weights.parameters,
        "weights": dict(weights.kept),
    }


def _memory(memory: MemoryNeed) -> dict[str, Any]:
    return {"parts": dict(memory.parts), "decoding": memory.decoding, "loading": memory.loading, "peak": memory.peak}


def print_models(console: Console, url: str, found: list[OllamaModel]) -> None:
    """Print the models of an Ollama server."""
    if not found:
        _say(console, f"{url} has no models: `ollama pull` one")
        return
    table = make_table(console, f"models of {url}", "parameters", "kept in", "GB", "architecture", "Sybil's forward")
    for each in found:
        known = "knows it" if each.known else "doesn't"
        size = f"{each.nbytes / 1e9:.2f}"
        table.add_row(each.name, each.parameters, each.quantisation, size, each.architecture, known)
    console.print(table)


def print_answer(console: Console, answer: OllamaAnswer | None) -> None:
    """Print the answer of one of the server's models, and what such a server can be used for."""
    if answer is not None:
        count = "" if answer.tokens is None else f"{answer.tokens} tokens "
        _say(console, f"{answer.model}: {count}in {answer.seconds:.1f} s: {answer.prompt!r} {answer.text!r}")
    _say(
        console,
        "Ollama gives no distributions over the vocabulary: it can be asked, and neither judged by `sybil verify` nor "
        "compared by `sybil compare`. Sybil reads Ollama's files itself: --target ollama:NAME.",
    )


def recorded_models(url: str, found: list[OllamaModel], answer: OllamaAnswer | None) -> dict[str, Any]:
    """The server's models and the answer as one JSON object."""
    return {
        "url": url,
        "models": [asdict(each) for each in found],
        "answer": None if answer is None else asdict(answer),
        "distributions": False,
    }


def _megabytes(size: float) -> str:
    return f"{size / MEGABYTE:,.0f}"


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False)
