"""`sybil distill`: what it reads and learns from, that it can be cut off anywhere, and the folder that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
from tiny import gpt2, letters, llama, save, sybil
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTJConfig, GPTJForCausalLM

from sybil import ChatTemplate, load
from sybil.distilling import card, documents, loss, recipe, shards, student, teacher, training
from sybil.distilling.documents import Document
from sybil.distilling.loss import Wanted
from sybil.distilling.material import Material, Reading
from sybil.distilling.shards import Shard
from sybil.drafting.narrowed import Narrowed
from sybil.errors import InvalidSetting, NotAModel, ResultsMismatch, SybilError, VocabularyMismatch
from sybil.fit import DRAFT_TOKENS, way_of
from sybil.loading import read
from sybil.measuring import files, prompts

VOCABULARY = 54
WORDS = "the cat SAT on a mat AND ate the Rat that sat on the hat of a fat cat in Paris "


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(llama(vocab=VOCABULARY), tmp_path_factory.mktemp("target"), letters(VOCABULARY))
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and prompts."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "one.txt").write_text(WORDS * 20)
    (folder / "two.txt").write_text(WORDS[::-1] * 20)
    rows = [{"prompt": f"the {word} "} for word in WORDS.split()] + [{"text": "A cat sat"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEP_TOKENS", 256)
    monkeypatch.setattr(training, "EVALUATIONS", 2)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def undisturbed(target: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing cut off."""
    out = tmp_path_factory.mktemp("whole") / "draft"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STEP_TOKENS", "EVALUATIONS", "CHECKPOINT_SECONDS"):  # which distill() changes
            patch.setattr(training, name, getattr(training, name))
        killing.distill(target, data, out)
    return out


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- what it reads ---


def test_documents_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("two")
    (tmp_path / "sub" / "same.md").write_text("two")
    (tmp_path / "noise.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "zeros.bin").write_bytes(b"a\0b")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    rows = [{"text": "three"}, {"prompt": "four", "domain": "question"}, {"messages": said}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = documents.read([tmp_path])
    every = {*found.training, *found.held_out}
    assert every == {
        Document("one"),
        Document("two"),
        Document("three"),
        Document(messages=(("user", "four"),), kind="question"),
        Document(messages=(("user", "Why?"), ("assistant", "So.")), kind="prompt"),
    }
    assert found.held_out
    assert not {*found.training} & {*found.held_out}
    assert found.skipped == 2
    assert documents.read([tmp_path]).digest == found.digest
    (tmp_path / "a.txt").write_text("another")
    assert documents.read([tmp_path]).digest != found.digest


def test_the_end_of_a_single_text_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(WORDS)
    found = documents.read([tmp_path / "a.txt"])
    assert found.training[0].text + found.held_out[0].text == WORDS


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", b"\xff", "no UTF-8 at byte 0"),
        ("a.txt", b"  \n", "holds no text"),
        ("a.jsonl", b"{", "line 1 is no JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is no JSON"),
        ("a.jsonl", b'{"text": "a"}\n3\n', "line 2: text is None"),
        ("a.jsonl", b'{"text": 5}', "text is 5"),
        ("a.jsonl", b'{"prompt": ""}', "prompt is ''"),
        ("a.jsonl", b'{"messages": "x"}', "messages is 'x'"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "a message is"),
        ("a.jsonl", b'{"text": "\\ud800"}', "half a character"),
        ("a.jsonl", b'{"text": "a", "domain": "\\u0007"}', "domain is"),
        ("a.jsonl", b'{"prompt": "Why?"}', "a single document"),
        ("a.txt", b"x" * 101, "more than 0 MiB"),
    ],
)
def test_data_that_is_refused(
    name: str, content: bytes, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(content) == 101:
        monkeypatch.setattr(documents, "MOST_BYTES", 100)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidSetting, match=line) as error:
        documents.read([tmp_path / name])
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, line in ((tmp_path / "pipe", "no file and no folder"), (tmp_path / "absent", "can't be read")):
        with pytest.raises(InvalidSetting, match=line):
            documents.read([path])
    monkeypatch.setattr(documents, "MOST_FILES", 1)
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(InvalidSetting, match="more than 1 files"):
        documents.read([tmp_path])


