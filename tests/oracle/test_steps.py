"""Steps of a thinking text: nothing is lost, and cuts are where a reader would make them."""

from __future__ import annotations

import random

import pytest

from lengthwise.bench import problems
from lengthwise.thinking.steps import reflections, steps


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" 3+4=7; 7+2=9;", [" 3+4=7;", " 7+2=9;"]),
        (" 3+4=8; wait; 3+4=7;", [" 3+4=8;", " wait;", " 3+4=7;"]),
        (" check: 3+4=7; 7+2=9;", [" check: 3+4=7;", " 7+2=9;"]),
        ("one\n\ntwo\n", ["one\n\n", "two\n"]),
        ("a;\n \nb", ["a;\n \n", "b"]),
        ("\n a\nb", ["\n a\n", "b"]),
        ("  ", ["  "]),
        ("It is 3.5. Wait, no. So 4! ok", ["It is 3.5.", " Wait, no.", " So 4!", " ok"]),
        ("(It is.) Then we go. He sofa", ["(It is.)", " Then we go. He sofa"]),
        ("See f(x;y) now", ["See f(x;y) now"]),
        ("Step 1: a. Step 2: b.", ["Step 1: a.", " Step 2: b."]),
    ],
)
def test_cuts(text: str, parts: list[str]) -> None:
    assert steps(text) == parts


def test_nothing_is_lost() -> None:
    draw = random.Random(5)
    for _ in range(2000):
        text = "".join(draw.choice(["a", " ", "\n", ";", ". ", "Wait", "so", "!", '"', "\t"]) for _ in range(20))
        parts = steps(text)
        assert "".join(parts) == text
        assert all(part.strip() for part in parts) or not text.strip()


@pytest.mark.parametrize("kind", list(problems.KINDS))
def test_lines_of_the_worked_problems_are_steps(kind: str) -> None:
    draw = random.Random(1)
    for level in range(1, problems.KINDS[kind][1] + 1):
        lines = problems.make(kind, level, draw).steps
        assert steps("".join(lines)) == lines


def test_reflections_are_counted() -> None:
    counts = reflections("Wait, check it. await; double-check! Checkers. On second thought, wait; however-so")
    assert counts == {"wait": 2, "check": 1, "double-check": 1, "on second thought": 1}
    assert counts.total() == 5
    assert not reflections(" 3+4=7; 7+2=9;")
