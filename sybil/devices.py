"""Where models run, and what they are kept in there where nothing is said."""

from __future__ import annotations

import torch

from sybil.arguments import described
from sybil.errors import DeviceUnavailable, InvalidSetting


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is; raises DeviceUnavailable or InvalidSetting."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidSetting(f"device is {described(device)}: use 'cpu', 'cuda' or 'cuda:N'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(
            f"device {chosen} was asked for and torch {torch.__version__} sees {torch.cuda.device_count()} GPUs: "
            "use device 'cpu', or install a CUDA build of torch and its driver"
        )
    return chosen


def default_dtype(device: torch.device) -> torch.dtype:
    """What models are loaded in where nothing is said."""
    return torch.float16 if device.type == "cuda" else torch.float32


def default_draft_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a draft's weights are kept in beside a target of dtype, where nothing is said."""
    return torch.int8 if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) else dtype
