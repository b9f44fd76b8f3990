"""The models that the rows need. They are made from SmolLM2's file, in a folder of the user's cache.

smollm2.q8_0.gguf: the weights in Q8_0, a type that OpenVINO GenAI imports correctly. smollm2.q4_0.gguf: the weights in
Q4_0; as a draft this model is often right and often wrong. smollm2.draft: the same as a Hugging Face folder, for
economize."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

from sybil.loading import read
from sybil.models.folders import locate
from sybil.models.pretrained import load_transformers
from sybil.pairs import PAIRS

STORED = {"q8_0": LlamaFileType.MOSTLY_Q8_0, "q4_0": LlamaFileType.MOSTLY_Q4_0}
BLOCK = 32  # weights in a block; matrices whose rows aren't whole blocks stay float32
OWN = ("general.architecture", "general.file_type", "general.quantization_version")


def folder() -> Path:
    """The folder that the models are kept in."""
    said = Path(os.environ.get("XDG_CACHE_HOME", ""))
    found = (said if said.is_absolute() else Path.home() / ".cache") / "sybil-verdicts"
    found.mkdir(parents=True, exist_ok=True)
    return found


def smollm2() -> Path:
    """The file that SmolLM2's package brings; raises NotAModel if the package isn't installed."""
    return locate(PAIRS["smollm2"].source)


def stored(kind: str) -> Path:
    """The file of SmolLM2 in another kind of blocks."""
    path = folder() / f"smollm2.{kind}.gguf"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        rewrite(smollm2(), temporary, kind)
        temporary.replace(path)
    return path


def rewrite(source: Path, out: Path, kind: str) -> None:
    """Write a GGUF file again with its matrices in one kind of blocks."""
    reader = GGUFReader(source)
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in OWN:
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(STORED[kind])
    writer.add_quantization_version(2)
    blocks = GGMLQuantizationType[kind.upper()]
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        if len(shape) == 2 and shape[1] % BLOCK == 0:
            writer.add_tensor(tensor.name, quantize(weights, blocks), raw_dtype=blocks)
        else:
            writer.add_tensor(tensor.name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def draft_folder() -> Path:
    """SmolLM2 in Q4_0 as a Hugging Face folder with a tokenizer."""
    path = folder() / "smollm2.draft"
    if not (path / "config.json").exists():
        checkpoint = read(str(stored("q4_0")))
        assert checkpoint.tokenizer is not None
        load_transformers(checkpoint, torch.float32, torch.device("cpu")).save_pretrained(path)
        checkpoint.tokenizer.save(str(path / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path
