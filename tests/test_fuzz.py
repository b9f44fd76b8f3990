"""Broken files of a model: one line each that says what is wrong, or a model that decodes; no crash, no hang.

broken_configs(), odd_configs() and broken_headers() are the cases and outcome() is what comes of a folder, so that
another build of the C forward can be put to them as well."""

from __future__ import annotations

import itertools
import json
import random
import resource
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from configurations import example, random_model
from tiny import save, sybil

from sybil import Decoder
from sybil.errors import SybilError
from sybil.loading import load
from sybil.models import building, folders
from sybil.models.checkpoints.families import FAMILIES, understand
from sybil.models.checkpoints.fields import FIELDS, Fields, Kind
from sybil.settings import DEFAULTS

CASES = 2000
LONGEST_LINE = 600
SECONDS, MEGABYTES = 100, 200
DEEP: list[Any] = []
for _ in range(90):
    DEEP = [DEEP]
BAD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, 2.0, -2.5, 1e-40, 10**5, 10**9, 10**12, 10**30, -(10**12), float("nan"),
    float("inf"), "", "no", "31", "x" * 5000, "a\nb\x00\u202e", [], [0], ["x"], {}, {"rope_type": "linear"}, DEEP,
)  # fmt: skip
ROPE = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "partial_rotary_factor": 1.0,
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "layer_types": None}
VARIANTS: tuple[dict[str, Any], ...] = (
    {}, {"rope_parameters": None}, {"rope_parameters": ROPE}, {"rope_scaling": ROPE}, WINDOW,
)  # fmt: skip


@dataclass(frozen=True)
class BrokenConfig:
    """A family's config.json with one field, or one of an object in it, that holds something else."""

    family: str
    config: Mapping[str, Any]
    field: tuple[str, ...]
    value: Any

    @property
    def text(self) -> str:
        return json.dumps(_with(self.config, self.field, self.value))


