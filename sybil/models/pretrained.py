"""Loads a checkpoint as transformers' own model. It is needed where Sybil's own forward doesn't know a folder's model,
where a folder's weights are quantised, and where Sybil is compared with transformers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sybil.allocation import OF_WEIGHTS, as_out_of_memory
from sybil.errors import NotAModel, OutOfMemory, PackageMissing, SybilError, WeightsMismatch, shown, told
from sybil.models.checkpoints.families import FAMILIES
from sybil.models.checkpoints.fields import Fields, check_foreign
from sybil.models.checkpoints.files import check_folder
from sybil.models.checkpoints.sources import Family
from sybil.models.checkpoints.tokenizers import quiet
from sybil.models.folders import Checkpoint
from sybil.models.huggingface import HuggingFaceModel
from sybil.transfer import integers

PACKAGES: Mapping[str, Mapping[str, str]] = {
    "aqlm": {"aqlm": "aqlm[gpu,cpu]"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels"},
    "fbgemm_fp8": {"fbgemm_gpu": "fbgemm-gpu"},
    "fouroversix": {"fouroversix": "fouroversix"},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "higgs": {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform"},
    "hqq": {"hqq": "hqq"},
    "metal": {"kernels": "kernels"},
    "nvfp4": {"kernels": "kernels"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "sinq": {"sinq": "sinq"},
    "spqr": {"spqr_quant": "spqr_quant[gpu]"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}
"""By quant_method: the modules that transformers imports for it, each with the package that pip installs it from."""
PARAMETERS_A_BYTE = 8  # no quantisation keeps a parameter in less than a bit
SPARE_BYTES = 1 << 28  # for tables that aren't stored, mainly masks


def load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> HuggingFaceModel:
    """The model of load_transformers() as a Model of Sybil. It is tried on two tokens, because a model that loads may
    still fail to compute."""
    model = load_transformers(checkpoint, dtype, device)
    try:
        ours = HuggingFaceModel(model)
        ours.forward(integers([[0, 0]]), ours.new_cache(1, 2))
    except SybilError:
        raise
    except Exception as error:  # a forward may raise anything if its config is wrong
        raise NotAModel(f"{checkpoint.folder} loads and can't compute ({told(error)}): check its config.json") from None
    return ours


def load_transformers(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """transformers' own model: from a folder's safetensors, or from a GGUF file's weights, dequantised.

    Raises NotAModel, WeightsMismatch, PackageMissing or OutOfMemory."""
    if checkpoint.file is not None:
        return _of_file(checkpoint, dtype, device)
    folder, quantised = checkpoint.folder, bool(checkpoint.config.get("quantization_config"))
    assert folder is not None
    if quantised:
        _check_packages(checkpoint)
    check_folder(folder)
    check_foreign(checkpoint.config, len(checkpoint.stored.shapes) if checkpoint.stored else 0)
    try:
        with quiet(), _in_memory(checkpoint, device):
            _check_size(checkpoint)
            model, report = _of_folder(checkpoint, dtype, device if quantised else None)
    except (WeightsMismatch, OutOfMemory):
        raise
    except ImportError as error:
        raise PackageMissing(f"{folder} needs a package that isn't installed ({told(error)})") from None
    except Exception as error:  # files may be broken in ways that transformers doesn't check
        raise NotAModel(
            f"{folder} can't be loaded as a causal language model ({told(error)}): check its config and weights"
        ) from None
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:  # transformers would fill these with random numbers
        raise WeightsMismatch(
            f"{folder} lacks {len(missing)} weights that its config asks for, {missing[0]} the first: "
            "mend config.json or fetch the weights that belong to it"
        )
    return model if quantised else _on(checkpoint, model, device)


def _of_folder(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | None) -> tuple[Any, Any]:
    """(the model, what transformers reports of its loading). The model is made from the folder's files, or from the
    weights that an adapter is merged into. device: for quantised weights, which can't be moved later; None for
    others."""
    loaded: tuple[Any, Any]
    if checkpoint.adapter is None:
        loaded = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            device_map=None if device is None else {"": device},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        return loaded
    assert checkpoint.stored is not None
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    state = {name: checkpoint.stored.read(name) for name in checkpoint.stored.shapes}
    loaded = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    return loaded


def _of_file(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """transformers' own model, from a GGUF file's weights."""
    assert checkpoint.stored is not None
    fields = {name: value for name, value in checkpoint.config.items() if name != "model_type"}
    family = FAMILIES[checkpoint.config["model_type"]]
    with quiet(), _in_memory(checkpoint, device):
        try:
            config = AutoConfig.for_model(checkpoint.config["model_type"], **fields)
            state = {name: _theirs(checkpoint, family, name) for name in checkpoint.stored.shapes}
            model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
            )
        except (SybilError, MemoryError):
            raise
        except Exception as error:
            raise NotAModel(
                f"{checkpoint.file} can't be loaded by transformers ({told(error)}): use its Hugging Face model folder"
            ) from None
    odd = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]))
    if odd:
        raise WeightsMismatch(
            f"{checkpoint.file} has other weights than transformers asks for, {odd[0]} the first: use its Hugging Face "
            "model folder"
        )
    return _on(checkpoint, model, device)


def _on(checkpoint: Checkpoint, model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    with _in_memory(checkpoint, device):
        moved: PreTrainedModel = model.to(device)
    return moved


def _in_memory(checkpoint: Checkpoint, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context for code that takes the memory of a checkpoint's weights. Raises OutOfMemory."""
    return as_out_of_memory(f"{checkpoint.name} takes more memory than is free on {device}", OF_WEIGHTS)


