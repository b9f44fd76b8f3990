"""The judge in somebody else's suite: five lines of a test, and what becomes of each verdict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny  # noqa: F401  what a run in this process imports first, pytester takes away after it, and torch comes once
import transformers.generation.utils  # noqa: F401

import sybil.judging  # noqa: F401

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]

SUITE = """
import pytest
from tiny import gpt2

PROMPTS = [[1 + (7 * i + 3 * j) % 30 for j in range(6)] for i in range(20)]
AMOUNTS = dict(repeats=1, greedy=2, stopping=1, widths=0, max_new_tokens=24, uniformity=0.6)

def cold(prompt, max_new_tokens, temperature, eos_token_ids=()):
    from tiny import greedy
    import torch
    said = greedy(gpt2(), torch.tensor(prompt), max_new_tokens)
    ends = [place for place, token in enumerate(said) if token in eos_token_ids]
    return said[: ends[0] + 1] if ends else said
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\naddopts = -p pytest_sybil --strict-markers -p no:cacheprovider\n")
    return pytester


def test_a_decoder_that_is_lossless_passes(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        SUITE
        + """
@pytest.mark.lossless(alpha=1e-4, resolution=1.0, **AMOUNTS)
def test_mine(lossless):
    report = lossless(gpt2(), gpt2(), PROMPTS)
    assert report.plan.alpha == 1e-4
    assert report.plan.resolution == 1.0
"""
    )
    result = suite.runpytest_inprocess("-rP", "--junitxml=report.xml")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*lossless*", "PASS: transformers generate", "  distribution: PASS"])
    assert '<property name="lossless" value="PASS"' in Path("report.xml").read_text()


def test_one_that_is_not_fails_with_its_reasons(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        SUITE
        + """
@pytest.mark.lossless(resolution=1.0, **AMOUNTS)
class TestMine:
    @pytest.mark.lossless(alpha=1e-3)
    def test_cold(self, lossless):
        lossless(cold, gpt2(), PROMPTS)

    def test_few(self, lossless):
        lossless(gpt2(), gpt2(), PROMPTS[:2])

    def test_none(self, lossless):
        lossless(lambda prompt, **settings: None, gpt2(), PROMPTS)
"""
    )
    result = suite.runpytest_inprocess()
    result.assert_outcomes(failed=3)
    out = result.stdout.str()
    assert "FAIL: test_one_that_is_not_fails_with_its_reasons:cold" in out
    assert "  distribution: FAIL" in out
    assert "INCONCLUSIVE: transformers generate" in out
    assert "too few tokens" in out
    assert "gave tokens None" in out


def test_the_marker_names_what_it_gives(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\n@pytest.mark.lossless(1e-6)\ndef test_mine(lossless): pass\n")
    result = suite.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    assert "name it, as in lossless(alpha=1e-6)" in result.stdout.str()
    assert "lossless(**settings)" in suite.runpytest_inprocess("--markers").stdout.str()


def test_a_run_that_asks_for_no_judge_imports_none() -> None:
    code = "import sys, pytest_sybil; sys.exit('torch' in sys.modules or 'sybil' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
