"""The examples at the end of each command's --help: two for each command, as they are typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "generate": (
        'sybil generate "def main(" --pair stdlib --temperature 0.8 --seed 1',
        'sybil generate "Why is the sky blue?" --chat --pair smollm2',
    ),
    "chat": (
        "sybil chat --pair smollm2",
        'sybil chat --target ollama:smollm2:135m --system "Answer in one sentence."',
    ),
    "check": (
        "sybil check Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B --context 4096",
        "sybil check --ollama    # the models of a local Ollama server",
    ),
    "compare": (
        "sybil compare --quick    # twenty seconds instead of two minutes",
        "sybil compare --pair smollm2 --drafters self,lookup --gammas auto,4",
    ),
    "pairs": (
        "sybil pairs",
        "sybil pairs smollm2    # all that is known of one",
    ),
    "profile": (
        "sybil profile --pair stdlib --passes 10",
        "sybil profile --pair smollm2 --draft self --metrics-file sybil.prom",
    ),
    "prompts": (
        "sybil prompts --source shipped --tiny    # 15 prompts, without network",
        "sybil prompts --domain code --count 20 --save code.jsonl",
    ),
    "sweep": (
        "sybil sweep smoke    # seconds; --list shows the sweeps that ship with Sybil",
        "sybil sweep my-sweep.yaml --results rows.jsonl",
    ),
    "report": (
        "sybil report sybil-sweep/smoke.jsonl",
        "sybil report rows.jsonl --out figures --formats svg,csv",
    ),
    "tradeoff": (
        "sybil tradeoff --quick    # a minute, on the embedded pair",
        "sybil tradeoff --pair smollm2 --count 8",
    ),
    "verify": (
        "sybil verify --quick",
        "sybil verify --decoder mine.py:decode --target my-model",
    ),
    "distill": (
        "sybil distill my-model --data notes/ --out my-draft",
        "sybil distill my-model --data chats.jsonl --budget 60 --seed 1",
    ),
}


class Help(TypedDict):
    """typer's keywords for a command's help."""

    help: str
    epilog: str


def help_of(command: Callable[..., object]) -> Help:
    """A command's docstring on one line, which the terminal wraps, and the command's examples.

    A blank line separates the examples, because typer joins lines without one."""
    about = " ".join((command.__doc__ or "").split())
    return {"help": about, "epilog": "\n\n".join(("Examples:", *EXAMPLES[command.__name__]))}
