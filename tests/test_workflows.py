"""That `nox -s lint` would see a fault in a workflow: faults are planted, and the linters must name each one.

Both linters come with the dependency group `lint`. Neither asks the network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MACHINE = ROOT / "benchmarks" / "machines" / "gtx-1650.json"

SOUND = """\
name: sound
on:
  pull_request:
permissions:
  contents: read
concurrency:
  group: sound
  cancel-in-progress: true
jobs:
  first:
    runs-on: [self-hosted, gtx-1650]
    timeout-minutes: 5
    steps:
      - uses: actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1
        with:
          persist-credentials: false
      - run: echo "$TITLE"
        env:
          TITLE: ${{ github.event.pull_request.title }}
"""

PLANTED = {
    "a misspelt key": ("timeout-minutes", "timeout-minuts", "actionlint", "syntax-check"),
    "a job that is not there": ("    timeout-minutes: 5", "    needs: [zeroth]", "actionlint", "job-needs"),
    "an expression of nothing": ("github.event.pull_request.title", "github.evnt.title", "actionlint", "expression"),
    "an unknown label": ("gtx-1650", "gtx-1660", "actionlint", "runner-label"),
    "a title in a script": ('"$TITLE"', '"${{ github.event.pull_request.title }}"', "actionlint", "expression"),
    "a title in a script, again": (
        '"$TITLE"',
        '"${{ github.event.pull_request.title }}"',
        "zizmor",
        "template-injection",
    ),
    "a token left behind": ("persist-credentials: false", "fetch-depth: 0", "zizmor", "artipacked"),
    "an action by its tag": ("3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "v7", "zizmor", "unpinned-uses"),
    "the repository's token for a fork": ("  pull_request:", "  pull_request_target:", "zizmor", "dangerous-triggers"),
    "every permission": ("permissions:\n  contents: read\n", "", "zizmor", "excessive-permissions"),
}


def complaints(linter: str, workflow: Path) -> set[str]:
    """The rules that the linter finds broken."""
    program = shutil.which(linter, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert program, f"{linter} is not installed: `pip install --group lint`"
    config = str(ROOT / ".github" / "actionlint.yaml")
    format_all = ["-config-file", config, "-format", "{{json .}}"]
    options = {"actionlint": format_all, "zizmor": ["--offline", "--quiet", "--format", "json"]}[linter]
    ran = subprocess.run([program, *options, str(workflow)], capture_output=True, text=True, timeout=60)
    found = json.loads(ran.stdout)
    assert bool(found) == bool(ran.returncode), ran.stderr
    return {each["kind" if linter == "actionlint" else "ident"] for each in found}


@pytest.mark.parametrize("linter", ["actionlint", "zizmor"])
def test_a_sound_workflow_passes(linter: str, tmp_path: Path) -> None:
    workflow = tmp_path / "sound.yml"
    workflow.write_text(SOUND)
    assert complaints(linter, workflow) == set()


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_seen(fault: str, tmp_path: Path) -> None:
    right, wrong, linter, rule = PLANTED[fault]
    assert SOUND.count(right) == 1
    workflow = tmp_path / "planted.yml"
    workflow.write_text(SOUND.replace(right, wrong))
    assert rule in complaints(linter, workflow)


def test_the_machine_has_one_name() -> None:
    """asv's name for it, the file's, the label's, and the folder that the nightly workflow looks into."""
    name = json.loads(MACHINE.read_text())["machine"]["machine"]
    texts = {workflow.stem: workflow.read_text() for workflow in WORKFLOWS}
    labels = {label for text in texts.values() for label in re.findall(r"runs-on: \[self-hosted, (.+)\]", text)}
    assert name == MACHINE.stem
    assert labels == {name}
    assert f'"^{name}/' in texts["asv"]


def test_no_job_on_the_machine_may_write() -> None:
    for workflow in WORKFLOWS:
        for job in re.split(r"^  (?=\w+:$)", workflow.read_text(), flags=re.MULTILINE):
            if "self-hosted" in job:
                assert re.findall(r"permissions:\n((?:      .*\n)+)", job) == ["      contents: read\n"]
                assert "persist-credentials: false" in job
                assert "environment: " in job
                assert "secrets." not in job
