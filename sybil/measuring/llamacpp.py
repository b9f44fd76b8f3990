"""The process in which llama.cpp decodes: measuring/peers.py runs this file, which imports neither Sybil nor torch.

Requests and answers are one line of JSON each. The first request is {"file", "threads", "context"}, and its answer is
{"ready": llama.cpp's version}. Further requests are {"prompt", "max_new_tokens"}, and their answers are llama.cpp's
own. Any answer may be an {"error"} instead."""

from __future__ import annotations

import json
import os
import sys
from http.client import HTTPConnection
from typing import Any, TextIO
from urllib.parse import urlsplit


def start(file: str, threads: int, context: int) -> Any:
    """llama.cpp's server for a GGUF file, at its defaults except for these arguments. It listens on loopback."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx = file, context
    params.n_parallel, params.n_gpu_layers = 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames, params.port = ["127.0.0.1"], 0
    return xllamacpp.Server(params)


def complete(address: str, prompt: list[int], max_new_tokens: int) -> dict[str, Any]:
    """Greedy tokens after a prompt, without a cache of earlier prompts. The request uses llama.cpp's own protocol,
    because OpenAI's gives no token ids."""
    request = {"prompt": prompt, "n_predict": max_new_tokens, "temperature": 0, "return_tokens": True}
    connection = HTTPConnection(urlsplit(address).netloc, timeout=600)
    connection.request("POST", "/completion", json.dumps({**request, "cache_prompt": False}))
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def serve(asked: TextIO, answers: TextIO) -> None:
    """Answer requests until the input ends."""

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        server = start(**json.loads(asked.readline()))
        say({"ready": sys.modules["xllamacpp"].__version__})
        for line in asked:
            say(complete(server.listening_address, **json.loads(line)))
    except Exception as error:
        say({"error": str(error) or type(error).__name__})


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")  # llama.cpp writes to the standard output, too
    os.dup2(2, 1)
    serve(sys.stdin, own)
    os._exit(0)  # a normal exit would wait for its server
