"""Evidence: the passages of the input on which the model's attention fell while it answered."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lengthwise.documents import Corpus

SPAN = 32  # tokens of the window whose mass is compared
EDGE = 120  # characters by which a passage may grow to the end of its sentence or line


@dataclass(frozen=True)
class Passage:
    """A passage of one file: characters [start, end) and its text; `weight` is its share of all attention there."""

    file: str
    start: int
    end: int
    text: str
    weight: float

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form."""
        return {**asdict(self), "weight": round(self.weight, 5)}


def passages(mass: Tensor, offsets: list[tuple[int, int]], corpus: Corpus, most: int = 5) -> list[Passage]:
    """The strongest passages, strongest first.

    `mass` [n] is the attention on every token that the model read, `offsets` their n character spans in
    `corpus.text`, ascending; where they leave a gap, no passage reaches across. A passage is a window of tokens
    around a peak, grown to the ends of its sentence.
    """
    total = float(mass.sum())
    if total <= 0 or not offsets:
        return []
    width = min(SPAN, len(mass))
    windows = mass.double().unfold(0, width, 1)
    sums = windows.sum(-1)
    middle = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    centred = windows @ (1 - middle.abs() / width)  # of windows with the same tokens, the one with them in the middle
    free = torch.ones(len(sums), dtype=torch.bool)
    for seam in (i for i in range(1, len(mass)) if offsets[i][0] > offsets[i - 1][1]):  # a part was left out here
        free[max(0, seam - width + 1) : seam] = False
    found: list[Passage] = []
    while len(found) < most and bool(free.any()):
        at = int(torch.where(free, centred, -1.0).argmax())
        free[max(0, at - width + 1) : at + width] = False
        if sums[at] <= 0 or (found and centred[at] < 0.02 * centred.max()):
            break
        start, end = _grow(corpus.text, offsets[at][0], offsets[at + width - 1][1])
        share = float(sums[at]) / total
        found += [Passage(name, a, b, corpus.text[start:end], share) for name, a, b in corpus.locate(start, end)[:1]]
    return sorted(found, key=lambda passage: -passage.weight)


def _grow(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen [start, end) to the ends of its sentence or line, by at most EDGE characters on each side."""
    before = [m.end() for m in re.finditer(r"[.!?]\s+|\n", text[max(0, start - EDGE) : start])]
    start = max(0, start - EDGE) + before[-1] if before else start
    after = re.search(r"[.!?](?=\s)|\n", text[end : end + EDGE])
    return start, end + after.end() if after else end
