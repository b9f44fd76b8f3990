"""llama.cpp beside Sybil, played by a stand-in of its package: what it is asked, what is made of its answers, and that
a comparison goes on without it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_compare import PROMPTS
from test_compare import folders as folders
from test_compare import task as task
from tiny import sybil
from torch import Tensor

from sybil.errors import PeerFailed
from sybil.measuring import compare, peers
from sybil.measuring.compare import Comparison
from sybil.measuring.contenders import AUTOREGRESSIVE, LLAMA_CPP, TRANSFORMERS, PromptResult
from sybil.measuring.peers import LlamaCpp
from sybil.measuring.summaries import ms_after_first, summarise
from sybil.measuring.task import Row, Task, read
from sybil.reports import figures

PACKAGE = '''
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Bag:
    pass

class CommonParams:
    def __init__(self):
        self.model, self.cpuparams, self.cpuparams_batch = Bag(), Bag(), Bag()

class Server:
    """Says the prompt backwards, then its threads and context; a prompt of one token ends the process."""

    def __init__(self, params):
        print("llama.cpp's own noise")
        assert "torch" not in sys.modules and "sybil" not in sys.modules
        if open(params.model.path, "rb").read(4) != b"GGUF":
            raise RuntimeError("Failed to init server")

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if len(asked["prompt"]) == 1:
                    import os
                    os._exit(3)
                said = asked["prompt"][::-1] + [params.cpuparams.n_threads, params.n_ctx]
                said = said[: asked["n_predict"]]
                answer = {"tokens": said, "stop_type": "eos" if asked["n_predict"] > len(said) else "limit"}
                answer["timings"] = {"predicted_per_token_ms": 2.5, "prompt_ms": 7.0}
                greedy = asked["temperature"] == 0 and not asked["cache_prompt"]
                body = json.dumps(answer if greedy else {"error": "no"}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = HTTPServer((params.hostnames[0], params.port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.listening_address = f"http://127.0.0.1:{server.server_port}"

__version__ = "stand-in"
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the stand-in takes for a model."""
    package = tmp_path / "packages"
    package.mkdir()
    (package / "xllamacpp.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(package))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and more")
    return path


def test_llama_cpp_is_asked_for_a_prompts_greedy_tokens(file: Path) -> None:
    contender = LlamaCpp(file, 512, frozenset({9, 7}))
    measured = contender.run(torch.tensor([4, 5, 6]), 4)
    assert measured.tokens == [6, 5, 4, torch.get_num_threads()]
    assert (measured.rounds, measured.ms_after_first, measured.time_to_first_token) == (4, 2.5, 0.007)
    assert measured.seconds > 0
    assert contender.run(torch.tensor([4, 5]), 8).tokens == [5, 4, torch.get_num_threads(), 512, 7]  # it ended
    assert (contender.weight_bytes, contender.version) == (len(b"GGUF and more"), "stand-in")
    with pytest.raises(PeerFailed, match=r"^llama\.cpp failed \(.*\): it is left out$"):
        contender.run(torch.tensor([1]), 4)
    with pytest.raises(PeerFailed, match="failed"):
        contender.run(torch.tensor([4, 5]), 4)  # its process is gone


def test_a_peer_that_does_not_start_is_said_and_no_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: name)
    found, lacking = peers.peers(file, 1 << 20, frozenset())
    assert isinstance(found[LLAMA_CPP], LlamaCpp)
    assert lacking == {}
    found[LLAMA_CPP].close()
    file.write_bytes(b"something else")
    assert peers.peers(file, 512, frozenset()) == (
        {},
        {LLAMA_CPP: 'llama.cpp failed ("Failed to init server"): it is left out'},
    )
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert peers.peers(file, 512, frozenset()) == peers.peers(None, 512, frozenset()) == ({}, {})


