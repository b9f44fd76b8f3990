"""The texts of the embedded pair on a GPU: compared with transformers', and judged."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

import sybil
from benchmarks.gpu.models import dtype_of
from benchmarks.gpu.rows import GpuPlan, GpuRow
from sybil.agreement import FLOAT32, HALF
from sybil.measuring import prompts as shipped
from sybil.measuring.compare import Comparison, agreements, digest
from sybil.measuring.summaries import ms_per_token
from sybil.measuring.task import Task
from sybil.pairs import PAIRS, STDLIB

LARGEST_LOGIT = 128.0  # the logits of GPT-2 and of the embedded pair are smaller


def texts(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """The greedy texts of every decoder compared with transformers', and the time of a token."""
    pair, chosen = PAIRS[STDLIB], shipped.spread(shipped.load(), plan.prompts)
    for name in plan.dtypes:
        task = Task(
            target=pair.target,
            draft=pair.draft,
            max_new_tokens=plan.new_tokens,
            gamma=4,
            dtype=name,
            device=str(device),
            prompts=digest(chosen),
            draft_dtype=name,
        )
        comparison = Comparison(task)
        rows = list(comparison.rows(chosen))
        ms = {who: median(ms_per_token(row) for row in rows if row["contender"] == who) for who in task.contenders}
        bound = float(HALF.get(dtype_of(name), FLOAT32).of(LARGEST_LOGIT))
        agreed = {each.contender: each for each in agreements(comparison, rows, chosen)}
        for who in task.contenders:
            found, numbers, ok = f"{ms[who]:.2f} ms a token", {"ms": ms[who]}, None
            if each := agreed.get(who):
                gaps = [difference.gap for difference in each.differences]
                ok = all(gap <= bound for gap in gaps)
                found += f"; {each.same} of {each.texts} texts are transformers'"
                if gaps:
                    found += f", the rest part where the best token leads by {max(gaps):.3f} at most"
                numbers |= {"same": each.same, "texts": each.texts, "gaps": gaps}
            yield GpuRow("texts", f"{STDLIB} {name}, {who}", found, ok, numbers)


def verify(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """The judge's verdict on Sybil's own decoder. INCONCLUSIVE is no failure, because few tokens are judged."""
    for name in plan.dtypes:
        asked: dict[str, Any] = dict(plan.judged)
        report = sybil.judge("sybil", STDLIB, dtype=name, device=device, resolution=0.4, gamma=4, **asked)
        told = f"{report.verdict}: {report.tokens} tokens; {'; '.join(report.reasons)[:160]}"
        verdicts = {question: str(verdict) for question, verdict in report.verdicts.items()}
        ok = {"PASS": True, "FAIL": False, "INCONCLUSIVE": None}[report.verdict]
        yield GpuRow("verify", f"{STDLIB} {name}", told, ok, {"verdicts": verdicts, "tokens": report.tokens})
