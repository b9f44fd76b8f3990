"""Where models run, and what their weights are kept in there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from sybil.arguments import described
from sybil.errors import DeviceUnavailable, InvalidSetting
from sybil.models.storage import QUANTISED

AUTO: Literal["auto"] = "auto"
INT4 = "int4"
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32, "float": torch.float32, "fp32": torch.float32,
    "float16": torch.float16, "half": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float64": torch.float64, "double": torch.float64, "fp64": torch.float64,
}  # fmt: skip
"""By the names that transformers takes, and their short forms."""
FEW: Mapping[str, torch.dtype | str] = {"int8": torch.int8, INT4: INT4, **{word: word for word in QUANTISED}}
"""Few bits, by their names. int8 and int4 of a target are blocks of a GGUF file, q8_0 and q4_k. Those of a draft are
rounding.py's, whose products round activations too."""
Asked = torch.dtype | str | None
"""A dtype of DTYPES, one of FEW, "auto", or None where nothing is said."""
NARROW = frozenset({"gpt2", "opt", "gpt_neox", "llama"})
"""Families (model_type) whose models float16's range is enough for, unless they are stored in bfloat16."""


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; None and "auto" are the GPU that torch's CUDA sees, or else the CPU, and never mps, which
    has to be named. Raises DeviceUnavailable or InvalidSetting."""
    if device is None or device == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise InvalidSetting(f"device is {described(device)}: use 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(
            f"device {chosen} was asked for and torch {torch.__version__} sees {torch.cuda.device_count()} GPUs: "
            "use device 'cpu', or install a CUDA build of torch and its driver"
        )
    if chosen.type == "mps" and (chosen.index or not torch.backends.mps.is_available()):
        raise DeviceUnavailable(
            f"device {chosen} was asked for and torch {torch.__version__} sees no such GPU: use device 'cpu'; mps "
            "is the one GPU of a Mac with Apple silicon"
        )
    return chosen


def dtype_named(dtype: object, *, draft: bool = False) -> Asked:
    """What a name stands for: a dtype of torch, or itself where torch has none for it. A dtype is taken as its name.
    draft: whose dtype it is, for the message. Raises InvalidSetting."""
    if dtype is None:
        return None
    name = str(dtype) if isinstance(dtype, torch.dtype) else dtype
    if isinstance(name, str):
        name = name.removeprefix("torch.").lower()
        if name == AUTO:
            return AUTO
        if found := DTYPES.get(name) or FEW.get(name):
            return found
    raise InvalidSetting(
        f"{'draft_dtype' if draft else 'dtype'} is {described(dtype)}: use {listed()}, {', '.join(FEW)} or auto"
    )


def is_few(asked: Asked) -> bool:
    """Whether few bits are asked for by their name."""
    return asked in FEW.values()


def word_of(asked: torch.dtype | str) -> str:
    """The name of a dtype or of few bits."""
    return str(asked).removeprefix("torch.")


def listed() -> str:
    """A name of each dtype."""
    return ", ".join(dict.fromkeys(word_of(each) for each in DTYPES.values()))


def default_dtype(device: torch.device) -> torch.dtype:
    """What models are loaded in where nothing is said, and float16's range is enough for them."""
    return torch.float16 if device.type == "cuda" else torch.float32


def fitting(dtype: torch.dtype, device: torch.device, stored: torch.dtype | None, family: object) -> torch.dtype:
    """That dtype. In float16's place, for a model on a GPU that may need more than its range, bfloat16, or float32
    where the GPU has no bfloat16.

    stored: what the model's weights are stored in, None where that says nothing of the range. family: its model_type.
    """
    if dtype != torch.float16 or device.type != "cuda" or stored == torch.float16:
        return dtype
    if stored != torch.bfloat16 and family in NARROW:
        return dtype
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16, and doesn't imitate it."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def default_draft_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a draft's weights are kept in beside a target of dtype, where nothing is said."""
    return torch.int8 if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) else dtype
