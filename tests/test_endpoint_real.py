"""llama.cpp's own server, as the package xllamacpp has it, asked through `EndpointSubject`: plain, and drafting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from real import smollm2_file

from sybil.loading import read
from sybil.losslessness.endpoint import EndpointSubject
from sybil.losslessness.samples import Request
from sybil.losslessness.speculation import Seen, Speculation
from sybil.servers.transport import Server

pytestmark = pytest.mark.real
SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = params.speculative.draft.mparams.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.n_gpu_layers = 1024, 2, 0
params.hostnames, params.port = ["127.0.0.1"], 0
if sys.argv[2] == "drafting":
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    params.speculative.draft.n_max = 3
else:
    params.speculative.draft.mparams.path = ""
server = xllamacpp.Server(params)
print("listens at", server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["plain", "drafting"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool]]:
    """The URL of a server of SmolLM2, and whether it drafts, with the model itself."""
    command = [sys.executable, "-c", SERVE, str(smollm2_file()), request.param]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True)  # fmt: skip
    try:
        assert process.stdout is not None
        address = next(line.split()[-1] for line in process.stdout if line.startswith("listens at"))
        yield f"{address}/v1", request.param == "drafting"
    finally:
        process.kill()
        process.wait()


def test_llama_cpp_gives_the_tokens_that_it_drew_and_counts_its_drafts(served: tuple[str, bool]) -> None:
    url, drafts = served
    tokenizer = read(str(smollm2_file())).tokenizer
    assert tokenizer is not None
    end = tokenizer.token_to_id("<|im_end|>")
    subject = EndpointSubject(Server(url, 120), None, tokenizer, frozenset({end}), concurrency=2)
    assert subject.spoken.told.endswith("/v1/completions gives token ids (__verbose.tokens)")
    assert not subject.takes(Request(max_new_tokens=1, eos_token_ids=(5,)))
    texts = ("The capital of France is", "def main(", "<|im_start|>user\nSay 漢字.<|im_end|>\n<|im_start|>assistant\n")
    prompts = [tokenizer.encode(text).ids for text in texts]
    greedily = Request(max_new_tokens=24, temperature=0.0, eos_token_ids=(end,))
    free = list(subject.sample(prompts, greedily, 0))
    assert [sample.doubt for sample in free] == ["", "", ""]
    assert all(len(sample.tokens) == 24 or sample.tokens[-1] == end for sample in free)
    stop = tokenizer.decode(list(free[0].tokens))[9:12]
    stopped = Request(max_new_tokens=24, temperature=0.0, eos_token_ids=(end,), stop_strings=(stop,))
    (sample,) = subject.sample(prompts[:1], stopped, 0)
    assert sample.doubt == ""
    assert sample.tokens == free[0].tokens[: len(sample.tokens)]
    assert stop in tokenizer.decode(list(sample.tokens))
    assert stop not in tokenizer.decode(list(sample.tokens[:-1]))
    seen = Seen()
    for each in (*free, sample):
        seen.add(each.places, each.speculation)
    found = seen.of(subject)
    assert found is not None
    assert (found.drafted > 0) == (found.accepted > 0) == drafts
    assert drafts or found == Speculation(0, 0, found.source)
