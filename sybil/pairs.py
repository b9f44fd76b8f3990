"""From a name, a folder or a transformers model to a Decoder: registered pairs, loading, dtype and device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from sybil.decoding import Decoder
from sybil.drafting import DraftLookup, DraftModel
from sybil.errors import (
    DeviceUnavailable,
    HubUnreachable,
    InvalidSetting,
    NotAModel,
    UnknownPair,
    VocabularyMismatch,
    WeightsMismatch,
)
from sybil.models import Model, checkpoints
from sybil.text import differing_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLOW_TOKENIZERS = ("vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt"]
EMBEDDED = "embedded:"
LOOKUP = "lookup"
PLANNED_DRAFTS = ("int8", "skip", "hybrid")


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and a draft that share a tokenizer: hub ids, or folders inside the package.

    A pair's name is no hub id's: one alone has a colon."""

    target: str
    draft: str
    about: str


PAIRS: Mapping[str, Pair] = {
    "stdlib": Pair(f"{EMBEDDED}stdlib/target", f"{EMBEDDED}stdlib/draft", "ships with Sybil: Python, 11M parameters"),
    "gpt2:medium": Pair("openai-community/gpt2-medium", "openai-community/gpt2", "355M parameters"),
    "gpt2:xl": Pair("openai-community/gpt2-xl", "openai-community/gpt2", "1.6B parameters"),
    "smollm2:1.7b": Pair("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-135M", "1.7B parameters"),
    "qwen2.5:3b": Pair("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-0.5B", "3B parameters"),
}


def pair(name: str) -> Pair:
    """The registered pair of that name; raises UnknownPair."""
    if name not in PAIRS:
        raise UnknownPair(f"there is no pair {name!r}: the pairs are {', '.join(PAIRS)}, or give a target and a draft")
    return PAIRS[name]


def embedded_folder(name: str) -> Path:
    """Where a folder of the package's embedded pairs lies."""
    return Path(str(resources.files("sybil"))) / "embedded" / name


def load(
    target: str | Path | PreTrainedModel,
    draft: str | Path | PreTrainedModel | None = None,
    *,
    dtype: torch.dtype | None = None,
    draft_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    tokenizer: Any = None,
) -> Decoder:
    """A Decoder for a pair's name, a hub id, a folder or a transformers model.

    A pair's name brings its draft; elsewhere no draft means plain autoregressive decoding, and "lookup" proposes what
    followed the last tokens where they stood before. dtype: None is
    float32 on a CPU, float16 on a GPU; draft_dtype: None is int8 on a CPU, where our own forward knows the draft
    (the rule makes up for what it costs in agreement), and dtype elsewhere; device: None is the GPU where there is
    one. tokenizer: for models passed as objects, transformers' or tokenizers' own. Raises the errors of sybil.errors.
    """
    if isinstance(target, str) and target in PAIRS:
        target, draft = PAIRS[target].target, PAIRS[target].draft if draft is None else draft
    if not isinstance(target, str | Path):  # a model that is somewhere already: follow it
        from sybil.models.huggingface import entrance

        device, dtype = device or entrance(target), dtype or target.dtype
    chosen = choose_device(device)
    dtype = dtype or default_dtype(chosen)
    main = _load_one(target, dtype, dtype, chosen, tokenizer)
    if draft is None:
        return Decoder(main.model, None, main.tokenizer, main.eos_token_ids)
    if draft == LOOKUP:
        return Decoder(main.model, DraftLookup(), main.tokenizer, main.eos_token_ids)
    draft_dtype = draft_dtype or default_draft_dtype(dtype, chosen)
    if draft_dtype == torch.int8 and chosen.type != "cpu":
        raise InvalidSetting(f"draft_dtype is int8 on {chosen}: int8 is for CPUs, use {dtype} or leave it out")
    # a tokenizer given for objects is shared: padding may differ then
    helper = _load_one(draft, draft_dtype, dtype, chosen, tokenizer)
    _check_vocabularies(main, helper)
    return Decoder(main.model, DraftModel(helper.model), main.tokenizer, main.eos_token_ids)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is; raises DeviceUnavailable or InvalidSetting."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidSetting(f"device is {str(device)!r}: use 'cpu', 'cuda' or 'cuda:N'")
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


@dataclass(frozen=True, slots=True)
class _Loaded:
    name: str
    model: Model
    tokenizer: Tokenizer | None
    eos_token_ids: frozenset[int]


def _load_one(
    source: str | Path | PreTrainedModel,
    dtype: torch.dtype,
    foreign_dtype: torch.dtype,
    device: torch.device,
    tokenizer: Any,
) -> _Loaded:
    """dtype: for our own forwards; foreign_dtype: for transformers'."""
    if not isinstance(source, str | Path):
        config = source.config.to_dict()
        eos = _eos(getattr(source, "generation_config", None) and source.generation_config.to_dict(), config)
        return _Loaded(type(source).__name__, _wrap(source, dtype), _plain(tokenizer), eos)
    folder = locate(source)
    config = checkpoints.read_config(folder)
    model: Model
    if checkpoints.understands(config):
        model = checkpoints.load(folder, dtype, device)
    else:
        from sybil.models.huggingface import HuggingFaceModel

        model = HuggingFaceModel(load_transformers(folder, foreign_dtype, device))
    generation = folder / "generation_config.json"
    eos = _eos(checkpoints.read_json(generation) if generation.exists() else None, config)
    return _Loaded(str(source), model, _plain(_load_tokenizer(folder)), eos)


