"""A/A runs of the judge: `python -m tools.lossless FILE --runs 200`. Each decoder is lossless, and each run has its own
seed. FILE has a line for each run, and runs that it holds already aren't repeated. Prints the tables of
docs/quality.md."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from zlib import crc32

import numpy as np
import torch
import typer
from scipy import stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

import sybil
from sybil.losslessness.evidence import Reference
from sybil.losslessness.judge import Plan, verify
from sybil.losslessness.samples import Request, Subject
from sybil.losslessness.subjects import CallableSubject, SybilSubject
from sybil.verification import RULES
from tools.lossless import oddities

REQUEST = Request(max_new_tokens=24, temperature=0.8, eos_token_ids=(oddities.END,))
PLAN = Plan(request=REQUEST, repeats=4, greedy=2, stopping=2, widths=2, resolution=0.4, uniformity=0.5)
PROMPTS = [np.random.default_rng(1).integers(1, oddities.VOCAB, 3 + number % 4).tolist() for number in range(12)]
Found = dict[str, Any]
"""One run: its decoder, seed and verdict, its verdicts by question, and p, the p-values by check."""


def contenders(folder: Path) -> dict[str, tuple[Subject, Reference]]:
    """The decoders by name, each with its target: Sybil's rules over a pair of small models, and the oddities over two
    chains."""
    decoder, reference = _sybil(folder)
    found: dict[str, tuple[Subject, Reference]] = {}
    for rule in RULES:
        found[f"Sybil, rule {rule}"] = SybilSubject(decoder, rule=rule), reference
    pair = oddities.Chains(oddities.chain(), oddities.chain(noise=0.4), letters())
    reference = Reference(pair.target, pair.tokenizer, pair.draft)
    for name, way in oddities.ROUNDS.items():
        found[name] = CallableSubject(pair.decoder(way), name), reference
    return found


def letters() -> Tokenizer:
    """A tokenizer with one token for each character."""
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate("!abcdefghijk")}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _sybil(folder: Path) -> tuple[sybil.Decoder, Reference]:
    """Sybil's decoder over a random model of two layers, whose draft is the same model with noise, and the
    reference."""
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=oddities.VOCAB, n_positions=oddities.CONTEXT, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=oddities.END, eos_token_id=oddities.END,
    )  # fmt: skip
    pair = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    pair[1].load_state_dict({name: kept + 0.05 * torch.randn_like(kept) for name, kept in pair[0].state_dict().items()})
    for name, model in zip(("target", "draft"), pair, strict=True):
        model.save_pretrained(folder / name)
        letters().save(str(folder / name / "tokenizer.json"))
        (folder / name / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    decoder = sybil.load(folder / "target", folder / "draft", dtype=torch.float32, device="cpu")
    return decoder, Reference(pair[0], letters(), pair[1])


def judged(name: str, subject: Subject, reference: Reference, seed: int) -> Found:
    """One run. Every decoder has noise of its own, because the p-values of several decoders are combined."""
    report = verify(subject, reference, PROMPTS, replace(PLAN, seed=seed + (crc32(name.encode()) << 16)))
    p_values = {check.name: check.p_value for check in report.checks if check.p_value is not None}
    p_values |= {f"{check.name}, by ranks": check.alone for check in report.checks if check.alone is not None}
    return {"decoder": name, "seed": seed, "verdict": report.verdict, "verdicts": dict(report.verdicts), "p": p_values}


def tables(runs: list[Found]) -> Iterator[str]:
    """Markdown tables: the verdicts by decoder, and the p-values by check."""
    questions = list(dict.fromkeys(question for run in runs for question in run["verdicts"]))
    yield f"| decoder | runs | PASS | {' | '.join(questions)} |"
    yield f"|---|---:|---:|{'---:|' * len(questions)}"
    for name in dict.fromkeys(run["decoder"] for run in runs):
        own = [run for run in runs if run["decoder"] == name]
        passed = Counter(question for run in own for question, verdict in run["verdicts"].items() if verdict == "PASS")
        whole = sum(run["verdict"] == "PASS" for run in own)
        yield f"| {name} | {len(own)} | {whole} | {' | '.join(str(passed[question]) for question in questions)} |"
    yield ""
    yield "| check | p-values | at most 0.01 | at most 0.1 | least | uniform: Kolmogorov and Smirnov's p |"
    yield "|---|---:|---:|---:|---:|---:|"
    p_values: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for check, p_value in run["p"].items():
            p_values[check].append(p_value)
    for check, found in p_values.items():
        low, high = (np.mean(np.array(found) <= bound) for bound in (0.01, 0.1))
        uniform = stats.kstest(found, "uniform").pvalue
        yield f"| {check} | {len(found)} | {low:.3f} | {high:.3f} | {min(found):.2g} | {uniform:.2g} |"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="A line of JSON a run; what it has already isn't run again.")],
    runs: Annotated[int, typer.Option(help="Seeds a decoder, from 0.")] = 200,
    only: Annotated[str, typer.Option(help="Decoders whose name has this in it.")] = "",
) -> None:
    """Judge lossless decoders, and print the tables of verdicts and p-values."""
    file.touch()
    known = [json.loads(line) for line in file.read_text().splitlines()]
    there = {(run["decoder"], run["seed"]) for run in known}
    torch.set_num_threads(1)  # the models are tiny, so a second thread would not pay
    with TemporaryDirectory() as folder, file.open("a") as kept:
        decoders = contenders(Path(folder))
        for seed in range(runs):
            for name, (subject, reference) in decoders.items():
                if only in name and (name, seed) not in there:
                    known.append(judged(name, subject, reference, seed))
                    kept.write(json.dumps(known[-1]) + "\n")
                    kept.flush()
    typer.echo("\n".join(tables(known)))


if __name__ == "__main__":
    app()
