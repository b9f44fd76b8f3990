"""A model on the hub, looked at by its config and by the headers of its weights: no weight is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ggufs
import hubs
import pytest
import torch
from configurations import example, random_model
from gguf import GGUFWriter
from hubs import Hub
from safetensors.torch import load_file, save_file
from tiny import gpt2, letters, llama, save

from sybil.budget import WeightBytes
from sybil.checking import remote
from sybil.checking.check import check
from sybil.errors import HubUnreachable, NotAModel, SybilError
from sybil.models import folders, planning
from sybil.models.folders import Checkpoint
from sybil.models.storage import Kept

CPU = torch.device("cpu")
GATED, WHOLE = "gated/model", "whole/model"
"""A repository that has to be asked for, and one whose files come whole, whatever part is asked for."""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders and GGUF files, as repositories of a hub."""
    root = tmp_path_factory.mktemp("hub")
    found = {
        "me/target": save(gpt2(width=128, layers=4), root / "target"),
        "me/draft": save(gpt2(seed=3), root / "draft"),
        "me/other": save(gpt2(vocab=24), root / "other", letters(24)),
        "me/sharded": root / "sharded",
        "me/pickles": root / "pickles",
        "me/file": root / "file",
        "me/files": root / "files",
        "me/nothing": root / "nothing",
        WHOLE: root / "file",
        GATED: root / "draft",
    }
    save(llama(), root / "sharded")
    split(root / "sharded")
    save(gpt2(), root / "pickles")
    (root / "pickles" / "model.safetensors").rename(root / "pickles" / "pytorch_model.bin")
    for name in ("file", "files", "nothing"):
        (root / name).mkdir()
    (root / "nothing" / "README.md").write_text("nothing")
    model = random_model(example("llama", hidden_size=64, intermediate_size=64), torch.float32)
    ggufs.write(model, root / "file" / "a.gguf", storage="q4_0")
    for name in ("a", "b"):
        ggufs.write(model, root / "files" / f"{name}.gguf", storage="q8_0")
    return found


