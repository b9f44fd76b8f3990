"""A GGUF file, multiplied from its own blocks; without one, the embedded target is written as one first.

    python examples/gguf_file.py
    python examples/gguf_file.py model.gguf --prompt "The first thing to do"

A model of Ollama has the name that `ollama list` shows: python examples/gguf_file.py ollama:smollm2:135m
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.resources import files
from pathlib import Path

import gguf
from safetensors.numpy import load_file

import sybil

FOLDER = Path(str(files("sybil"))) / "embedded" / "stdlib" / "target"
TYPE = gguf.GGMLQuantizationType.Q8_0


def write(folder: Path, path: Path) -> None:
    """Writes the GPT-2 model of a folder to a GGUF file, with its matrices in blocks of 8 bits."""
    config = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config["n_layer"])

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])  # token 0 is special: it ends a text
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    for name, values in load_file(folder / "model.safetensors").items():
        values = values.astype("float32")
        if values.ndim == 1:  # a bias, or a norm's scale
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), values)
            continue
        matrix = values.T if ".h." in name else values  # GPT-2's folder has the layers' matrices transposed
        blocks = gguf.quants.quantize(matrix.copy(), TYPE)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), blocks, raw_dtype=TYPE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Prints a text of the file's model with a draft, and whether it is the same without one."""
    options = argparse.ArgumentParser()
    options.add_argument("file", nargs="?", help="a GGUF file, or ollama:NAME; if left out, one is written")
    options.add_argument("--draft", default="lookup", help="a second file, or lookup, self, ...")
    options.add_argument("--prompt", default="def read_lines(path):\n    with open(path")
    options.add_argument("--tokens", type=int, default=48, help="new tokens, at most")
    asked = options.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if asked.file is None:
            write(FOLDER, Path(folder) / "stdlib.gguf")
        decoder = sybil.load(asked.file or Path(folder) / "stdlib.gguf", asked.draft)
        out = decoder.generate(asked.prompt, max_new_tokens=asked.tokens)
        plain = decoder.without_draft().generate(asked.prompt, max_new_tokens=asked.tokens)
    print(asked.prompt + out.text[0])
    print(f"{out.stats.tokens_per_round:.2f} tokens a round, same text without a draft: {plain.text == out.text}")


if __name__ == "__main__":
    main()
