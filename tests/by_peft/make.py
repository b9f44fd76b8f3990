"""Writes the adapters of this folder by peft, and in merged.safetensors what peft's merge_and_unload() adds to each
weight, or puts in its place:

    python tests/by_peft/make.py

It needs peft, which the tests don't. adapter_config.json says which version wrote the files that are here."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from tiny import gpt2, llama  # noqa: E402  the tests' models

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        r=4, lora_alpha=6, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, layers_to_transform=[1],
        rank_pattern={"mlp.c_proj": 2}, alpha_pattern={"attn.c_proj": 3},
    ),
    "llama": dict(
        r=3, lora_alpha=5, use_rslora=True, target_modules="all-linear", modules_to_save=["lm_head"],
        alpha_pattern={"^model.layers.1.mlp.down_proj": 2},
    ),
}  # fmt: skip


def main() -> None:
    """Random numbers in place of a training."""
    for kind, make in {"gpt2": gpt2, "llama": llama}.items():
        base = copy.deepcopy(make())
        before = {name: weight.clone() for name, weight in base.state_dict().items()}
        torch.manual_seed(3)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **CONFIGS[kind]))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.2 * torch.randn_like(weight)
        model.save_pretrained(HERE / kind)
        merged = model.merge_and_unload().state_dict()
        changed = {
            name: (each if name == "lm_head.weight" else each - before[name]).contiguous()
            for name, each in merged.items()
            if not each.equal(before[name])
        }
        save_file(changed, HERE / kind / "merged.safetensors")
        (HERE / kind / "README.md").unlink()  # peft's form for a model's card
        print(kind, sorted(changed))  # noqa: T201  a script


if __name__ == "__main__":
    main()
