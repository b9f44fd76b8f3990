"""sybil chat: a conversation in the terminal, by the model's own chat template."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from tokenizers import Tokenizer

from sybil.cli import options
from sybil.cli.streaming import counted, ending, shown
from sybil.conversation import Conversation
from sybil.drafting.window import AUTO
from sybil.errors import InvalidSetting, PromptTooLong, SybilError, one_line
from sybil.loading import load
from sybil.measuring import files
from sybil.measuring.metrics import MetricsFile
from sybil.pairs import default_pair
from sybil.results import Stats, Step
from sybil.settings import Settings, chosen

ANSWER_TOKENS = 1024
PROMPT = "> "
HELP = """\
/stats      what the last answer and the whole conversation cost, and how much of the context is used
/reset      begin anew: all messages but the system's are forgotten
/save FILE  write the messages to a new file, as JSON
/quit       end, as Ctrl-D does
Ctrl-C stops an answer, and what it says until then stays. Put a space before a message that begins with a slash."""


def chat(
    pair: options.PairOption = None,
    target: options.TargetOption = None,
    draft: options.DraftOption = None,
    datastore: options.DatastoreOption = None,
    dtype: options.DtypeOption = None,
    draft_dtype: options.DraftDtypeOption = None,
    device: options.DeviceOption = None,
    revision: options.RevisionOption = None,
    adapter: options.AdapterOption = None,
    gamma: options.GammaOption = None,
    rule: options.RuleOption = options.RULE,
    window: options.WindowOption = options.WINDOW,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = options.TOP_K,
    top_p: options.TopPOption = options.TOP_P,
    min_p: options.MinPOption = options.MIN_P,
    seed: options.SeedOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    system: options.SystemOption = None,
    metrics_file: options.MetricsFileOption = None,
) -> None:
    """Talk with a model: one line is one message. Green: tokens that the draft proposed; magenta: the target's own."""
    sampling = options.sampling(temperature, top_k, top_p, min_p)
    settings = {
        "max_new_tokens": ANSWER_TOKENS if max_new_tokens is None else max_new_tokens, **sampling.keywords,
        "gamma": AUTO if gamma is None else gamma, "rule": rule, "window": window, "seed": seed,
    }  # fmt: skip
    Settings(**settings)  # raises for wrong settings before anything is loaded
    chosen_target, chosen_draft = options.names(pair or default_pair(), target, draft)
    metrics = MetricsFile(metrics_file, chosen_target)
    decoder = load(
        chosen_target,
        draft=chosen_draft,
        dtype=dtype,
        draft_dtype=draft_dtype,
        device=device,
        revision=revision,
        adapter=adapter,
        datastore=datastore or (),
    )
    options.check_chats(decoder, pair, target, ", so it can't chat")
    assert decoder.tokenizer is not None  # load refuses a folder without a tokenizer
    options.announce(pair, target)
    chosen(decoder.defaults, settings)  # raises for wrong settings before a message is typed
    talk = _Talk(Conversation(decoder, system), decoder.tokenizer, decoder.target.context, settings, metrics)
    if _is_terminal():
        talk.with_somebody()
    else:
        talk.with_lines()


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