def test_prompts_have_their_turn_once_and_texts_are_cut(target: Path) -> None:
    reading = Reading(letters(VOCABULARY), None, 40)
    talks = [Document(messages=(("user", word), ("assistant", "A"))) for word in "abcd"]
    material = Material([*talks, Document(WORDS * 10)], reading, seed=1)
    cuts = material.prompts - 4
    assert cuts == (len(WORDS) * 10 - 16) // 256 + 1
    first = [material.asked(number) for number in range(material.prompts)]
    assert sorted(each.messages[0][1] for each in first if each.messages) == [*"abcd"]
    assert all(each.text in WORDS * 10 for each in first)
    again = [material.asked(number) for number in range(material.prompts, 2 * material.prompts)]
    assert [each.messages for each in again] != [each.messages for each in first]
    assert max(len(material.prompt(number)) for number in range(material.prompts)) <= 40


def test_a_target_that_chats_is_asked_by_its_template(target: Path) -> None:
    template = ChatTemplate("{% for each in messages %}{{ each.role[0] }} {{ each.content }} {% endfor %}A ")
    reading = Reading(letters(VOCABULARY), template, 500)
    said = (("system", "be"), ("user", "cat"), ("assistant", "Rat"))
    material = Material([Document(messages=said), Document(WORDS * 40)], reading, seed=1)
    every = range(material.prompts)
    texts = [letters(VOCABULARY).decode(material.prompt(number).tolist()) for number in every]
    asked = [material.asked(number) for number in every]
    assert "s be u cat A " in texts
    assert all(text == each.text for text, each in zip(texts, asked, strict=True) if each.text)
    cut = [text for text, each in zip(texts, asked, strict=True) if each.messages and each.messages != said[:2]]
    assert cut
    assert len(cut) < len(texts) - 2
    assert all(text.startswith("u ") and text.endswith(" A ") and text[2:-3] in WORDS * 40 for text in cut)


# --- what it learns from ---


def test_answers_and_texts_have_the_targets_distribution(target: Path) -> None:
    decoder, model = load(target), llama(vocab=VOCABULARY)
    asked = [np.array(ids, np.int32) for ids in ([3, 4, 5], [9], [7] * 20)]
    for sampled in (False, True):
        shard = teacher.answers(decoder, asked, 12, sampled=sampled, seed=1)
        _check_shard(shard, model, [len(each) for each in asked])
    plain = decoder.generate([each.tolist() for each in asked], max_new_tokens=12, do_sample=True, seed=1)
    assert [*plain.tokens[0]] == shard.tokens[3 : 3 + len(plain.tokens[0])].tolist()  # Sybil's own sampled text
    windows = [np.arange(start, start + 16, dtype=np.int32) for start in (0, 9)]
    shard = teacher.texts(decoder.target, windows)
    assert shard.asked == 32
    for row in range(2):
        part = slice(16 * row, 16 * row + 16)
        _check_places(Shard(shard.tokens[part], shard.top[part], shard.log_probs[part]), model, 0)


def _check_shard(shard: Shard, model: Any, leads: list[int]) -> None:
    """Each text of a shard by itself: a text ends at the place before which nobody was asked any more."""
    asked, start = shard.log_probs[:, 0] > -np.inf, 0
    for lead in leads:
        end = start + lead - 1
        assert not asked[start:end].any()
        while asked[end]:
            end += 1
        end += 1
        part = slice(start, end)
        _check_places(Shard(shard.tokens[part], shard.top[part], shard.log_probs[part]), model, lead - 1)
        start = end
    assert start == len(shard)


@torch.no_grad()
def _check_places(shard: Shard, model: Any, first: int) -> None:
    """What the shard says from the place `first` on is what transformers' forward says."""
    log_probs = model(torch.from_numpy(shard.tokens)[None].long()).logits[0].log_softmax(-1)
    for place in range(first, len(shard)):
        if shard.log_probs[place, 0] == -np.inf:
            continue
        values, tokens = log_probs[place].topk(shards.TOP)
        assert shard.top[place].tolist() == tokens.tolist()
        assert np.allclose(shard.log_probs[place], values.numpy(), atol=0.02)


