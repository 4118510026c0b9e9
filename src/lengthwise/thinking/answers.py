"""Finds the answer in what a model wrote, so that answers can be counted and compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lengthwise.thinking.work import Written

Extract = Literal["auto", "boxed", "number", "line", "text"]

_SAID = re.compile(r"(?:final answer|answer)\s*(?:is|:)+\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def answer_in(text: str, how: Extract = "auto") -> str:
    r"""The answer in `text`, '' when there is none.

    "boxed": the last \boxed{...}; "number": the last number; "line": the first line that is not empty; "text": all of
    it. "auto": boxed, or what follows the last "answer is" or "answer:", or the whole text when it is one line, or the
    last line. Blanks, a full stop at the end and commas between thousands are taken off.
    """
    text = text.strip()
    if how == "text":
        return text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if how == "line":
        return tidy(lines[0]) if lines else ""
    if how == "number":
        return tidy(numbers[-1]) if (numbers := _NUMBER.findall(text)) else ""
    boxed = _boxed(text)
    if how == "boxed" or boxed:
        return tidy(boxed)
    if said := _SAID.findall(text):
        return tidy(said[-1])
    return tidy(lines[-1]) if lines else ""


def _boxed(text: str) -> str:
    r"""The inside of the last \boxed{...} whose braces are closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth = 0
    for at in range(start + 6, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[start + 7 : at]
    return ""


def tidy(answer: str) -> str:
    """An answer without blanks around it, marks of emphasis, a full stop at the end and commas between thousands."""
    answer = " ".join(answer.split()).strip("*$ ").rstrip(".")
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer)


def votes(chains: Sequence[Written]) -> dict[str, float]:
    """Answer -> sum of the weights of its chains, the best first; among equals the one that was there first.

    Chains without an answer do not vote; answers that differ in case alone are one.
    """
    totals: dict[str, float] = {}
    spelled: dict[str, str] = {}
    for chain in chains:
        if chain.answer and chain.weight > 0:
            name = spelled.setdefault(chain.answer.casefold(), chain.answer)
            totals[name] = totals.get(name, 0.0) + chain.weight
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
