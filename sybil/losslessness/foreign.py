"""A function of a foreign module as a decoder under judgement, run in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sybil.errors import InvalidSetting, NotJudgeable, one_line
from sybil.losslessness import child
from sybil.losslessness.samples import Request, Sample, Subject
from sybil.losslessness.subjects import WIDTHS, derived, sample_of
from sybil.losslessness.taking import Taking
from sybil.servers.deadline import TIMEOUT, checked, within

if TYPE_CHECKING:
    from sybil.losslessness.report import Plan

MOST_BYTES = 2**22  # the most bytes of one answer: more than MOST_TOKENS tokens with their places take


class ForeignSubject:
    """The function "package.module:function", which is looked for from the current folder as by `python -m`, or
    "file.py:function". It is called once for each prompt, with those parts of a request that it takes.

    The function runs in a child process, so whatever it raises, exits with, prints or leaves behind can't end this one.
    timeout: seconds for the module's import, and for each answer. After the timeout, and when this object is deleted,
    the process and all that it started are killed. traceback: whether what the function raises is shown whole on
    standard error. Raises InvalidSetting where there is no such function, NotJudgeable for an answer that is none."""

    def __init__(self, spec: str, timeout: float = TIMEOUT, traceback: bool = False) -> None:
        module_name, colon, function_name = spec.rpartition(":")
        if not (module_name and colon and function_name):
            raise InvalidSetting(f"decoder is {spec!r}: name a function as {child.FORMS}")
        self.name, self._timeout = spec, checked(timeout)
        here = str(Path.cwd())
        self._process = subprocess.Popen(
            [sys.executable, "-P", child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a group that can be killed as one, and that Ctrl-C doesn't reach
            env={**os.environ, child.TRACEBACK: "1"} if traceback else None,
        )
        self._end = weakref.finalize(self, _kill, self._process)
        try:
            reply = self._exchange({"spec": spec, "path": [here, *(each for each in sys.path if each != here)]})
        except NotJudgeable as error:
            raise InvalidSetting(f"decoder is {spec!r}, and while {module_name} was imported {error}") from None
        if "raised" in reply:
            is_file = module_name.endswith(".py")
            remedy = "mend it" if is_file else f"check the name, and run it where `python -m {module_name}` works"
            raise InvalidSetting(
                f"decoder is {spec!r}, and importing {module_name} from {here} raised {_text(reply, 'raised')}: "
                f"{remedy}; --traceback shows where it was raised"
            )
        if "unfit" in reply:
            raise InvalidSetting(f"decoder is {spec!r}, and {_text(reply, 'unfit')}")
        takes = reply.get("takes")
        known = {name for name in child.NAMED if name in takes} if isinstance(takes, list) else set[str]()
        self._taking = Taking(frozenset(known - {"gamma"}))
        self._gammas = WIDTHS if "gamma" in known else ()
        self.notes, self.takes = self._taking.notes, self._taking.takes

    def check(self, plan: Plan) -> None:
        """See samples.Subject."""
        self._taking.check(self.name, plan)

    def widths(self) -> dict[str, Subject]:
        """The same function with other gammas, if it takes one."""
        return {f"gamma {gamma}": _AtGamma(self, gamma) for gamma in self._gammas}

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0) -> Iterator[Sample]:
        return self.answers(prompts, request, seed, first, {})

    def answers(
        self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int, more: Mapping[str, int]
    ) -> Iterator[Sample]:
        """As sample(). more: what else the function is called with."""
        for index, prompt in enumerate(prompts):
            where = f"(prompt {index} of {len(prompts)}, {len(prompt)} tokens)"
            settings = self._taking.settings(request, derived(seed, first + index)) | dict(more)
            try:
                reply = self._exchange({"prompt": list(prompt), "settings": settings})
            except NotJudgeable as error:
                raise NotJudgeable(f"decoder {self.name}: {error} {where}: mend it") from None
            if "raised" in reply:
                raise NotJudgeable(
                    f"decoder {self.name} raised {_text(reply, 'raised')} {where}: mend it; --traceback shows where "
                    "it was raised"
                )
            if "unfit" in reply:
                raise NotJudgeable(f"decoder {self.name} {_text(reply, 'unfit')}")
            try:  # the process may send anything, so its reply is checked like the function's answer
                answer = child.answer_of((reply.get("tokens"), reply.get("places"), reply.get("counts")))
            except child.Unfit as error:
                raise NotJudgeable(f"decoder {self.name} {one_line(str(error))}") from None
            yield sample_of(prompt, answer)

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """The child's reply. Raises NotJudgeable, with the reason, where none comes in time."""
        process = self._process  # the thread mustn't hold a reference to self
        try:
            line = within(self._timeout, lambda: _ask(process, message))
        except TimeoutError:
            self._end()
            raise NotJudgeable(f"there was no answer within {self._timeout:g} seconds (--timeout)") from None
        except OSError:  # the pipe to a process that has ended
            line = b""
        if not line.endswith(b"\n"):
            raise NotJudgeable(self._how_it_ended(line))
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise NotJudgeable("its process wrote something else than an answer")
        return reply

    def _how_it_ended(self, line: bytes) -> str:
        self._end()
        if line:
            return "its process wrote half an answer, or one without an end"
        status = self._process.returncode
        if status == -signal.SIGKILL:  # by _kill: the process was still running
            return "its process was ended by signal SIGKILL, or it closed the pipe that its answers go through"
        if status is not None and status < 0:
            return f"its process was ended by signal {_signal(-status)}"
        return f"its process ended with exit status {status} in place of an answer"


class _AtGamma:
    """A foreign function with a fixed gamma."""

    def __init__(self, subject: ForeignSubject, gamma: int) -> None:
        self.name, self._subject, self._more = f"{subject.name}, gamma {gamma}", subject, {"gamma": gamma}

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0) -> Iterator[Sample]:
        return self._subject.answers(prompts, request, seed, first, self._more)


def _ask(process: subprocess.Popen[bytes], message: dict[str, Any]) -> bytes:
    """Sends one line and reads one line, which is empty where the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    return process.stdout.readline(MOST_BYTES)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and all that it started. Its id can't belong to another process until its status is read."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _text(reply: dict[str, Any], key: str) -> str:
    return one_line(str(reply[key]), 500)