def _theirs(checkpoint: Checkpoint, family: Family, name: str) -> Tensor:
    """A GGUF file's weight, arranged as transformers has it. The file's norms of a Gemma contain an offset that is
    subtracted here. The subtraction rounds, but by less than bfloat16 has rounded the model's norms already."""
    assert checkpoint.stored is not None
    assert checkpoint.known is not None
    weight, prefix = checkpoint.stored.read(name), family.prefixes[0]
    if family.transposed and weight.dim() == 2 and name.startswith(prefix + family.layer.split("{")[0]):
        return weight.T.contiguous()
    if family.interleaved and any(f".{each}." in name for each in family.names["query_key_value"]):
        heads = checkpoint.known[1].heads
        return weight.view(3, heads, -1, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)
    if family.norm_offset and name.endswith("norm.weight"):
        return weight - family.norm_offset
    return weight


def _check_packages(checkpoint: Checkpoint) -> None:
    """Raises PackageMissing where a package that the quantisation needs isn't installed, NotAModel where the config's
    quantisation is malformed."""
    method = Fields(checkpoint.config).part("quantization_config").get("quant_method") or "a method without a name"
    needed = {"accelerate": "accelerate", **PACKAGES.get(method, {})}
    missing = [package for module, package in needed.items() if not _is_installed(module)]
    if missing:
        raise PackageMissing(
            f"{checkpoint.folder} is quantised by {shown(method)}, which needs {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that the module is in isn't installed either
        return False


def _check_size(checkpoint: Checkpoint) -> None:
    """Raises WeightsMismatch where the config asks for more parameters than the stored weights can be. This is checked
    before memory is taken, because transformers allocates missing weights before it reports them."""
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # not every architecture can be built on the device meta
        return
    stored = checkpoint.stored.nbytes if checkpoint.stored else 0
    wanted = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.nbytes for buffer in model.buffers())
    if wanted > PARAMETERS_A_BYTE * stored or tables > PARAMETERS_A_BYTE * stored + SPARE_BYTES:
        raise WeightsMismatch(
            f"{checkpoint.folder} has a config that asks for {wanted} parameters and {tables} bytes of tables, and "
            f"its weights have {stored} bytes: mend config.json or fetch the weights that belong to it"
        )
