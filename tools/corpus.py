"""The text the embedded pair is made of: CPython's standard library, minus whole held-out modules.

The library is read from the running interpreter, so the corpus is that interpreter's version
(PSF licence). Nothing here knows of models: it lists files, splits them, and trains the tokenizer.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "test", "tests", "idle_test", "encodings", "idlelib", "lib2to3", "ensurepip", "__pycache__"}
)
"""Not read: third parties, tests (unless asked for), character tables and frozen copies."""

HELD_OUT = (
    "asyncio/queues.py", "bisect.py", "calendar.py", "cmd.py", "colorsys.py", "csv.py", "curses/ascii.py",
    "fractions.py", "getopt.py", "graphlib.py", "heapq.py", "http/__init__.py", "imghdr.py",
    "json/decoder.py", "keyword.py", "mimetypes.py", "opcode.py", "queue.py", "re/_constants.py", "sched.py",
    "shlex.py", "stat.py", "statistics.py", "symtable.py", "telnetlib.py", "textwrap.py", "token.py",
    "tomllib/_parser.py", "urllib/robotparser.py", "zipapp.py",
)  # fmt: skip
"""Modules that neither the tokenizer nor any training sees; the shipped prompts and the losses come from them."""


@dataclass(frozen=True)
class Corpus:
    """The two halves of the text, each a tuple of (path inside the library, source)."""

    training: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]

    def digest(self) -> str:
        """SHA-256 over the training text, so that two runs can tell whether they read the same."""
        return hashlib.sha256("\0".join(text for _, text in self.training).encode()).hexdigest()


def read(library: Path | None = None, with_tests: bool = False) -> Corpus:
    """Read the library's sources; with_tests adds its test suite, less the tests of held-out modules."""
    library = library or Path(sysconfig.get_path("stdlib"))
    skipped = SKIPPED_FOLDERS - ({"test", "tests"} if with_tests else set())
    training, held_out = [], []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if name.as_posix() in HELD_OUT:
            held_out.append((name.as_posix(), path.read_text(encoding="utf-8")))
        elif not skipped.intersection(name.parts) and not _tests_a_held_out_module(name):
            training.append((name.as_posix(), path.read_text(encoding="utf-8", errors="replace")))
    missing = set(HELD_OUT) - {name for name, _ in held_out}
    if missing:
        raise SystemExit(f"{library} lacks the held-out modules {sorted(missing)}: use CPython 3.11")
    return Corpus(tuple(training), tuple(held_out))


def _tests_a_held_out_module(name: Path) -> bool:
    modules = {Path(module).stem for module in HELD_OUT}
    return name.stem.startswith("test_") and name.stem.removeprefix("test_") in modules


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Byte-level BPE over the training half only; token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in corpus.training), trainer)
    return tokenizer
