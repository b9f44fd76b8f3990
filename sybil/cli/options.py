"""Every option that two or more commands share: its help and its default.

Where a default is None, each command has its own, and the help says which."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from sybil.decoding import Decoder
from sybil.drafting.window import AUTO, WINDOWS
from sybil.errors import InvalidSetting, SybilError
from sybil.measuring import files
from sybil.measuring.prompts import Prompt, load, spread
from sybil.pairs import PAIRS, REGISTERED, SMOLLM2, STDLIB, default_pair
from sybil.pairs import pair as registered
from sybil.sampling import Sampling
from sybil.settings import Settings
from sybil.verification import RULES

MODELS, SPECULATION, SAMPLING, AMOUNT, OUTPUT = "Models", "Speculation", "Sampling", "How much", "Output"  # in --help
CHAT = "Chat"

RULE, WINDOW = Settings().rule, Settings().window
TOP_K, TOP_P, MIN_P = Sampling().top_k, Sampling().top_p, Sampling().min_p


def pair_names(incomplete: str) -> list[tuple[str, str]]:
    """For shell completion: the pairs whose names begin with the text, and their descriptions."""
    try:
        known = dict(PAIRS)
    except SybilError:  # an error in the user's own file
        known = dict(REGISTERED)
    return [(name, each.about) for name, each in known.items() if name.startswith(incomplete)]


def _beginning(names: Iterable[str]) -> Callable[[str], list[str]]:
    """For shell completion: a function that gives the names that begin with a text."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


PairOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=pair_names,
        help="A registered pair of target and draft, as `sybil pairs` lists them. If left out: smollm2 in generate, "
        "chat and prompts where its package is installed, stdlib elsewhere.",
        rich_help_panel=MODELS,
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        help="Target, in place of the pair: a hub id, a folder, a GGUF file, or ollama:NAME as `ollama list` shows it.",
        rich_help_panel=MODELS,
    ),
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        help="Draft: a model, as for --target; self, the target's own copy in fewer bits (self:4, 5, 6 or 8); "
        "skip, the target without some layers (skip:N, skip:N:BITS); lookup, the text so far; hybrid:lookup,DRAFT; "
        "cascade:lookup,DRAFT. If left out: the pair's own; none for --target.",
        rich_help_panel=MODELS,
    ),
]
DatastoreOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="A text file that lookup searches beside the text itself; may be given several times.",
        rich_help_panel=MODELS,
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="float32, float16, bfloat16, float64; auto: as stored; on a CPU few bits, which make it another model: "
        "int8, int4, q8_0, q6_k, q5_k, q4_k and others. If left out: float16 on a GPU; on a CPU float32, and the "
        "weights of a GGUF file stay in its blocks.",
        rich_help_panel=MODELS,
    ),
]
DraftDtypeOption = Annotated[
    str | None,
    typer.Option(
        help="What the draft's weights are kept in, as --dtype names it. If left out: the target's on a GPU; on a CPU "
        "int8, and the weights of a GGUF file stay in its blocks.",
        rich_help_panel=MODELS,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:N, mps or auto: the CUDA GPU where there is one, else the CPU. If left out: auto.",
        rich_help_panel=MODELS,
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        help="Branch, tag or commit of the target's hub id. If left out: its main branch.", rich_help_panel=MODELS
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        help="LoRA adapter in peft's format, a folder or a hub id, merged into the target's weights.",
        rich_help_panel=MODELS,
    ),
]

SystemOption = Annotated[
    str | None,
    typer.Option(
        help="The system's message, which the model reads first. Some models have one of their own if left out.",
        rich_help_panel=CHAT,
    ),
]


def _gamma(text: str) -> int | str:
    """gamma from its text: a number, or auto. Settings refuses numbers out of range."""
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"use an integer of 1 or more, or {AUTO}") from None


GammaOption = Annotated[
    Any,
    typer.Option(
        parser=_gamma,
        metavar="auto|N",
        help="Tokens the draft proposes in a round; auto: as many as pay. If left out: auto; 4 in verify and profile.",
        rich_help_panel=SPECULATION,
    ),
]
RuleOption = Annotated[
    str,
    typer.Option(
        autocompletion=_beginning(RULES),
        help="token, block or coupled: what keeps the output the target's, where tokens are sampled. Not lossless, not "
        "even greedily: lenience:L, typical:EPSILON, threshold:T, topk:K (docs/tradeoff.md).",
        rich_help_panel=SPECULATION,
    ),
]
WindowOption = Annotated[
    str,
    typer.Option(
        autocompletion=_beginning(WINDOWS),
        help="constant, heuristic or confident: how a proposal's length varies.",
        rich_help_panel=SPECULATION,
    ),
]

