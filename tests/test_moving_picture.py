"""The README's moving picture: whole, small, and nothing in it that a page's img tag would not show."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
import torch

import moving_picture
import sybil
from moving_picture import COLUMNS, DrawnRound

SVG = "{http://www.w3.org/2000/svg}"
PLAIN = [
    DrawnRound(0.1 * (place + 1), 1, ((f" w{place}<&\n"[: 4 + 3 * (place % 5 == 4)], False),)) for place in range(90)
]
SPECULATIVE = [
    DrawnRound(0.2 * (place + 1), 3, ((f" w{3 * place}", True), (f" w{3 * place + 1}", True), (" é", False)))
    for place in range(30)
]
PANELS = [("target alone", PLAIN), ("with a draft", SPECULATIVE)]


@pytest.fixture(scope="module")
def text() -> str:
    return moving_picture.picture("One <text> & another", "Why?", "made up", PANELS)


def fetched(text: str) -> list[str]:
    """What of an SVG runs, or asks for anything outside it; its namespace's name asks for nothing."""
    rest = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    return re.findall(r"<script|\bon\w+=|href|url\(|@import|@font-face|<foreignObject|<image|https?:|javascript:", rest)


def test_the_picture_is_whole_small_and_asks_nobody(text: str) -> None:
    assert len(text.encode()) < 300_000
    assert fetched(text) == []
    root = ET.fromstring(text)
    assert root.get("role") == "img"
    named = {each.get("id"): each.text for each in root if each.get("id")}
    assert root.get("aria-labelledby") == "title desc"
    assert named["title"] == "One <text> & another"
    assert "made up" in (named["desc"] or "")


@pytest.mark.parametrize(
    "planted", ["<script>x</script>", '<a href="x"/>', "<g onload='x'/>", "@import 'x'", "url(x)", "http://x.y"]
)
def test_what_is_fetched_or_runs_is_seen(text: str, planted: str) -> None:
    assert fetched(text + planted)


def test_tokens_come_at_their_times_and_in_their_colours(text: str) -> None:
    root = ET.fromstring(text)
    groups = [each for each in root if each.tag == SVG + "g"]
    assert len(groups) == len(PLAIN) + len(SPECULATIVE)
    kinds = [each.get("class") for group in groups[len(PLAIN) :] for each in group]
    assert kinds == ["draft", "draft", "target"] * len(SPECULATIVE)
    assert {each.get("class") for group in groups[: len(PLAIN)] for each in group} == {"target"}
    begins = {name: float(at) for name, at in re.findall(r"@keyframes (\w+) {.*? ([\d.]+)% { opacity: 1 }", text)}
    cycle = moving_picture.PLAYING + moving_picture.RESTING
    for number, (_, rounds) in enumerate(PANELS):
        for index, each in enumerate(rounds):
            at = begins[f"p{number}r{index}"] * cycle / 100  # seconds of the picture, of 9 measured ones
            assert at == pytest.approx(each.seconds * moving_picture.PLAYING / 9.0, abs=0.01)


def test_who_wants_no_motion_sees_the_end(text: str) -> None:
    """Without the animation all tokens and the last count are to be seen, and no other count."""
    (rule,) = re.findall(r"@media \(prefers-reduced-motion: reduce\) { ([^{]*) { animation: none !important } }", text)
    assert rule == "g, .tick, .end"
    hidden = re.findall(r"^(\S+) { opacity: 0 }$", text, re.MULTILINE)
    assert hidden == [".tick"]
    ends = [each.text for each in ET.fromstring(text) if each.get("class") == "small end"]
    assert [" ".join((end or "").split()) for end in ends] == [
        "9.000 s 90 tokens 10 tokens/s 90 target forwards",
        "6.000 s 90 tokens 15 tokens/s 30 target forwards",
    ]


def test_text_stays_in_its_panel(text: str) -> None:
    long = [DrawnRound(1.0, 1, (("x" * (2 * COLUMNS + 5) + "\n\ny", True),))]
    root = ET.fromstring(moving_picture.picture("t", "p", "c", [("a", long)]))
    (group,) = (each for each in root if each.tag == SVG + "g")
    assert [len(each.text or "") for each in group] == [COLUMNS, COLUMNS, 5, 1]
    assert len({each.get("y") for each in group}) == 4


def test_a_real_run_is_recorded() -> None:
    decoder = sybil.load("stdlib", dtype=torch.float32, device="cpu")
    plain, drafted = (
        moving_picture.recorded(each, "def main(", max_new_tokens=12) for each in (decoder.without_draft(), decoder)
    )
    assert [sum(each.tokens for each in rounds) for rounds in (plain, drafted)] == [12, 12]
    assert len(drafted) < len(plain) == 12
    seconds = [each.seconds for each in drafted]
    assert seconds == sorted(seconds)
    plainly, by_draft = ("".join(piece for each in run for piece, _ in each.pieces) for run in (plain, drafted))
    assert plainly == by_draft == decoder.generate("def main(", max_new_tokens=12).text[0]
    assert any(of_draft for each in drafted for _, of_draft in each.pieces)
    assert not any(of_draft for each in plain for _, of_draft in each.pieces)