def test_the_loss_is_the_divergence_and_its_slope() -> None:
    torch.manual_seed(0)
    monkey = loss.ROWS
    hidden, head = torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    target = torch.randn(7, 11, dtype=torch.float64).softmax(-1)
    probs, top = target.topk(3)
    probs[2, 1:], top[2, 1:] = 0, 0  # a place of which one token is known
    weights = torch.tensor([1.0, 0.5, 1, 1, 0.25, 1, 1], dtype=torch.float64)

    def dense(hidden: Tensor, head: Tensor) -> Tensor:
        draft, total = (hidden @ head.T).softmax(-1), torch.zeros((), dtype=torch.float64)
        for row in range(7):
            known = top[row][probs[row] > 0]
            p = torch.cat([probs[row][probs[row] > 0], 1 - probs[row].sum()[None]])
            q = torch.cat([draft[row][known], 1 - draft[row][known].sum()[None]])
            total = total + weights[row] * (p * (p / q).log()).sum()
        return total / weights.sum()

    try:
        loss.ROWS = 3
        slopes = []
        for function in (dense, lambda a, b: loss.divergence(a, b, Wanted(top, probs, weights))):
            inputs = [each.clone().requires_grad_() for each in (hidden, head)]
            value = function(*inputs)
            value.backward()
            slopes.append([value.detach(), *(each.grad for each in inputs)])
    finally:
        loss.ROWS = monkey
    for one, other in zip(*slopes, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_estimates_are_what_sampling_would_accept() -> None:
    torch.manual_seed(1)
    hidden, head = torch.randn(40, 4), torch.randn(9, 4)
    target, draft = torch.randn(40, 9).softmax(-1), (hidden @ head.T).softmax(-1)
    probs, top = target.topk(9)
    sampled, greedy = loss.estimates(hidden, head, Wanted(top, probs, torch.ones(40)))
    assert sampled == pytest.approx(torch.minimum(target, draft).sum(-1).mean().item(), abs=1e-6)
    assert greedy == (target.argmax(-1) == draft.argmax(-1)).double().mean().item()


def test_the_commonest_tokens_are_known_and_the_ends() -> None:
    counts = np.array([0, 5, 5, 9, 0, 1, 0, 2])
    assert student.commonest(counts, 5, always=[6]).tolist() == [1, 2, 3, 6]
    assert student.commonest(counts, 8, always=[]) is None


def test_a_text_in_the_drafts_tokens() -> None:
    """Target's tokens 1, 3, 4 are known, as 0, 1, 2; 3 stands for all others."""
    log_probs = np.log(np.array([[0.5, 0.25], [0.75, 0.125], [0.9, 0.05], [0.5, 0.5]])).astype(np.float16)
    log_probs[2] = -np.inf
    top = np.array([[3, 1], [4, 2], [1, 3], [0, 2]], np.int32)
    text = training.TrainingText.of(Shard(np.array([0, 1, 2, 4], np.int32), top, log_probs), np.array([1, 3, 4]), 5)
    assert text.tokens.tolist() == [3, 0, 3, 2]
    assert text.wanted.top.tolist() == [[1, 0], [2, 0], [0, 1], [0, 0]]
    assert text.wanted.weights.tolist() == pytest.approx([1, 0.875, 0, 0], abs=1e-3)
    assert text.wanted.probs[:2].flatten().tolist() == pytest.approx([0.5, 0.25, 0.75 / 0.875, 0], abs=1e-3)


def test_a_reduced_embedding_keeps_what_tokens_have_most_of() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(50, 3) @ torch.randn(3, 20) + torch.randn(20)  # three directions, and what all share
    found = student.reduced(embedding, 8)
    assert found.shape == (50, 8)
    assert found.norm(dim=1).mean().item() == pytest.approx(1, abs=1e-5)
    centred = embedding - embedding.mean(0)
    scale = centred.norm(dim=1).mean()
    assert torch.allclose(found @ found.T * scale**2, centred @ centred.T, atol=1e-3)
    assert found[:, 3:].abs().max() < 1e-4


# --- that it can be cut off ---


def test_killed_ten_times_it_ends_with_the_draft_of_an_undisturbed_run(
    target: Path, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    command = [sys.executable, killing.__file__, target, data, tmp_path / "draft", 10]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    assert weights(tmp_path / "draft") == weights(undisturbed)


class _CutError(Exception):
    pass


def test_cut_before_and_after_every_file_it_ends_with_the_same_draft(
    target: Path, data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each second run writes one file more than the one before; the others stop before it is written."""
    whole, left, cuts = files.replace, 0, 0

    def replace(path: Path, content: bytes) -> None:
        nonlocal left
        if left == 0:
            raise _CutError
        left -= 1
        whole(path, content)
        if left == 0:
            raise _CutError

    monkeypatch.setattr(files, "replace", replace)
    while True:
        left = cuts % 2
        try:
            killing.distill(target, data, tmp_path / "draft", seconds=1e9)
        except _CutError:
            cuts += 1
        else:
            break
    assert cuts > 10
    assert weights(tmp_path / "draft") == weights(undisturbed)


def test_what_a_checkpoint_leaves_out_would_be_seen(
    target: Path, data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the optimiser's state is not gone on with."""
    steps, ordinary = [0], training.Training.step

    def step(self: training.Training) -> None:
        if steps[0] == 8:
            raise _CutError
        steps[0] += 1
        ordinary(self)

    monkeypatch.setattr(training.Training, "step", step)
    with pytest.raises(_CutError):
        killing.distill(target, data, tmp_path / "draft")
    monkeypatch.setattr(training.Training, "step", ordinary)
    monkeypatch.setattr(training.MuonWithAdam, "load_state_dict", lambda *_: None)
    killing.distill(target, data, tmp_path / "draft")
    assert weights(tmp_path / "draft") != weights(undisturbed)


@pytest.mark.parametrize("name", ["answers-00001.npz", "checkpoint.pt", "plan.json", "recipe.json"])
def test_a_broken_file_of_an_earlier_run_is_one_line(
    name: str, target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killing, "SIZES", killing.SIZES | {"steps": 2, "answers": 2})
    killing.distill(target, data, tmp_path / "draft")
    (tmp_path / "draft" / "training" / name).write_bytes(b"PK\x03\x04broken")
    with pytest.raises(ResultsMismatch) as error:
        killing.distill(target, data, tmp_path / "draft")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_shard_that_lies_is_refused(tmp_path: Path) -> None:
    good = Shard(np.zeros(3, np.int32), np.zeros((3, 4), np.int32), np.zeros((3, 4), np.float16))
    good.save(tmp_path / "a.npz")
    assert len(shards.load(tmp_path / "a.npz", 4)) == 3
    for tokens, top, log_probs in (
        (good.tokens + np.int32(4), good.top, good.log_probs),
        (good.tokens, good.top - np.int32(1), good.log_probs),
        (good.tokens, good.top, good.log_probs * np.float16(np.nan)),
        (good.tokens, good.top[:2], good.log_probs),
        (good.tokens.astype(np.int64), good.top, good.log_probs),
    ):
        Shard(tokens, top, log_probs).save(tmp_path / "b.npz")
        with pytest.raises(ResultsMismatch, match="delete it"):
            shards.load(tmp_path / "b.npz", 4)
    np.save(tmp_path / "c", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ResultsMismatch):
        shards.load(tmp_path / "c.npy", 4)


# --- the folder ---


def test_the_folder_drafts_losslessly(target: Path, undisturbed: Path) -> None:
    plain, drafted = load(target), load(target, draft=undisturbed)
    assert way_of(drafted.draft) == "commonest"
    for settings in ({}, {"do_sample": True, "rule": "coupled", "seed": 5}):
        texts = ["the cat sat", "Paris AND Rat"]
        one, other = (each.generate(texts, max_new_tokens=24, **settings) for each in (plain, drafted))
        assert one.text == other.text
        assert other.stats.proposed > 0
    model = AutoModelForCausalLM.from_pretrained(undisturbed)
    assert (model.config.vocab_size, model.config.sliding_window) == (32, 16)
    assert len(getattr(model.config, DRAFT_TOKENS)) == 31
    files = [path for path in undisturbed.iterdir() if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1  # whoever may read one may read all


@pytest.mark.parametrize("kind", ["hybrid:lookup,{}", "cascade:lookup,{}"])
def test_lookup_helps_a_draft_of_few_tokens(kind: str, target: Path, undisturbed: Path) -> None:
    """A text of which the draft knows some words, and lookup proposes the others too."""
    plain, drafted = load(target), load(target, draft=kind.format(undisturbed))
    for settings in ({}, {"do_sample": True, "rule": "coupled", "seed": 7}):
        texts = ["Paris AND Rat, Paris AND Rat, Paris", "the cat sat"]
        one, other = (each.generate(texts, max_new_tokens=24, **settings) for each in (plain, drafted))
        assert one.text == other.text
        assert other.stats.proposed > 0


def test_a_draft_of_few_tokens_is_a_model_over_all(target: Path, undisturbed: Path) -> None:
    drafted = load(target, draft=undisturbed, draft_dtype="float32")
    assert drafted.draft is not None
    model = drafted.draft.models[0]
    assert isinstance(model, Narrowed)
    config = json.loads((undisturbed / "config.json").read_text())
    known = config[DRAFT_TOKENS]
    own = {token: place for place, token in enumerate(known)}
    tokens = torch.tensor([[0, 5, 53, 9, 30], [1, 2, 3, 50, 52]])
    assert {*tokens.flatten().tolist()} - {*known}  # one at least is read as any other
    inner = AutoModelForCausalLM.from_pretrained(undisturbed, dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([[own.get(token, 31) for token in row] for row in tokens.tolist()])
        wanted = inner(ids).logits
    found = model.forward(tokens, model.new_cache(2, 8))
    assert found.shape == (2, 5, VOCABULARY)
    assert torch.allclose(found[..., known], wanted[..., :31], atol=1e-4)
    others = [token for token in range(VOCABULARY) if token not in own]
    assert (found[..., others] == -torch.inf).all()


def test_a_draft_that_knows_all_tokens_is_an_ordinary_one(
    target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killing, "SIZES", killing.SIZES | {"vocabulary": 0, "steps": 2, "answers": 2})
    killing.distill(target, data, tmp_path / "draft")
    drafted = load(target, draft=tmp_path / "draft")
    assert way_of(drafted.draft) is None
    assert load(tmp_path / "draft").generate("the cat", max_new_tokens=4).text
    assert DRAFT_TOKENS not in json.loads((tmp_path / "draft" / "config.json").read_text())


def test_a_target_that_runs_by_transformers_has_a_draft_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=1, n_head=2, rotary_dim=4, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    target = save(GPTJForCausalLM(config), tmp_path / "target", letters(VOCABULARY))
    monkeypatch.setattr(killing, "SIZES", killing.SIZES | {"steps": 2, "answers": 1})
    killing.distill(target, data, tmp_path / "draft")
    assert load(target, draft=tmp_path / "draft").generate("the cat", max_new_tokens=4).stats.proposed > 0
    assert card.licence_of(read(target)) is None


def test_a_draft_of_another_target_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="a draft that knows some of another model's tokens"):
        load(undisturbed)
    with pytest.raises(VocabularyMismatch, match="distilled for a target with another tokenizer"):
        load(save(gpt2(), tmp_path / "other"), draft=undisturbed)


@pytest.mark.parametrize(
    ("known", "error"),
    [("x", NotAModel), ([], NotAModel), ([3, 2], NotAModel), ([-1, 2], NotAModel), ([True, 2], NotAModel),
     ([*range(30)], VocabularyMismatch), ([*range(30), 99], VocabularyMismatch)],
)  # fmt: skip
def test_tokens_that_a_folder_can_not_know(
    known: Any, error: type[SybilError], target: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((undisturbed / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {DRAFT_TOKENS: known}))
    with pytest.raises(error):
        load(target, draft=tmp_path)


# --- the command ---


def test_the_command_ends_with_a_folder_a_card_and_a_table(
    target: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "draft"
    command = ("distill", target, "--data", data, "--out", out, "--budget", "0.02", "--width", 16, "--reach", 16)
    compared: dict[str, Any] = {}
    monkeypatch.setattr("sybil.cli.distill.compare", lambda **asked: compared.update(asked))
    assert sybil(*command, "--vocabulary", 32) == 0
    assert (compared["target"], compared["draft"]) == (str(target), str(out))
    assert [prompt.domain for prompt in prompts.load(compared["prompt_file"])]
    printed = capsys.readouterr().out
    for word in ("answers of the target: ", "steps: ", "accepted greedily"):
        assert word in printed
    said = (out / "README.md").read_text()
    for word in ("bit for bit", "temperature 0", "temperature 1", "`apache-2.0`", "SHA-256", "sum of min", "--steps"):
        assert word in said
    assert (out / "prompts.jsonl").read_text().count("\n") >= 1
    plan = recipe.planned(out / "training" / "plan.json")
    assert plan is not None
    assert f"--answers {plan.answers}" in said
    assert sybil(*command, "--vocabulary", 32, "--no-compare", "--steps", 10**6) == 2
    assert f"planned with steps {plan.steps}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--width", 12), "width is 12: use a multiple of 64"),
        (("--layers", 65), "layers is 65"),
        (("--vocabulary", 8), "vocabulary is 8 tokens: use 32 or more"),
        (("--budget", 0), "budget is 0 minutes"),
        (("--budget", "nan"), "budget is nan"),
        (("--steps", 0), "steps is 0"),
        (("--reach", 1), "window is 1"),
        (("--seed", -1), "seed is -1"),
        (("--data", "absent"), "which can't be read"),
    ],
)
def test_what_the_command_refuses(
    options: tuple[object, ...], line: str, target: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sybil("distill", target, "--data", data, "--out", tmp_path / "draft", *options) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "draft" / "model.safetensors").exists()


def test_a_folder_that_was_begun_otherwise_is_not_gone_on_with(
    target: Path, data: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(undisturbed)
    sizes = ("--layers", 1, "--width", 24, "--vocabulary", 32, "--reach", 16, "--seed", 3)
    assert sybil("distill", target, "--data", data, "--out", undisturbed, *sizes) == 2
    assert "was begun with width 16, and this run asks for width 24" in capsys.readouterr().err
    assert weights(undisturbed) == before