def _with(config: Mapping[str, Any], field: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The config whose field, or that of an object in it, holds the value."""
    outer, *inner = field
    return {**config, outer: _with(config[outer], tuple(inner), value) if inner else value}


def broken_configs(whole: Mapping[str, dict[str, Any]], count: int = CASES) -> list[BrokenConfig]:
    """So many, the same every time: each field that a family reads, with values that aren't allowed there."""
    return _chosen([case for case in _cases(whole) if not is_allowed(case)], count)


def odd_configs(whole: Mapping[str, dict[str, Any]], count: int = CASES // 10) -> list[BrokenConfig]:
    """So many whose odd values are allowed, among them those that have to go through transformers."""
    return _chosen([case for case in _cases(whole) if is_allowed(case)], count)


def _chosen(cases: list[BrokenConfig], count: int) -> list[BrokenConfig]:
    """As many values of one field of one family as of another."""
    seen: Counter[object] = Counter()
    random.Random(0).shuffle(cases)
    numbered = []
    for case in cases:
        seen[case.family, case.field] += 1
        numbered.append(seen[case.family, case.field])
    return [cases[place] for place in sorted(range(len(cases)), key=numbered.__getitem__)[:count]]


def _cases(whole: Mapping[str, dict[str, Any]]) -> Iterator[BrokenConfig]:
    for (family, config), variant in itertools.product(whole.items(), VARIANTS):
        varied = of_family(config, variant)
        for field, value in itertools.product(fields_read(varied), BAD):
            yield BrokenConfig(family, varied, field, value)


def of_family(config: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """The variant of a config; where rotations are said by kind of layer, each kind's."""
    rope = variant.get("rope_parameters")
    if rope and "full_attention" in config.get("rope_parameters", {}):
        variant = {"rope_parameters": dict.fromkeys(config["rope_parameters"], rope)}
    return config | variant


def fields_read(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """The fields that are read of a good config, and those of the objects in it."""
    found, read = {("eos_token_id",)}, Fields.__getitem__

    def spy(fields: Fields, name: str) -> Any:
        found.add((*reversed(fields._where.split(" of ")[:-1]), name))
        return read(fields, name)

    with mock.patch.object(Fields, "__getitem__", spy):
        family, shape = understand(config)
        next(family.sources(config, shape, "", "", ""))
    return sorted(found)


def is_allowed(case: BrokenConfig) -> bool:
    kind = FIELDS[case.field[-1]]
    return kind.null if case.value is None else kind.taken(case.value) is not None


def broken_headers(file: bytes, count: int = CASES) -> list[tuple[str, bytes]]:
    """So many safetensors files, the same every time: a good one whose header says what isn't so."""
    return [_spoilt(file, number, random.Random(number)) for number in range(count)]


def _spoilt(file: bytes, number: int, chance: random.Random) -> tuple[str, bytes]:
    size = struct.unpack("<Q", file[:8])[0]
    header, data = json.loads(file[8 : 8 + size]), file[8 + size :]
    name, other = chance.sample([name for name in header if name != "__metadata__"], 2)
    entry = header[name]
    start, end = entry["data_offsets"]
    kind = chance.choice(("value", "dtype", "shape", "offsets", "name", "twice", "length", "cut", "byte"))
    if kind == "value":
        entry[chance.choice(["dtype", "shape", "data_offsets"])] = chance.choice([*BAD, 2**63, 2**64, [2**62, 8]])
    elif kind == "dtype":  # as many bytes of other numbers
        dtype, width = chance.choice([("I32", 4), ("U32", 4), ("I16", 2), ("I8", 1), ("BOOL", 1), ("F8_E4M3", 1)])
        entry |= {"dtype": dtype, "shape": [*entry["shape"][:-1], entry["shape"][-1] * 4 // width]}
    elif kind == "shape":
        sizes = entry["shape"]
        entry["shape"] = chance.choice([[*sizes, 1], [1, *sizes], sizes[::-1] * 2, [0, *sizes], [-1], [2**63, 2], []])
    elif kind == "offsets":
        ends = [
            [end, start],
            [0, end + 4],
            [start + 4, end],
            [start, 2**63],
            [2**64 - 8, 2**64 - 1],
            [start],
            [None, 1],
        ]
        entry["data_offsets"] = chance.choice(ends)
    elif kind == "name":
        header[chance.choice(["", "\n", "\x00", "é" * 3000, "../x", f"{name} "])] = header.pop(name)
    raw = json.dumps(header).encode()
    if kind == "twice":
        raw = raw.replace(json.dumps(name).encode(), json.dumps(other).encode())
    if kind == "byte":
        place = raw.index(name.encode()) + chance.randrange(len(name))
        raw = raw[:place] + bytes([chance.choice([0, 10, 34, 92, 128, 255])]) + raw[place + 1 :]
    length = len(raw)
    if kind == "length":
        length = chance.choice([0, 1, size - 1, size + 1, size + len(data) + 1, 10**8, 2**40, 2**63, 2**64 - 1])
    whole = struct.pack("<Q", length) + raw + data
    return f"{number}: {kind} of {name}", whole[: chance.randrange(len(whole))] if kind == "cut" else whole


def outcome(folder: Path) -> str:
    """The line that a folder gets, or '' where it decodes; anything else is raised."""
    try:
        model = building.load(folders.read(folder), "float32", torch.float32, torch.device("cpu"))
        Decoder(model).generate([torch.tensor([1, 2, 3])], max_new_tokens=2, eos_token_id=[])
    except SybilError as error:
        return str(error)
    return ""


def check(line: str, *named: str) -> None:
    assert "\n" not in line
    assert len(line) < LONGEST_LINE
    assert any(name in line for name in named), line


@contextmanager
def bounded() -> Iterator[None]:
    """Generous limits of time and memory, beyond what is there before."""
    peak, start = _peak(reset=True), time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS
    assert _peak() - peak < MEGABYTES * 1e6


def _peak(reset: bool = False) -> int:
    """The most memory that this process had, in bytes, since it was last reset (where the system can do that)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save(random_model(example(family), torch.float32), root / family)
        assert outcome(root / family) == ""
    return root


@pytest.fixture
def configs(models: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Of each family; the folders have theirs again afterwards."""
    whole = {family: (models / family / "config.json").read_text() for family in FAMILIES}
    yield {family: json.loads(text) for family, text in whole.items()}
    for family, text in whole.items():
        (models / family / "config.json").write_text(text)


def refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """That the command ends with 2 and one line."""
    capsys.readouterr()
    assert sybil("generate", "abc", "--target", folder, "--max-new-tokens", 2) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sybil: ")
    assert captured.err.count("\n") == 1


def test_broken_configs(models: Path, configs: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    cases = broken_configs(configs)
    met = Counter((case.family, case.field) for case in cases)
    assert {family for family, _ in met} == {*FAMILIES}
    assert {field for _, field in met} == {
        field
        for config in configs.values()
        for variant in VARIANTS
        for field in fields_read(of_family(config, variant))
    }
    assert min(met.values()) > 3
    assert len(cases) == CASES
    with bounded():
        for case in cases:
            (models / case.family / "config.json").write_text(case.text)
            check(outcome(models / case.family), f"{case.field[-1]} ")
    for case in cases[:24]:
        (models / case.family / "config.json").write_text(case.text)
        refused(capsys, models / case.family)


def test_a_field_that_is_not_checked_is_seen(models: Path, configs: dict[str, dict[str, Any]]) -> None:
    case = BrokenConfig("mistral", configs["mistral"], ("rms_norm_eps",), -1.0)
    (models / "mistral" / "config.json").write_text(case.text)
    check(outcome(models / "mistral"), "rms_norm_eps ")
    anything = {"rms_norm_eps": Kind("anything", lambda value: value)}
    with mock.patch.dict(FIELDS, anything), pytest.raises(AssertionError):
        check(outcome(models / "mistral"), "rms_norm_eps ")


def test_configs_whose_odd_values_are_allowed_decode_or_are_refused(
    models: Path, configs: dict[str, dict[str, Any]]
) -> None:
    lines = []
    with bounded():
        for case in odd_configs(configs):
            (models / case.family / "config.json").write_text(case.text)
            lines.append(outcome(models / case.family))
            if lines[-1]:
                check(lines[-1], case.field[-1], "config", "context")
    assert 0 < lines.count("") < len(lines)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what Sybil does without
def test_broken_generation_configs(models: Path) -> None:
    file = models / "llama" / "generation_config.json"
    whole, lines = file.read_text(), []
    names = {*DEFAULTS, "eos_token_id", "num_beams"} - {"num_return_sequences"}  # who asks for many texts gets them
    every = [*itertools.product(sorted(names), BAD)]
    with bounded():
        for name, value in random.Random(0).sample(every, CASES // 10):
            file.write_text(json.dumps(json.loads(whole) | {"do_sample": True, name: value}))
            try:
                load(models / "llama", device="cpu").generate("abc", max_new_tokens=2)
            except SybilError as error:
                lines.append(str(error))
                check(lines[-1], f"{name} is", f"{name} {value}", "eos_token_id", "logits")
    assert len(lines) > CASES / 40
    file.write_text(whole)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_broken_headers(models: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = models / family / "model.safetensors"
    whole = file.read_bytes()
    cases = broken_headers(whole, CASES // 2)
    with bounded():
        for about, content in cases:
            file.write_bytes(content)
            line = outcome(models / family)
            assert line, about
            check(line, "model.safetensors", "weight", "bias")
    for _, content in cases[:24]:
        file.write_bytes(content)
        refused(capsys, models / family)
    file.write_bytes(whole)