class _Talk:
    """A conversation, and the statistics of its answers."""

    def __init__(
        self,
        conversation: Conversation,
        tokenizer: Tokenizer,
        context: int,
        settings: dict[str, Any],
        metrics: MetricsFile,
    ) -> None:
        self._conversation, self._tokenizer, self._context, self._settings = conversation, tokenizer, context, settings
        self._metrics = metrics
        self._answers: list[list[Step]] = []
        self._pressed: Callable[[], bool] = lambda: False
        self._commands = {"help": self._help, "stats": self._stats, "reset": self._reset, "save": self._save}

    def with_somebody(self) -> None:
        """Talk at a terminal. An error is printed, and the conversation goes on."""
        with suppress(ImportError):  # on Windows the console itself edits lines
            import readline  # noqa: F401  makes input() edit lines

        typer.secho("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends", dim=True)
        is_ending = False
        while True:
            try:
                line = input(PROMPT)
            except EOFError:
                typer.echo()
                return
            except KeyboardInterrupt:
                typer.echo()
                if is_ending:
                    return
                is_ending = True
                typer.secho("Ctrl-C again ends, as Ctrl-D and /quit do", dim=True)
                continue
            except UnicodeDecodeError:
                typer.echo(f"sybil: the line is no {sys.stdin.encoding.upper()} text: type it again", err=True)
                continue
            is_ending = False
            try:
                with _ctrl_c() as self._pressed:
                    if not self._take(line):
                        return
            except KeyboardInterrupt:  # Ctrl-C was pressed twice
                typer.secho("\n(stopped)", dim=True)
            except SybilError as error:
                typer.echo(f"sybil: {one_line(str(error), 2000)}", err=True)

    def with_lines(self) -> None:
        """Talk by the lines of a file or a pipe. The first error ends the conversation."""
        try:
            for line in sys.stdin or ():
                if not self._take(line.rstrip("\r\n")):
                    return
        except UnicodeDecodeError as error:
            encoding = sys.stdin.encoding.upper()
            raise InvalidSetting(
                f"standard input is no {encoding} text ({error}): give the messages in {encoding}"
            ) from None

    def _take(self, line: str) -> bool:
        """Answer a message or do a command. Returns whether the conversation goes on."""
        if not line.strip():
            return True
        if not line.startswith("/"):
            self._answer(line.strip())
            return True
        name, _, rest = line[1:].strip().partition(" ")
        if name in ("quit", "exit"):
            return False
        if name not in self._commands:
            raise InvalidSetting(
                f"there is no command /{one_line(name, 40)}: the commands are /help, /stats, /reset, /save FILE and "
                "/quit; put a space before a message that begins with a slash"
            )
        self._commands[name](rest.strip())
        return True

    def _answer(self, text: str) -> None:
        steps: list[Step] = []
        try:
            stream = self._conversation.stream(text, **self._settings)
        except PromptTooLong as error:
            raise PromptTooLong(f"{error}; /reset begins the conversation anew") from None
        self._answers.append(steps)
        try:
            with closing(stream), closing(shown(stream, self._tokenizer)) as written:
                for step in written:
                    steps.append(step)
                    if self._pressed():
                        break
        finally:
            self._metrics.add(steps)
        typer.echo()
        end = ending(steps)
        if end == "context":
            typer.secho(f"(the model's context of {self._context} tokens is full: /reset begins anew)", dim=True)
        elif end == "length":
            typer.secho(f"(cut after {self._settings['max_new_tokens']} tokens: --max-new-tokens)", dim=True)
        elif end is None:
            typer.secho("(stopped)", dim=True)

    def _help(self, rest: str) -> None:
        typer.echo(HELP)

    def _stats(self, rest: str) -> None:
        last = Stats.of(self._answers[-1] if self._answers else [])
        whole = Stats.of(step for steps in self._answers for step in steps)
        used = self._conversation.context_used
        for name, stats in (("last answer", last), ("all answers", whole)):
            typer.echo(f"{name}: {stats.prefilled} new prompt tokens, {counted(stats)}")
        typer.echo(f"context: {used} of {self._context} tokens used ({used / self._context:.0%})")

    def _reset(self, rest: str) -> None:
        self._conversation.reset()
        self._answers.clear()
        typer.secho("(all messages are forgotten)", dim=True)

    def _save(self, rest: str) -> None:
        if not rest:
            raise InvalidSetting("/save needs a file's name: /save FILE")
        path = Path(rest).expanduser()
        content = json.dumps(self._conversation.messages, ensure_ascii=False, indent=2) + "\n"
        try:
            if path.exists():
                raise InvalidSetting(f"{path} is there already: save under another name")
            files.replace(path, content.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise InvalidSetting(f"{path} can't be written ({error.strerror}): name another file") from None
        typer.secho(f"({len(self._conversation.messages)} messages are in {path})", dim=True)


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """A context manager that gives a function, which tells whether Ctrl-C was pressed. It is called between rounds,
    when the caches are consistent. A second Ctrl-C raises KeyboardInterrupt at once."""
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