def split(folder: Path) -> None:
    """The weights of a folder in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(sorted(tensors))}
    for file in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def reckoned(checkpoint: Checkpoint, kept: Kept) -> WeightBytes:
    return planning.weights(checkpoint, kept, torch.float32, CPU)


@pytest.fixture
def served(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    named = {name: {"main": folder, "old": folder} for name, folder in repositories.items()}
    with hubs.serving(Hub(named, gated=(GATED,), whole=(WHOLE,))) as server:
        hubs.asking(server, tmp_path / "cache", monkeypatch)
        yield server


def serves(server: Hub, folder: Path) -> None:
    """The repository me/odd, from now on."""
    hubs.Hub.__init__(server, {"me/odd": {"main": folder}})


@pytest.mark.parametrize("name", ["me/target", "me/sharded"])
def test_headers_say_of_a_folder_what_the_folder_says(name: str, served: Hub, repositories: dict[str, Path]) -> None:
    seen, here = remote.read(name, tokenizer=False), folders.read(repositories[name])
    assert seen.stored is not None
    assert here.stored is not None
    assert (seen.stored.shapes, seen.stored.dtypes) == (here.stored.shapes, here.stored.dtypes)
    assert (seen.config, seen.known, seen.tokenizer) == (here.config, here.known, None)
    assert reckoned(seen, "float32") == reckoned(here, "float32")
    assert not any("tokenizer" in path for path in served.asked)
    with pytest.raises(NotAModel, match="nothing of it but its header"):
        seen.stored.read(next(iter(seen.stored.shapes)))


def test_of_large_weights_the_header_alone_is_fetched(served: Hub, repositories: dict[str, Path]) -> None:
    remote.read("me/target", tokenizer=True)
    size = (repositories["me/target"] / "model.safetensors").stat().st_size
    assert served.sent["model.safetensors"] < 110_000 < size / 5


@pytest.mark.parametrize("first", [16, 1000, remote.FIRST_BYTES])
def test_a_gguf_files_header_is_fetched_as_far_as_it_goes(
    first: int, served: Hub, repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_BYTES", first)
    here = folders.read(repositories["me/file"] / "a.gguf")
    for name in ("me/file", "me/file/a.gguf"):
        seen = remote.read(name, tokenizer=False)
        assert seen.name == "me/file/a.gguf"
        assert seen.stored is not None
        assert here.stored is not None
        assert (seen.config, seen.known) == (here.config, here.known)
        assert seen.stored.storages == here.stored.storages
        assert reckoned(seen, "stored") == reckoned(here, "stored")
        assert seen.tokenizer is not None
        assert here.tokenizer is not None
        assert seen.tokenizer.get_vocab() == here.tokenizer.get_vocab()


def test_a_longer_file_is_fetched_in_part(
    served: Hub, repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_BYTES", 2048)
    remote.read("me/file", tokenizer=False)
    assert served.sent["a.gguf"] < (repositories["me/file"] / "a.gguf").stat().st_size


def test_factors_of_frequencies_are_fetched(served: Hub, repositories: dict[str, Path]) -> None:
    """Llama 3.1's tensor rope_freqs, of which the config is made."""
    import numpy as np

    model = random_model(example("llama", hidden_size=64, intermediate_size=64), torch.float32)
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    path = ggufs.write(model, repositories["me/file"].parent / "factors.gguf", more={"rope_freqs.weight": factors})
    path.rename(repositories["me/files"] / "factors.gguf")
    seen = remote.read("me/files/factors.gguf", tokenizer=False)
    assert seen.config["rope_parameters"]["short_factor"] == factors.tolist()
    (repositories["me/files"] / "factors.gguf").unlink()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("me/missing", "the hub gives no model 'me/missing'"),
        ("me/pickles", "holds no *.safetensors on the hub"),
        ("me/nothing", "holds no config.json on the hub"),
        ("me/files", "holds 2 GGUF files (a.gguf, b.gguf) on the hub: give"),
        ("me/files/c.gguf", "the model 'me/files' lacks a file"),
        (GATED, "the model 'gated/model' is gated: ask for access at http"),
        (f"{WHOLE}/a.gguf", "can't be read in part there: download the file"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(name: str, said: str, served: Hub) -> None:
    with pytest.raises(NotAModel) as raised:
        remote.read(name, tokenizer=False)
    line = str(raised.value)
    assert said in line
    assert "\n" not in line


def test_a_revision_that_is_not_there(served: Hub) -> None:
    remote.read("me/draft", tokenizer=False, revision="old")
    for name in ("me/draft", "me/file/a.gguf"):
        with pytest.raises(NotAModel, match=r"has no revision 'nonesuch': give a branch"):
            remote.read(name, tokenizer=False, revision="nonesuch")


def test_offline_is_one_line(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs.offline(monkeypatch)
    for name in ("me/target", "me/file/a.gguf"):
        with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE is set and the hub's cache lacks"):
            check(name)
    assert served.asked == []


def damaged(content: bytes) -> Iterator[bytes]:
    """Headers that can't be: numbers of another size, cut short, no header at all."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    for field, value in (
        ("shape", [-1]), ("shape", [2**70, 2]), ("shape", ["x"]), ("shape", [1] * 99), ("data_offsets", [0]),
        ("data_offsets", [0, -5]), ("data_offsets", [0, 2**70]), ("dtype", 5), ("dtype", {}),
    ):  # fmt: skip
        changed = json.dumps({**header, name: {**header[name], field: value}}).encode()
        yield len(changed).to_bytes(8, "little") + changed
    yield content[:4]
    yield (2**60).to_bytes(8, "little") + content[8:]
    yield (5).to_bytes(8, "little") + b"{[]}}" + bytes(20)
    yield (2).to_bytes(8, "little") + b"[]" + bytes(20)


def test_hostile_headers_are_one_line(served: Hub, repositories: dict[str, Path], tmp_path: Path) -> None:
    source = repositories["me/draft"]
    (tmp_path / "odd").mkdir()
    serves(served, tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_bytes((source / "config.json").read_bytes())
    for content in damaged((source / "model.safetensors").read_bytes()):
        (tmp_path / "odd" / "model.safetensors").write_bytes(content)
        with pytest.raises(SybilError) as raised:
            reckoned(remote.read("me/odd", tokenizer=False), "float32")
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 600


def test_hostile_gguf_headers_are_one_line(served: Hub, repositories: dict[str, Path], tmp_path: Path) -> None:
    content = (repositories["me/file"] / "a.gguf").read_bytes()
    (tmp_path / "odd").mkdir()
    serves(served, tmp_path / "odd")
    for odd in (b"", b"GGUF", b"nothing" * 9, content[:5000], content[:8] + b"\xff" * 16 + content[24:]):
        (tmp_path / "odd" / "a.gguf").write_bytes(odd)
        with pytest.raises(SybilError) as raised:
            remote.read("me/odd/a.gguf", tokenizer=False)
        line = str(raised.value)
        assert "\n" not in line
        assert "me/odd/a.gguf" in line


def test_a_header_that_never_ends_is_not_fetched_for_ever(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["x" * 1000] * 300)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    serves(served, tmp_path)
    monkeypatch.setattr(remote, "FIRST_BYTES", 1024)
    monkeypatch.setattr(remote, "MOST_BYTES", 8192)
    with pytest.raises(NotAModel, match=r"has a header of more than 8,192 bytes: download the file"):
        remote.read("me/odd/a.gguf", tokenizer=False)
    assert served.sent["a.gguf"] < 20_000


def test_a_pair_on_the_hub_is_checked(served: Hub) -> None:
    found = check("me/target", "me/draft", device="cpu")
    assert (found.here, found.tokens, found.share) == (False, "same", None)
    assert [each.name for each in found.candidates] == ["me/draft", "self:6", "self:8", "lookup"]
    assert found.fits
    assert check("me/target", "me/other", device="cpu").tokens in ("intersection", "strings")


def test_what_was_fetched_whole_is_not_asked_for_again(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.locate("me/draft")
    hubs.offline(monkeypatch)
    found: Any = check("me/draft", device="cpu")
    assert found.here
    assert found.setup.target.checkpoint.name == "me/draft"
