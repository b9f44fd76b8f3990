"""Is this commit slower than another? `nox -s gate [-- BASE]`, on an otherwise idle machine.

Exit: 0 it is not, 1 it is, 2 nothing could be measured, 3 the machine was too noisy to tell.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.gate import sides, turns, verdict
from benchmarks.gate.sides import GateError, Side
from benchmarks.gate.turns import GatePlan, Measurements
from benchmarks.workloads import REAL, SYNTHETIC, Case

ROOT = Path(__file__).resolve().parents[2]
STATUS = {"pass": 0, "regression": 1, "inconclusive": 3}
CASES = (
    Case(),
    Case(rule="token"),
    Case(drafter="none"),
    Case(drafter=SYNTHETIC),  # the loop, whatever the draft's luck
    Case(REAL, drafter="self"),  # where its package is installed
)
ON_GPU = (Case("gpt2:medium"), Case("gpt2:medium", drafter="none"))
WORDS = {"pass": "not slower", "regression": "SLOWER", "inconclusive": "can't tell"}


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One case's end. ms: milliseconds a token, the median over pairs."""

    case: str
    base_ms: float
    new_ms: float
    finding: verdict.GateFinding
    verdict: verdict.Verdict
    again: bool


def main(
    base: Annotated[str | None, typer.Argument(help="The commit to compare with: the merge base with main.")] = None,
    new: Annotated[str | None, typer.Option(help="The commit to gate: HEAD, with the working tree's changes.")] = None,
    bound: Annotated[float, typer.Option(help="How much slower is a regression: 0.05 for 5 %.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="How sure a verdict must be.")] = 0.99,
    pairs: Annotated[int, typer.Option(min=4, help="Pairs of fresh processes; as many again to confirm.")] = 6,
    machine: Annotated[
        Path | None, typer.Option(help="A machine's file, as benchmarks/machines/gtx-1650.json: its workload is run.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="A file for everything measured.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="A file for the summary of a pull request.")] = None,
) -> None:
    """Is this commit slower than another? Exit: 0 no, 1 yes, 2 it couldn't be measured, 3 too noisy to tell."""
    console = Console(width=None if Console().is_terminal else 120)
    try:
        if not 0 < bound < 1 or not 0.5 < confidence < 1:
            raise GateError(f"bound is {bound} and confidence {confidence}: use 0 to 1, and 0.5 to 1")
        for path in (out, markdown):
            if path and not path.absolute().parent.is_dir():
                raise GateError(f"{path} is in no folder that is there: name another file")
        plan = GatePlan(CASES) if machine is None else of_machine(machine)
        limits = verdict.GateLimits(bound, confidence)
        report = gate(base, new, plan, limits, pairs, console)
    except GateError as error:
        Console(stderr=True).print(f"gate: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except Exception as error:  # whatever it is, nothing was measured: that is no regression
        Console(stderr=True).print_exception()
        Console(stderr=True).print(
            f"gate: {error!r}: a defect of the gate, please report it", style="red", markup=False
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "gate: interrupted; nothing is kept, for half of it would prove nothing", style="red"
        )
        raise typer.Exit(130) from None
    show(report, console)
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")
    if markdown:
        markdown.write_text(summary(report))
    raise typer.Exit(STATUS[report["verdict"]])


def of_machine(path: Path) -> GatePlan:
    """The workload of a machine's file; raises GateError."""
    try:
        workload = json.loads(path.read_text())["workload"]
        return GatePlan(
            ON_GPU,
            prompts=int(workload["prompts"]),
            new_tokens=int(workload["new_tokens"]),
            device=str(workload["device"]),
            dtype=str(workload["dtype"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GateError(f"{path} describes no workload ({error!r}): give benchmarks/machines/gtx-1650.json") from None


def gate(
    base: str | None, new: str | None, plan: GatePlan, limits: verdict.GateLimits, pairs: int, console: Console
) -> dict[str, Any]:
    """Build both sides, measure all cases, those again that did not pass, and judge."""
    began = time.time()
    new_side = sides.working(ROOT) if new is None else (new, sides.resolve(ROOT, new))
    base_side = sides.default_base(ROOT, new_side[1]) if base is None else (base, sides.resolve(ROOT, base))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("building both commits"):
            built = {
                "base": sides.build(ROOT, "base", *base_side, folder),
                "new": sides.build(ROOT, "new", *new_side, folder),
            }
        measuring = folder / "measuring"  # a copy: what measures both is the same throughout
        shutil.copytree(ROOT / "benchmarks", measuring / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
        with Progress(console=console) as progress:
            first = _measure(built, plan, pairs, measuring, progress)
            findings = {case: verdict.find(ratios, limits) for case, ratios in first.log_ratios.items()}
            verdicts = {case: finding.verdict(limits) for case, finding in findings.items()}
            flagged = tuple(case for case in plan.cases if verdicts.get(case.name, "pass") != "pass")
            again = Measurements()
            if flagged:
                again = _measure(built, replace(plan, cases=flagged), pairs, measuring, progress)
        for case, ratios in again.log_ratios.items():
            findings[case], verdicts[case] = verdict.confirm(first.log_ratios[case], ratios, limits)
    rows = []
    for case in findings:
        ms = [median(first.ms[case][side] + again.ms.get(case, {}).get(side, [])) for side in built]
        rows.append(CaseRow(case, *ms, findings[case], verdicts[case], case in again.ms))
    return {
        "verdict": verdict.overall([row.verdict for row in rows]),
        "sides": {name: {"revision": side.revision, "commit": side.commit} for name, side in built.items()},
        "limits": asdict(limits),
        "plan": plan.request() | {"pairs": pairs},
        "cases": [asdict(row) for row in rows],
        "left_out": first.lacking,
        "log_ratios": {"first": first.log_ratios, "again": again.log_ratios},
        "machine": {name: value for name, value in first.about.items() if name not in ("commit", "sybil")},
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "seconds": round(time.time() - began),
    }


def _measure(
    built: Mapping[str, Side], plan: GatePlan, pairs: int, measuring: Path, progress: Progress
) -> Measurements:
    found = Measurements()
    for _ in progress.track(turns.measure(built, plan, pairs, measuring, found), pairs, description="measuring"):
        pass
    return found


def table(report: dict[str, Any], markdown: bool = False) -> Table:
    """A row a case: what it took on each side, and what is said of it."""
    shown = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD)
    shown.add_column("case", no_wrap=True)
    sure = f"{report['limits']['confidence']:.0%} sure: above, below"
    for heading in ("base, ms/token", "new, ms/token", "new / base", sure, "pairs", ""):
        shown.add_column(heading, justify="right")
    for row in report["cases"]:
        found = row["finding"]
        shown.add_row(
            row["case"],
            f"{row['base_ms']:.3f}",
            f"{row['new_ms']:.3f}",
            f"{found['ratio']:.3f}",
            f"{found['low']:.3f}, {found['high']:.3f}",
            str(found["pairs"]),
            WORDS[row["verdict"]],
        )
    return shown


def headline(report: dict[str, Any]) -> str:
    """The verdict in a sentence."""
    base, new = (f"{side['revision']} ({side['commit'][:9]})" for side in report["sides"].values())
    bound = f"{report['limits']['bound']:.0%}"
    return {
        "pass": f"{new} is not {bound} slower than {base}",
        "regression": f"{new} is more than {bound} slower than {base}",
        "inconclusive": f"whether {new} is {bound} slower than {base} can't be told: the machine is too noisy, or the "
        "change is close to the bound; run again on an idle machine, or with more --pairs",
    }[report["verdict"]]


def machine(report: dict[str, Any]) -> str:
    """What it was measured on."""
    about, plan = report["machine"], report["plan"]
    return (
        f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, transformers "
        f"{about['transformers']}, {plan['dtype'] or 'default dtype'}, {plan['passes']} x "
        f"{plan['prompts']} prompts of {plan['new_tokens']} new tokens a pair, {report['seconds']} s, {report['date']}"
    )


def left_out(report: dict[str, Any]) -> list[str]:
    """The cases that could not be compared, a sentence each."""
    return [f"{case} is left out: {why}" for case, why in report["left_out"].items()]


def show(report: dict[str, Any], console: Console) -> None:
    """The table and the verdict, for a person."""
    console.print(table(report))
    for line in left_out(report):
        console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
    style = {"pass": "green", "regression": "red", "inconclusive": "yellow"}[report["verdict"]]
    console.print(f"{report['verdict']}: {headline(report)}", style=style, soft_wrap=True, highlight=False)
    console.print(machine(report), style="dim", soft_wrap=True, highlight=False)


def summary(report: dict[str, Any]) -> str:
    """The same as Markdown, for a pull request."""
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(table(report, markdown=True))
    rows = "\n".join(line.strip() for line in console.file.getvalue().splitlines() if line.strip())
    parts = f"### Speed: {report['verdict']}", f"{headline(report)}.", rows, *left_out(report), machine(report)
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    typer.run(main)
