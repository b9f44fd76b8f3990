"""The process that runs a foreign function, and the checks of what such a function returns.

foreign.py starts this file by its path. It imports only the standard library, so the process starts at once and holds
only what the function needs. Requests come as JSON lines on standard input. Answers go out as JSON lines on what was
standard output. The function itself finds nothing on standard input, and what it prints goes to standard error."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import json
import os
import queue
import reprlib
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

FORMS = "package.module:function or file.py:function"
TRACEBACK = "SYBIL_TRACEBACK"  # an environment variable: tracebacks are shown whole
MOST_TOKENS = 100_000  # in one answer; no request asks for more
LARGEST_ID = 2**31 - 1
NAMED = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "eos_token_ids", "stop_strings", "seed", "gamma")
"""The keywords that a function may be called with, beside its prompt. gamma is passed only if the function names it."""

Answer = tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, int] | None]
"""New tokens; each one's place in its block, if the function gives it; the numbers of tokens drafted and accepted, if
the function counts them."""


class Unfit(Exception):
    """There is no function of that name, or it gave no answer. The message continues after the decoder's name."""


def answer_of(given: Any) -> Answer:
    """The tokens, places and counts that a function gave. Raises Unfit for anything else."""
    with_more = isinstance(given, tuple) and len(given) in (2, 3) and not isinstance(given[0], int)
    tokens, places, counts = (*given, None, None)[:3] if with_more else (given, None, None)
    tokens = _integers(tokens, "tokens")
    counts = None if counts is None else _counts(counts)
    if places is None:
        return tokens, None, counts
    places = _integers(places, "places")
    if len(places) != len(tokens):
        raise Unfit(f"gave {len(tokens)} tokens and {len(places)} places: give a place a token")
    return tokens, places, counts


def _counts(values: Any) -> tuple[int, int]:
    counts = _integers(values, "counts")
    if len(counts) != 2 or counts[1] > counts[0]:
        raise Unfit(f"gave counts {_shown(values)}: give the tokens drafted, and those of them that were accepted")
    return counts[0], counts[1]


def _integers(values: Any, what: str) -> tuple[int, ...]:
    """The integers of a list, a tuple, or anything with tolist(), such as a tensor or an array. Raises Unfit."""
    if hasattr(values, "tolist") and getattr(values, "ndim", None) == 1 and len(values) <= MOST_TOKENS:
        values = values.tolist()
    found = tuple(itertools.islice(values, MOST_TOKENS + 1)) if isinstance(values, list | tuple) else None
    if found is not None and len(found) > MOST_TOKENS:
        raise Unfit(f"gave more than {MOST_TOKENS} {what} in one answer: return the new tokens only")
    if found is not None and all(type(each) is int and 0 <= each <= LARGEST_ID for each in found):
        return found
    raise Unfit(
        f"gave {what} {_shown(values)}: return the new tokens as a list of token ids or a 1-d tensor of them, or a "
        "tuple of such tokens, of their places in the block, and of the counts of drafted and accepted ones"
    )


def _shown(values: Any) -> str:
    """The beginning of what was given, in text, for a message."""
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = 8
    try:
        text = short.repr(values)
    except Exception:  # an integer of thousands of digits has no repr
        text = f"a {type(values).__name__} that can't be shown"
    return text[:60] + "..." * (len(text) > 60)


def error_line(error: BaseException) -> str:
    """The exception's type and the first line of its message."""
    try:
        text = str(error).strip()
    except BaseException as other:  # str() of the exception raises itself
        text = f"its message raised {type(other).__name__}"
    return f"{type(error).__name__}: {(text or 'no message').splitlines()[0][:500]}"


def function_of(spec: str) -> Any:
    """The function package.module:function, or file.py:function. Raises Unfit where there is none, and whatever the
    import of its module raises."""
    module_name, _, function_name = spec.rpartition(":")
    module = _of_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    function = getattr(module, function_name, None)
    if callable(function):
        return function
    there = sorted(name for name, value in vars(module).items() if _is_public(name, value, module.__name__))
    raise Unfit(f"{module_name} has no function {function_name!r}: choose among {', '.join(there[:20]) or 'none'}")


def _of_file(path: str) -> Any:
    """The module in a file. It can import its neighbours, as in `python file.py`."""
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise Unfit(f"there is no file {file}")
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(f"judged_{file.stem}", file)  # a name that no other module has
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def taken(function: Any) -> list[str]:
    """Those of NAMED that a function is called with. Raises Unfit for a function that can't be called so."""
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # some functions written in C have no signature
        return [*NAMED[:-1]]
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise Unfit("it takes no prompt: let its first argument be the prompt, a list of token ids")
    rest = parameters[1:]
    named = [each for each in rest if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    unknown = [each.name for each in rest if _is_needed(each) and (each not in named or each.name not in NAMED)]
    if unknown:
        raise Unfit(
            f"it asks for {', '.join(unknown)}, which the judge doesn't give: give that a default. Beside the prompt a "
            f"function is called with those that it names of {', '.join(NAMED)}"
        )
    takes_any = any(each.kind == each.VAR_KEYWORD for each in rest)
    names = {each.name for each in named}
    return [name for name in NAMED if name in names or (takes_any and name != "gamma")]


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _is_public(name: str, value: Any, module_name: str) -> bool:
    return callable(value) and not name.startswith("_") and getattr(value, "__module__", module_name) == module_name


def main() -> None:
    """Import the function that the first request names, then call it with each further request."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, asked), daemon=True).start()

    function: Any = None
    while True:
        try:
            request = asked.get()
            if function is None:
                sys.path[:] = request["path"]
                function = function_of(request["spec"])
                reply: dict[str, Any] = {"takes": taken(function)}
            else:
                tokens, places, counts = answer_of(function(request["prompt"], **_settings(request)))
                reply = {"tokens": tokens, "places": places, "counts": counts}
        except Unfit as error:
            reply = {"unfit": str(error)}
        except BaseException as error:  # SystemExit is handled as any other exception
            if os.environ.get(TRACEBACK):
                traceback.print_exc()
            reply = {"raised": error_line(error)}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _settings(request: dict[str, Any]) -> dict[str, Any]:
    """A request's settings with their lists as tuples again, which JSON doesn't have."""
    return {name: tuple(each) if isinstance(each, list) else each for name, each in request["settings"].items()}


def _listen(requests: Any, asked: queue.SimpleQueue[dict[str, Any]]) -> NoReturn:
    """Take requests while the function runs. At the end of standard input the process ends."""
    for line in requests:
        asked.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
