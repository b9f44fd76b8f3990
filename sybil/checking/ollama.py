"""The models that a local Ollama server has, by its API, and a first try of one of them.

The server is somebody else's: every field of its answers is typed and bounded before it is used."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sybil.errors import EndpointFailed, EndpointRefused, InvalidSetting, one_line, shown
from sybil.models.checkpoints.gguf.architectures import ARCHITECTURES
from sybil.servers.transport import Server, ServerKind

HOST = "OLLAMA_HOST"
HERE, EVERYWHERE, PORT = "127.0.0.1", "0.0.0.0", 11434
URL = f"http://{HERE}:{PORT}"
KIND = ServerKind(
    named="ollama",
    option="--ollama's URL (`ollama serve` starts one)",
    example=URL,
    what="an Ollama server",
    key=None,
    slow="try again: a large model takes long to load",
)
TIMEOUT = 120.0
MOST_MODELS, LONGEST, MOST_NUMBER = 200, 120, 1 << 60
PROMPT, NEW_TOKENS = "The quick brown fox", 10
COMPLETES = "completion"


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """One of the server's models. A field that the server doesn't give is "", 0 or None.

    nbytes: its size. context: the most tokens that it takes. known: whether Sybil's own forward knows the
    architecture. completes: whether it continues texts, which embedding models don't."""

    name: str
    parameters: str
    quantisation: str
    nbytes: int
    architecture: str
    context: int | None
    known: bool
    completes: bool


@dataclass(frozen=True, slots=True)
class OllamaAnswer:
    """A model's answer. tokens: how many are new, None where the server doesn't tell. seconds: of the whole request."""

    model: str
    prompt: str
    text: str
    tokens: int | None
    seconds: float


def server(url: str | None = None) -> Server:
    """The Ollama server at url. Without a url it is the server that OLLAMA_HOST names, read as Ollama reads it, or else
    the one at Ollama's default address on this machine. Raises EndpointFailed."""
    given = url or os.environ.get(HOST) or URL
    given = given if "://" in given else f"http://{given}"
    with contextlib.suppress(ValueError):  # it is no URL then, and Server refuses it
        parts = urlsplit(given)
        host, port = parts.hostname or EVERYWHERE, parts.port
        if parts.scheme == "http" and "@" not in given and not parts.path.strip("/"):
            place = HERE if host == EVERYWHERE else f"[{host}]" if ":" in host else host
            given = f"http://{place}:{PORT if port is None else port}"
    return Server(given, TIMEOUT, kind=KIND)


def models(asked: Server) -> list[OllamaModel]:
    """All models of the server, the smallest first. Raises EndpointFailed."""
    listed = asked.ask("/api/tags").get("models")
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise EndpointFailed(f"{asked.url}/api/tags answered no list of models: check that an Ollama server is there")
    if len(listed) > MOST_MODELS:
        raise EndpointFailed(f"{asked.url} has {len(listed)} models, and at most {MOST_MODELS} are listed")
    found = [_model(asked, each) for each in listed if _text(each, "name")]
    return sorted(found, key=lambda model: model.nbytes)


def _model(asked: Server, listed: Mapping[str, Any]) -> OllamaModel:
    """A model, by its entry in /api/tags and the answer of /api/show."""
    name = _text(listed, "name")
    try:
        told = asked.ask("/api/show", {"model": name})
    except EndpointRefused:  # gone since it was listed, or an older server
        told = {}
    details, info = (_object(each, key) for each, key in ((listed, "details"), (told, "model_info")))
    details = details or _object(told, "details")
    architecture = _text(info, "general.architecture") or _text(details, "family")
    capabilities = told.get("capabilities")
    return OllamaModel(
        name=name,
        parameters=_text(details, "parameter_size") or _counted(info.get("general.parameter_count")),
        quantisation=_text(details, "quantization_level"),
        nbytes=_number(listed.get("size")) or 0,
        architecture=architecture,
        context=_number(info.get(f"{architecture}.context_length")),
        known=architecture in ARCHITECTURES,
        completes=not isinstance(capabilities, list) or COMPLETES in capabilities,
    )


def chosen(found: list[OllamaModel], name: str | None) -> OllamaModel | None:
    """The model of that name; without a name the smallest that continues texts, None where no model does. Raises
    InvalidSetting."""
    if name is None:
        return next((model for model in found if model.completes), None)
    wanted = {name, f"{name}:latest"}
    for model in found:
        if model.name in wanted:
            return model
    listed = one_line(", ".join(model.name for model in found), 300) or "none"
    raise InvalidSetting(f"model is {shown(name)}, and Ollama has {listed}: name one of these, or `ollama pull` it")


def try_out(asked: Server, model: OllamaModel) -> OllamaAnswer:
    """Lets the model continue a text greedily. Raises EndpointFailed."""
    options = {"num_predict": NEW_TOKENS, "temperature": 0, "seed": 0}
    body = {"model": model.name, "prompt": PROMPT, "raw": True, "stream": False, "options": options}
    began = time.monotonic()
    answer = asked.ask("/api/generate", body)
    seconds = time.monotonic() - began
    if "error" in answer:
        raise EndpointFailed(f"{asked.url} doesn't run {model.name} ({asked.shown(str(answer['error']))}): see its log")
    text = answer.get("response")
    if not isinstance(text, str):
        raise EndpointFailed(f"{asked.url}/api/generate answered no text for {model.name}: update Ollama")
    return OllamaAnswer(model.name, PROMPT, text[:4096], _number(answer.get("eval_count")), seconds)


def _object(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return one_line(value, LONGEST) if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_NUMBER
    return int(value) if is_one else None  # type: ignore[call-overload]


def _counted(value: object) -> str:
    """A number of parameters, in words: in thousand millions or millions."""
    count = _number(value)
    if count is None:
        return ""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