def _plain(tokenizer: Any) -> Tokenizer | None:
    """A tokenizer of our own that neither cuts nor pads, whatever its file or its owner has set."""
    if tokenizer is None:
        return None
    copy: Tokenizer = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _wrap(model: PreTrainedModel, dtype: torch.dtype) -> Model:
    """Our own forward where it knows the family and all weights lie on one device, transformers' elsewhere."""
    config = model.config.to_dict()
    if checkpoints.understands(config) and _is_whole(model):
        return checkpoints.from_state(config, model.state_dict(), dtype, model.device, type(model).__name__)
    from sybil.models.huggingface import HuggingFaceModel

    return HuggingFaceModel(model)


def _is_whole(model: PreTrainedModel) -> bool:
    """Whether the weights are plain tensors on one device: not offloaded, quantised, or spread over several."""
    kinds = {(type(weight), weight.device) for weight in model.parameters()}
    return kinds == {(torch.nn.Parameter, model.device)} and model.device.type != "meta"


def load_transformers(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """transformers' own model of a folder, from safetensors; raises NotAModel or WeightsMismatch."""
    from transformers import AutoModelForCausalLM

    quantised = "quantization_config" in checkpoints.read_config(folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device} if quantised else None,  # quantised weights can't be moved later
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, OSError, KeyError, ImportError, ArithmeticError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise NotAModel(f"{folder} can't be loaded as a causal language model ({reason}): check its files") from None
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:  # transformers would go on with random numbers there
        raise WeightsMismatch(
            f"{folder} lacks {len(missing)} weights that its config asks for, {missing[0]} the first: "
            "mend config.json or fetch the weights that belong to it"
        )
    loaded: PreTrainedModel = model if quantised else model.to(device)
    return loaded


def locate(source: str | Path) -> Path:
    """The local folder of an embedded pair, a path or a hub id (fetched where it isn't cached).

    Raises NotAModel or HubUnreachable."""
    name = str(source)
    if name.startswith(EMBEDDED):
        return embedded_folder(name.removeprefix(EMBEDDED))
    if name == LOOKUP:
        raise InvalidSetting(f"{name!r} is no model, and this needs one: give a hub id, a folder, or a pair's name")
    if name in PLANNED_DRAFTS:
        raise InvalidSetting(f"draft is {name!r}, which is planned and not there yet: give a draft model, or none")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise NotAModel(
            f"{source} is no folder: give a Hugging Face model folder, a hub id, or one of {', '.join(PAIRS)}"
        )
    return _fetch(name)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (RepositoryNotFoundError, GatedRepoError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise NotAModel(f"the hub gives no model {name!r} ({reason}): check the id, or log in if it is gated") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise HubUnreachable(
            f"{name!r} is neither a folder nor in the local cache, and the hub can't be reached "
            f"({type(error).__name__}): check the network, give a folder, or use the embedded pair 'stdlib'"
        ) from None


def _load_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise NotAModel(f"{path} is no tokenizer ({error}): export the model again") from None
    missing = NotAModel(f"{folder} holds no tokenizer.json: save its fast tokenizer beside the weights")
    if not any((folder / name).exists() for name in SLOW_TOKENIZERS):  # without any, transformers makes an empty one up
        raise missing
    from transformers import AutoTokenizer

    try:
        backend: Tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
        return backend
    except (ValueError, OSError, KeyError, AttributeError, ImportError):
        raise missing from None


def _eos(generation: Mapping[str, Any] | None, config: Mapping[str, Any]) -> frozenset[int]:
    for source in (generation or {}, config):
        eos = source.get("eos_token_id")
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
    return frozenset()


def _check_vocabularies(target: _Loaded, draft: _Loaded) -> None:
    """Same tokens, or VocabularyMismatch. Padding beyond a shared tokenizer is no difference."""
    if target.tokenizer is not None and draft.tokenizer is not None:
        differing = differing_tokens(target.tokenizer, draft.tokenizer)
        sizes = target.tokenizer.get_vocab_size(), draft.tokenizer.get_vocab_size()
    else:
        differing = abs(target.model.vocab_size - draft.model.vocab_size)
        sizes = target.model.vocab_size, draft.model.vocab_size
    if differing:
        raise VocabularyMismatch(
            f"target {target.name} has {sizes[0]} tokens and draft {draft.name} {sizes[1]}, "
            f"{differing} of them not the same: choose a draft with the target's tokenizer"
        )
