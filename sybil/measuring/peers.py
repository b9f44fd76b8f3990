"""Other systems that decode the same file. Each runs in a process of its own, which sleeps while others are timed.

In one process the threads of llama.cpp and torch would wait for each other, and both would take three times as long.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sybil.errors import PeerFailed, one_line
from sybil.measuring import llamacpp
from sybil.measuring.contenders import LLAMA_CPP, Contender, PromptResult

STARTING, ANSWERING = 120.0, 600.0  # seconds
CONTEXT = 4096
"""The longest text, in tokens, for which a peer reserves a cache. Sybil's caches are as long as each text needs."""


def peers(
    file: Path | None, context: int, eos_token_ids: frozenset[int]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """(the peers that can decode a GGUF file greedily on this CPU, the reason for each installed peer that can't)."""
    if file is None or find_spec("xllamacpp") is None:
        return {}, {}
    try:
        return {LLAMA_CPP: LlamaCpp(file, min(context, CONTEXT), eos_token_ids)}, {}
    except PeerFailed as error:
        return {}, {LLAMA_CPP: str(error)}


class LlamaCpp:
    """llama.cpp by the package xllamacpp, with as many threads as torch has. llama.cpp rounds activations to 8 bits.

    Raises PeerFailed."""

    def __init__(self, file: Path, context: int, eos_token_ids: frozenset[int]) -> None:
        self.weight_bytes, self._ends = file.stat().st_size, sorted(eos_token_ids)
        command = [sys.executable, "-P", llamacpp.__file__]  # -P keeps the files beside it from hiding standard modules
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # a session of its own, so that Ctrl-C reaches this process only
        self._process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
        settings = {"file": str(file), "threads": torch.get_num_threads(), "context": context}
        self.version = self._asked(settings, STARTING)["ready"]

    def run(self, prompt: Tensor, max_new_tokens: int, seed: int = 0) -> PromptResult:
        began = time.perf_counter()
        answer = self._asked({"prompt": prompt.tolist(), "max_new_tokens": max_new_tokens}, ANSWERING)
        seconds = time.perf_counter() - began
        try:
            tokens, timings = [int(token) for token in answer["tokens"]], answer["timings"]
            own = float(timings["predicted_per_token_ms"])
            first = float(timings["prompt_ms"]) / 1e3
        except (KeyError, TypeError, ValueError):
            raise PeerFailed(f"{LLAMA_CPP} answered {one_line(json.dumps(answer))}") from None
        if answer.get("stop_type") == "eos":  # llama.cpp leaves the end token out; the other decoders give it
            tokens += self._ends[:1]
        if not tokens:
            raise PeerFailed(f"{LLAMA_CPP} gave no tokens")
        return PromptResult(tokens, seconds, first, len(tokens), ms_after_first=own)

    def _asked(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one line, and read the answer's line within so many seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], seconds)
            line = self._process.stdout.readline() if ready else ""
            answer: dict[str, Any] = json.loads(line or '{"error": "it said nothing"}')
        except (OSError, ValueError) as error:
            answer = {"error": str(error)}
        if "error" in answer:
            self.close()
            raise PeerFailed(f"{LLAMA_CPP} failed ({one_line(json.dumps(answer['error']))}): it is left out")
        return answer

    def close(self) -> None:
        """End llama.cpp's process."""
        self._process.kill()
        self._process.wait()
