"""Copies and pickles of models, caches and decoders answer as what they were made of, and a forked process answers."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import SHAPES, assert_same_bits, compiled, logits_in_parts, random_tokens, random_weights, shapes, storages
from tiny import fixed, foreign, gpt2, in_sybil, perturbed, prompts, windowed

import sybil
from sybil.decoding import Decoder
from sybil.drafting import DraftLookup, DraftModel
from sybil.errors import UnsupportedModel
from sybil.models.native import NativeTransformer, library
from sybil.models.operators.linear import Way, can_pack, linear
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import Storage


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


copies = pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, pickled, saved])


@compiled
@copies
@shapes
@storages
def test_a_native_model_is_packed_anew(again: Callable[[Any], Any], shape: Shape, storage: Storage) -> None:
    model = NativeTransformer(shape, random_weights(shape), storage, 1, 4)
    tokens = random_tokens(shape, 2, 9)
    wanted = logits_in_parts(model, tokens, [4, 5])
    other = again(model)
    assert_same_bits(logits_in_parts(other, tokens, [4, 5]), wanted)
    assert (other.weight_bytes, other._lanes, other.threads) == (model.weight_bytes, 4, 1)
    del model
    random_weights(shape, 5)
    assert_same_bits(logits_in_parts(again(other), tokens, [4, 5]), wanted)


@compiled
def test_a_pickle_holds_the_weights_and_little_more() -> None:
    model = NativeTransformer(SHAPES["wide"], random_weights(SHAPES["wide"]))
    assert model.weight_bytes < len(pickle.dumps(model)) < 1.02 * model.weight_bytes + 30_000


@compiled
def test_a_pickle_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"])))
    monkeypatch.setattr(library, "load", lambda lanes=None: None)
    with pytest.raises(UnsupportedModel, match="install a C compiler"):
        pickle.loads(content)


@copies
@pytest.mark.parametrize("way", ["plain", "packed", "int8"])
@shapes
def test_a_model_of_operators_is_packed_anew(again: Callable[[Any], Any], way: Way, shape: Shape) -> None:
    if way == "packed" and not can_pack(torch.zeros(2, 2)):
        way = "plain"
    model = Transformer(shape, random_weights(shape), way)
    tokens = random_tokens(shape, 2, 9)
    wanted = logits_in_parts(model, tokens, [4, 5])
    other = again(model)
    assert logits_in_parts(other, tokens, [4, 5]).equal(wanted)
    assert other.weight_bytes == model.weight_bytes


def every_kind() -> dict[str, Any]:
    found = {
        "operators": in_sybil(windowed()),
        "fixed shapes": fixed(windowed()),
        "transformers": foreign(gpt2()),
    }
    if library.load():
        found["native"] = NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]))
    return found


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_a_copied_cache_goes_on_where_it_was(again: Callable[[Any], Any]) -> None:
    """Each by itself: what the one writes the other doesn't see."""
    for name, model in every_kind().items():
        tokens = torch.randint(1, 30, (2, 12), generator=torch.Generator().manual_seed(0))
        wanted = logits_in_parts(model, tokens, [6, 1, 5])[:, 6:]
        cache = model.new_cache(2, 12)
        model.forward(tokens[:, :6], cache)
        other = again(cache)
        for row in range(2):  # into the one, not the other
            model.forward(torch.full((2, 6), 3 + row), copy.deepcopy(cache))
        model.forward(torch.full((2, 6), 7), cache)
        found = torch.cat([model.forward(part, other).clone() for part in torch.split(tokens[:, 6:], [1, 5], 1)], 1)
        torch.testing.assert_close(found, wanted, msg=name)
        assert other.lengths.tolist() == [12, 12]


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
@pytest.mark.parametrize("wrap", [in_sybil, fixed, foreign])
def test_a_copied_decoder_decodes(again: Callable[[Any], Any], wrap: Any) -> None:
    for draft in (DraftModel(wrap(perturbed(gpt2(), 0.02))), DraftLookup(), None):
        decoder = Decoder(wrap(gpt2()), draft)
        wanted = decoder.generate(prompts([4, 7]), max_new_tokens=12)
        found = again(decoder).generate(prompts([4, 7]), max_new_tokens=12)
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
        assert found.stats.accepted == wanted.stats.accepted


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_a_copied_pair_decodes_with_its_tokenizer(again: Callable[[Any], Any]) -> None:
    decoder = sybil.load("stdlib")
    wanted = decoder.generate("def main(", max_new_tokens=12)
    found = again(decoder).generate("def main(", max_new_tokens=12)
    assert (found.text, found.stats.accepted) == (wanted.text, wanted.stats.accepted)


FORK = """
import os, sys, time
import torch
import sybil
from sybil.decoding import Decoder
from sybil.models.native import NativeTransformer
from sybil.models.operators.transformer import Transformer
from shapes import SHAPES, random_weights

torch.set_num_threads(2)
asked = dict(max_new_tokens=12, do_sample=True, seed=1)
shape = SHAPES["wide"]
decoders = {
    "pair": sybil.load("stdlib"),
    "native": Decoder(NativeTransformer(shape, random_weights(shape), threads=2)),
    "operators": Decoder(Transformer(shape, random_weights(shape))),
}
prompt = [torch.arange(1, 9)]
wanted = {name: decoder.generate(prompt, **asked).tokens[0].tolist() for name, decoder in decoders.items()}
torch.randn(400_000, dtype=torch.float32).exp()  # by both threads

def child(number):
    for name, decoder in decoders.items():
        assert decoder.generate(prompt, **asked).tokens[0].tolist() == wanted[name], name
    torch.randn(400_000, dtype=torch.float32).exp()
    late = NativeTransformer(shape, random_weights(shape), threads=2)
    assert Decoder(late).generate(prompt, **asked).tokens[0].tolist() == wanted["native"]
    if number == 0:
        grandchild = os.fork()
        if grandchild == 0:
            child(1)
        assert os.waitpid(grandchild, 0)[1] == 0
    os._exit(0)

children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        child(number)
    children.append(pid)
deadline = time.monotonic() + 60
while children and time.monotonic() < deadline:
    ended, status = os.waitpid(-1, os.WNOHANG)
    if ended:
        children.remove(ended)
        assert status == 0, status
    time.sleep(0.02)
for pid in children:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
assert not children, "hung"
assert torch.get_num_threads() == 2
assert decoders["pair"].generate(prompt, **asked).tokens[0].tolist() == wanted["pair"]
print("answered")
"""


@compiled
def test_a_forked_process_answers() -> None:
    """Threads stay in the parent: torch has one in a child, and the C forward starts workers of its own."""
    environment_path = [str(Path(__file__).parent), str(Path(sybil.__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {environment_path!r}\n{FORK}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.stdout, done.returncode) == ("answered\n", 0), done.stderr


@pytest.mark.parametrize("inputs", [1, 7, 64])
def test_int8_by_operators_is_a_row_s_own(inputs: int) -> None:
    """Whatever stands beside it: else a text would depend on its neighbours, and a cascade's probabilities on what its
    helper drew with the same noise."""
    torch.manual_seed(0)
    product = linear(torch.randn(9, inputs), torch.randn(9), way="int8")
    rows = torch.randn(6, inputs) * torch.tensor([[1e-30], [1.0], [50.0], [1e20], [0.0], [1.0]])
    rows[5, 0] = math.inf
    together = product(rows[None])[0]
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(product(row[None])[0], found) or found.isnan().all()
    assert together.isfinite().all(-1).tolist() == [True] * 5 + [False]
    assert torch.equal(product(rows[:2]), together[:2])
