"""The devices that models run on, and the dtypes of their weights there."""

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
"""torch's dtypes by the names that transformers takes, and by their short forms."""
FEW: Mapping[str, torch.dtype | str] = {"int8": torch.int8, INT4: INT4, **{word: word for word in QUANTISED}}
"""The quantised storages by their names. For a target, int8 and int4 are the GGUF block types q8_0 and q4_k. For a
draft, they are those of rounding.py, whose products round activations too."""
Asked = torch.dtype | str | None
"""What a caller asks for: a value of DTYPES, a value of FEW, "auto", or None where the caller names nothing."""
NARROW = frozenset({"gpt2", "opt", "gpt_neox", "llama"})
"""The families (model_type) for whose models float16's range is enough, unless the weights are stored in bfloat16."""


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for. None and "auto" stand for the CUDA GPU where torch sees one, and else for the CPU; mps has
    to be named. Raises DeviceUnavailable or InvalidSetting."""
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
    """The dtype or storage that a name stands for: a dtype of torch, or the name itself where torch has no such dtype.
    A torch.dtype counts as its name. draft: whether the dtype is the draft's, for the message. Raises
    InvalidSetting."""
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
    """Whether a quantised storage is asked for by its name."""
    return asked in FEW.values()


def word_of(asked: torch.dtype | str) -> str:
    """The name of a dtype or of a quantised storage."""
    return str(asked).removeprefix("torch.")


def listed() -> str:
    """The names of the dtypes, each dtype once, in one string."""
    return ", ".join(dict.fromkeys(word_of(each) for each in DTYPES.values()))


def default_dtype(device: torch.device) -> torch.dtype:
    """The dtype of a model where the caller names none and float16's range is enough for it."""
    return torch.float16 if device.type == "cuda" else torch.float32


def fitting(dtype: torch.dtype, device: torch.device, stored: torch.dtype | None, family: object) -> torch.dtype:
    """The given dtype, unless it is float16 on a GPU and the model may need more than float16's range. The model gets
    bfloat16 then, or float32 where the GPU has no bfloat16.

    stored: the dtype in which the model's weights are stored; None where that says nothing about the range. family: the
    model's model_type.
    """
    if dtype != torch.float16 or device.type != "cuda" or stored == torch.float16:
        return dtype
    if stored != torch.bfloat16 and family in NARROW:
        return dtype
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 itself, without emulating it."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def default_draft_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a draft model's weights where the caller names none. dtype: the target's."""
    return torch.int8 if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) else dtype
