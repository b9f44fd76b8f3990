"""LoRA adapters in peft's format, merged into a model's stored weights: W + scale * B A.

The names of an adapter's tensors say which modules it changes. Its adapter_config.json has the scale, and says whether
the adapter does more than that. Adapters that Sybil can't merge are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sybil.errors import AdapterMismatch, NotAModel, shown
from sybil.models.checkpoints.fields import POSITIVE, Fields
from sybil.models.checkpoints.files import is_there, read_json
from sybil.models.checkpoints.safetensors import Folder
from sybil.models.checkpoints.weights import FLOATS, Stored
from sybil.models.storage import Blocks

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
REMEDY = "merge it by peft's merge_and_unload() and give the folder that this saves"
WITHOUT_EFFECT = (True, False, None, "gaussian", "eva", "orthogonal")
"""The values that init_lora_weights may have. All others change the base model's weights before the training."""
MORE: Mapping[str, str] = {
    "use_dora": "DoRA",
    "lora_bias": "biases of its own",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "trainable_token_indices": "tokens that are trained one by one",
    "target_parameters": "parameters of experts",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
}
"""Fields of adapter_config.json by which an adapter does more than W + scale * B A, if they are set."""
HARMLESS = (
    *("use_rslora", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config"),
    *("runtime_config", "velora_config"),
)
"""Fields named use_... or ..._config that are accepted: rslora is merged, and the others are about where a training
starts and how it runs. Any other field with such a name may mean anything."""
_PREFIX = "base_model.model."
_PRODUCT = re.compile(re.escape(_PREFIX) + r"(.+)\.(lora_[AB])\.weight", re.DOTALL)
_NAME = re.compile(r"\^?[\w.]+")
"""A key of alpha_pattern that is the end of a module's name, or after "^" the whole name."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to a module's weight (outputs, inputs): scale times up (outputs, rank) times down (rank, inputs).
    up and down are the names of two tensors in the adapter's file."""

    down: str
    up: str
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter. name: the caller's name for it. base: the model that the adapter's config names. updates: by module
    name. replaced: names of the adapter's tensors that replace a model's weights, by the model's names. transposed:
    whether the modules keep their weights as (inputs, outputs)."""

    name: str
    base: str | None
    tensors: Folder
    updates: Mapping[str, Update]
    replaced: Mapping[str, str]
    transposed: bool


def read(folder: Path, name: str) -> Adapter:
    """The adapter in a folder. Raises NotAModel for broken files, and AdapterMismatch for one that can't be merged."""
    where = folder / CONFIG
    if not is_there(where):
        raise NotAModel(f"{folder} holds no {CONFIG}: give an adapter's folder, as peft's save_pretrained() writes it")
    content = read_json(where)
    config = Fields(content, _DEFAULTS, str(where))
    _check_kind(name, content, config)
    if not is_there(folder / WEIGHTS):
        raise NotAModel(f"{folder} holds no {WEIGHTS}: Sybil reads weights from safetensors only")
    tensors = Folder(folder, WEIGHTS)
    products, replaced = _sorted(name, tensors, config["modules_to_save"] or ())
    updates = {module: _update(name, module, parts, tensors, config) for module, parts in products.items()}
    if not updates and not replaced:
        raise AdapterMismatch(f"the adapter {name} holds no tensor: train it, or leave adapter out")
    return Adapter(name, config["base_model_name_or_path"], tensors, updates, replaced, config["fan_in_fan_out"])


_DEFAULTS: Mapping[str, Any] = {
    "base_model_name_or_path": None,
    "r": 8,
    "lora_alpha": 8,
    "fan_in_fan_out": False,
    "use_rslora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": None,
    "alpha_pattern": None,
}


def _check_kind(name: str, content: Mapping[str, Any], config: Fields) -> None:
    """Raises AdapterMismatch for an adapter that does more than W + scale * B A."""
    if config["peft_type"] != "LORA":
        raise AdapterMismatch(
            f"the adapter {name} is of type {shown(config['peft_type'])}, and Sybil merges LORA: {REMEDY}"
        )
    more = [what for field, what in MORE.items() if content.get(field)]
    unknown = [field for field, value in content.items() if value and field not in (*MORE, *HARMLESS)]
    more += [shown(field) for field in unknown if field.startswith("use_") or field.endswith("_config")]
    if config["bias"] != "none":
        more.append(f"biases (bias is {shown(config['bias'])})")
    started = content.get("init_lora_weights")
    if not any(started is each or started == each for each in WITHOUT_EFFECT):
        more.append(f"another base than its own (init_lora_weights is {shown(started)})")
    if more:
        raise AdapterMismatch(f"the adapter {name} has {more[0]}, which Sybil doesn't merge: {REMEDY}")


def _sorted(name: str, tensors: Folder, saved: Collection[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The names of a file's tensors: those of products, by module and then by lora_A or lora_B; and those that replace
    a model's weights, by the model's names. saved: modules whose weights are stored whole. Raises AdapterMismatch."""
    products: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for each in tensors.shapes:
        theirs = each.removeprefix(_PREFIX)
        if tensors.dtypes[each] not in FLOATS:
            raise AdapterMismatch(f"the adapter {name} has {shown(each)} of {tensors.dtypes[each]}: save it in float32")
        if found := _PRODUCT.fullmatch(each):
            products.setdefault(found[1], {})[found[2]] = each
        elif theirs != each and any(f".{module}." in f".{theirs}" for module in saved):
            replaced[theirs] = each
        else:
            kind = "of an embedding" if ".lora_embedding_" in each else "of DoRA" if ".lora_magn" in each else "unknown"
            raise AdapterMismatch(
                f"the adapter {name} has the tensor {shown(each)} ({kind}), and Sybil merges lora_A, lora_B and the "
                f"weights of modules_to_save: {REMEDY}"
            )
    return products, replaced


def _update(name: str, module: str, parts: Mapping[str, str], tensors: Folder, config: Fields) -> Update:
    """The update of a module. Raises AdapterMismatch where a part of it is missing."""
    if len(parts) < 2:
        lacking = "lora_B" if "lora_A" in parts else "lora_A"
        raise AdapterMismatch(f"the adapter {name} lacks {lacking} of {shown(module)}: download or save it again")
    down, up = (tensors.shapes[parts[part]] for part in ("lora_A", "lora_B"))
    ranks = [config["r"], *(config["rank_pattern"] or {}).values()]
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or down[0] not in ranks:
        raise AdapterMismatch(
            f"the adapter {name} has lora_A {shown(down)} and lora_B {shown(up)} for {shown(module)}, and its config "
            f"asks for rank {shown(config['r'])}: they must be (rank, inputs) and (outputs, rank)"
        )
    alpha, rank = _alpha(name, module, config), down[0]
    return Update(parts["lora_A"], parts["lora_B"], alpha / (rank**0.5 if config["use_rslora"] else rank))


def _alpha(name: str, module: str, config: Fields) -> float:
    """A module's lora_alpha: that of the first key in alpha_pattern that is the module's name or the end of it."""
    for key, value in (config["alpha_pattern"] or {}).items():
        if not _NAME.fullmatch(str(key)):
            raise AdapterMismatch(
                f"the adapter {name} has {shown(key)} in alpha_pattern, where Sybil reads names of modules: {REMEDY}"
            )
        if module == key.removeprefix("^") or module.endswith(f".{key}"):
            return float(POSITIVE.read(str(CONFIG), "alpha_pattern", value))
    return float(config["lora_alpha"])


class Merged:
    """Stored tensors with an adapter merged into them. Changed weights are computed in float32 at least."""

    lasting = False

    def __init__(
        self, stored: Stored, adapter: Adapter, is_transposed: Callable[[str], bool], added: Collection[str] = ()
    ) -> None:
        """is_transposed: whether a weight of that name is (inputs, outputs). added: names of weights that aren't
        stored and that the adapter may bring. Raises AdapterMismatch where the adapter doesn't fit the tensors."""
        self._stored, self._adapter, self._is_transposed = stored, adapter, is_transposed
        self._updates: dict[str, Update] = {}
        self._replaced: dict[str, str] = {}
        shapes, dtypes = dict(stored.shapes), dict(stored.dtypes)
        tensors = adapter.tensors
        for module, update in adapter.updates.items():
            name = self._name_of(f"{module}.weight", is_head=f"{module}.weight" in added)
            size = (tensors.shapes[update.up][0], tensors.shapes[update.down][1])
            self._check(name, size[::-1] if is_transposed(name) else size)
            if stored.dtypes[name] not in FLOATS:
                raise AdapterMismatch(
                    f"the adapter {adapter.name} changes {shown(name)}, which the target has in {stored.dtypes[name]}: "
                    f"give the target in floating-point numbers, or {REMEDY}"
                )
            self._updates[name] = update
            dtypes[name] = torch.promote_types(cast(torch.dtype, stored.dtypes[name]), torch.float32)
        for theirs, own in adapter.replaced.items():
            name = theirs if theirs in added else self._name_of(theirs)
            if name not in added or name in stored.shapes:
                self._check(name, tensors.shapes[own])
            self._replaced[name] = own
            shapes[name], dtypes[name] = tensors.shapes[own], tensors.dtypes[own]
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self.dtypes: Mapping[str, torch.dtype | str] = dtypes
        self.storages = {
            name: word for name, word in stored.storages.items() if name not in {*self._updates, *self._replaced}
        }
        self.nbytes, self.norms_are_whole = stored.nbytes, stored.norms_are_whole

    @property
    def updated(self) -> Collection[str]:
        """The weights, by their stored names, to which a product is added."""
        return self._updates.keys()

    @property
    def replaced(self) -> Collection[str]:
        """The weights, by their stored names, that are the adapter's own."""
        return self._replaced.keys()

    def read(self, name: str) -> Tensor:
        tensors = self._adapter.tensors
        if name in self._replaced:
            return tensors.read(self._replaced[name])
        weight, update = self._stored.read(name), self._updates.get(name)
        if update is None:
            return weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        product = tensors.read(update.up).to(wide) @ tensors.read(update.down).to(wide) * update.scale
        return weight.to(wide) + (product.T if self._is_transposed(name) else product)

    def blocks(self, name: str) -> Blocks | None:
        return None if name in self._updates or name in self._replaced else self._stored.blocks(name)

    def _name_of(self, theirs: str, is_head: bool = False) -> str:
        """The stored name of a weight of the adapter's model. A checkpoint may leave out the first part of the name."""
        for name in (theirs, theirs.partition(".")[2]):
            if name in self._stored.shapes:
                return name
        if is_head:
            raise AdapterMismatch(
                f"the adapter {self._adapter.name} changes {shown(theirs)}, and the target's head is its embedding: "
                f"{REMEDY}"
            )
        raise AdapterMismatch(
            f"the adapter {self._adapter.name} changes {shown(theirs)}, which the target lacks: the adapter is of "
            f"another base{self._named_base}"
        )

    def _check(self, name: str, size: tuple[int, ...]) -> None:
        if self._stored.shapes[name] != size:
            raise AdapterMismatch(
                f"the adapter {self._adapter.name} is for {shown(name)} of shape {shown(size)}, and the target has "
                f"{shown(self._stored.shapes[name])}: the adapter is of another base{self._named_base}"
            )

    @property
    def _named_base(self) -> str:
        return f", {shown(self._adapter.base)}" if self._adapter.base else ""