class StandIn:
    """Says what transformers would of each prompt, but for one of them; fails from a count of runs on."""

    weight_bytes = 1000

    def __init__(self, comparison: Comparison, fails_at: int = 99) -> None:
        self._other, self._runs, self._fails_at = comparison.contenders[TRANSFORMERS], 0, fails_at

    def run(self, prompt: Tensor, max_new_tokens: int, seed: int = 0) -> PromptResult:
        self._runs += 1
        if self._runs >= self._fails_at:
            raise PeerFailed("llama.cpp failed (it fell asleep): it is left out")
        measured = self._other.run(prompt, max_new_tokens, seed)
        wrong = [*measured.tokens[:-1], (measured.tokens[-1] + 1) % 31]
        return replace(measured, tokens=wrong if len(prompt) == 7 else measured.tokens, ms_after_first=3.25)


def beside(comparison: Comparison, fails_at: int = 99) -> list[Row]:
    comparison.contenders[LLAMA_CPP] = StandIn(comparison, fails_at)
    return list(comparison.rows(PROMPTS))


def test_a_peer_is_compared_and_need_not_agree(task: Task, tmp_path: Path) -> None:
    comparison = Comparison(replace(task, draft=None, draft_dtype=None))
    rows = beside(comparison)
    assert [row["contender"] for row in rows[:6]] == [
        *(TRANSFORMERS, AUTOREGRESSIVE, LLAMA_CPP),
        *(LLAMA_CPP, AUTOREGRESSIVE, TRANSFORMERS),
    ]
    ours, theirs = compare.agreements(comparison, rows, PROMPTS)
    assert (ours.contender, ours.bound, ours.same, ours.texts) == (AUTOREGRESSIVE, True, 3, 3)
    assert (theirs.contender, theirs.bound, theirs.same, theirs.texts) == (LLAMA_CPP, False, 2, 3)
    summaries = {each.contender: each for each in summarise(rows, tuple(comparison.contenders))}
    assert summaries[LLAMA_CPP].ms_after_first == 3.25
    assert summaries[LLAMA_CPP].peak_memory is None  # ours is no measure of its
    plain = [row for row in rows if row["contender"] == AUTOREGRESSIVE]
    assert ms_after_first(plain[0]) == pytest.approx(
        1e3 * (plain[0]["seconds"] - plain[0]["time_to_first_token"]) / (len(plain[0]["tokens"]) - 1)
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path, comparison.task) == rows
    figures.comparison(list(summaries.values()), rows, "caption", tmp_path / "chart.png")


def test_a_peer_that_fails_on_the_way_takes_no_further_part(task: Task) -> None:
    comparison = Comparison(replace(task, draft=None, draft_dtype=None))
    rows = beside(comparison, fails_at=3)  # the first warms up
    assert [row["contender"] for row in rows].count(LLAMA_CPP) == 1
    assert comparison.left_out == {LLAMA_CPP: "llama.cpp failed (it fell asleep): it is left out"}
    assert [each.prompts for each in summarise(rows, tuple(comparison.contenders))] == [3, 3]


def test_the_command_tells_of_a_peer(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "abc"}\n{"text": "hello w"}\n')
    command = ("compare", "--target", folders / "target", "--dtype", "float64", "--prompts", prompts, "--check")
    monkeypatch.setattr(compare, "peers", lambda *asked: ({}, {LLAMA_CPP: "llama.cpp failed (so): it is left out"}))
    assert sybil(*command, "--max-new-tokens", 6, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "llama.cpp failed (so): it is left out\n" in out
    assert "after the prompt" not in out

    init = Comparison.__init__

    def joined(self: Comparison, task: Task) -> None:
        init(self, task)
        self.left_out.clear()
        self.contenders[LLAMA_CPP] = StandIn(self)

    monkeypatch.setattr(Comparison, "__init__", joined)
    assert sybil(*command, "--max-new-tokens", 6, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "| llama.cpp" in out
    assert "llama.cpp: the tokens of transformers generate on 1 of 2 prompts (it rounds in its own way)\n" in out
    assert "milliseconds a token after the prompt: sybil autoregressive" in out
    assert "llama.cpp 3.25 by its own clock" in out
    assert "PASS: 0 of 2 texts" in out