TemperatureOption = Annotated[
    float | None,
    typer.Option(
        help="Sample at this temperature; 0 is greedy. If left out: greedy; 1 in verify, which samples and decodes "
        "greedily besides.",
        rich_help_panel=SAMPLING,
    ),
]
TopKOption = Annotated[
    int, typer.Option(help="Sample from the k likeliest tokens; 0 for all.", rich_help_panel=SAMPLING)
]
TopPOption = Annotated[
    float,
    typer.Option(
        help="Sample from the likeliest tokens that hold this share of the mass; 1 for all.", rich_help_panel=SAMPLING
    ),
]
MinPOption = Annotated[
    float,
    typer.Option(help="Leave out tokens below this share of the likeliest; 0 for none.", rich_help_panel=SAMPLING),
]
ServedOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The server's name for the model, where it serves several. If left out: the smallest in check.",
        rich_help_panel=MODELS,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        help="The same seed gives the same texts, and in distill the same draft. If left out: a fresh one in generate "
        "and chat, 0 elsewhere.",
        rich_help_panel=SAMPLING,
    ),
]

MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        help="New tokens a text, at most. If left out: 128 in generate; 1024 in chat; 48 in compare, tradeoff and "
        "verify, fewer if --quick.",
        rich_help_panel=AMOUNT,
    ),
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Fewer prompts and fewer tokens: seconds, not minutes.", rich_help_panel=AMOUNT)
]
CountOption = Annotated[
    int | None,
    typer.Option(
        help="How many prompts, as many of each kind. If left out: 64; 12 beside --drafters; 24 in tradeoff; fewer if "
        "quick; 150 in prompts.",
        rich_help_panel=AMOUNT,
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="Your own prompts: JSONL, a text or messages each; or a .txt file, a prompt a line.",
        rich_help_panel=AMOUNT,
    ),
]

OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the numbers (JSON) and the chart (PNG), in distill for the draft; sybil- and the command's "
        "name if left out.",
        rich_help_panel=OUTPUT,
    ),
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(
        help="Go on with an earlier run, by its JSONL file, or in verify by its folder: only what is lacking is asked.",
        rich_help_panel=OUTPUT,
    ),
]
MetricsFileOption = Annotated[
    Path | None,
    typer.Option(
        help="Write what was decoded for Prometheus to this file, under vLLM's names: counters and latencies, replaced "
        "after each text.",
        rich_help_panel=OUTPUT,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.", rich_help_panel=OUTPUT)]


def names(pair: str | None, target: str | None, draft: str | None) -> tuple[str, str | None]:
    """(target, draft) that the options choose. Raises UnknownPair or InvalidSetting."""
    if target is not None and target not in PAIRS:
        return target, draft
    chosen = registered(target or pair or STDLIB)
    return chosen.source, chosen.draft if draft is None else draft


def prompts(pair: str | None, target: str | None, path: Path | None, count: int | None = None) -> list[Prompt]:
    """The prompts of the file that the options name, or else the pair's own; at most `count`, equally many of each
    domain. Raises UnknownPair or InvalidSetting."""
    if count is not None and count < 1:
        raise InvalidSetting(f"count is {count}: use an integer of 1 or more")
    is_registered = target is None or target in PAIRS
    found = load(path, registered((is_registered and target) or pair or STDLIB).prompts)
    return found if count is None else spread(found, count)


def announce(pair: str | None, target: str | None) -> None:
    """Print on standard error which pair was chosen, if the user named none and it isn't stdlib."""
    chosen = default_pair()
    if pair is None and target is None and chosen != STDLIB:
        typer.echo(f"using the pair {chosen} ({PAIRS[chosen].about}); choose another by --pair or --target", err=True)


def check_chats(decoder: Decoder, pair: str | None, target: str | None, consequence: str) -> None:
    """Raises InvalidSetting where the model has no chat template. consequence: what follows from that, for the
    message."""
    if decoder.chat_template is None:
        raise InvalidSetting(
            f"{target or pair or default_pair()} has no chat template{consequence}: give --target an instruct model, "
            f"or use --pair {SMOLLM2} ({PAIRS[SMOLLM2].fetching})"
        )


def sampling(temperature: float | None, top_k: int, top_p: float, min_p: float) -> Sampling:
    """The sampling that the options choose; greedy where no temperature is given. Raises InvalidSetting."""
    chosen = Sampling(temperature or 0.0, top_k, top_p, min_p)
    filters = {"top_k": (top_k, TOP_K), "top_p": (top_p, TOP_P), "min_p": (min_p, MIN_P)}
    unused = [f"{name} is {value}" for name, (value, usual) in filters.items() if value != usual]
    if chosen.greedy and unused:
        raise InvalidSetting(f"{' and '.join(unused)}, and greedy decoding samples nothing: add --temperature")
    return chosen


def out_folder(out: Path | None, command: str) -> Path:
    """The folder for a command's results."""
    return out or Path(f"sybil-{command}")


def rows_file(out: Path | None, resume: Path | None, command: str) -> Path:
    """The file of a command's rows: the one that is resumed, or a new one. Raises InvalidSetting for a folder that
    can't be written to."""
    folder = out_folder(out, command)
    files.check_folder(folder)
    return resume or files.unused(folder / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
