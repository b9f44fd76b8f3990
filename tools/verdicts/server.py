"""llama.cpp's server for a GGUF file, by the package xllamacpp: `python -m tools.verdicts.server FILE [DRAFT]`.

It prints its address, and ends when its standard input is closed. It imports neither torch nor Sybil."""

from __future__ import annotations

import os
import sys

import xllamacpp

CONTEXT, GAMMA = 1024, 4


def main(file: str, draft: str | None = None) -> None:
    """Run the server on loopback, at a port that it chooses, with its defaults except for the settings below."""
    said = os.fdopen(os.dup(1), "w")  # llama.cpp writes to the standard output, too
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = file, CONTEXT, 1, 0
    params.hostnames, params.port = ["127.0.0.1"], 0
    if draft is not None:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        params.speculative.draft.mparams.path, params.speculative.draft.n_max = draft, GAMMA
    server = xllamacpp.Server(params)
    print(server.listening_address, file=said, flush=True)
    sys.stdin.read()
    os._exit(0)  # a normal exit would wait for the server


if __name__ == "__main__":
    main(*sys.argv[1:])
