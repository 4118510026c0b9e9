"""ALR2: first retrieve the facts that a question needs, then reason over these alone (arXiv 2410.03227)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from lengthwise.core.seams import Choice, Look, Prompts
from lengthwise.core.spec import Spec, param

RETRIEVE = (
    "\n\nFrom the text above, copy the sentences that are needed to answer the question below. Copy them word for "
    "word, one on each line, and do not answer yet.\nQuestion:"
)


@dataclass(frozen=True)
class Alr2(Prompts):
    """Two generations: the model quotes the facts for the question from the whole text, then answers from the facts.

        f ~ p(f | text, question),   answer ~ p(answer | f, question)

    A model may invent what it says it retrieves. So every quote is looked up: the sentence of the text that holds the
    largest share of its words is taken in its place, and a quote without such a sentence is dropped. When nothing is
    left, the answer is read from the whole text.
    """

    facts: int = param(128, "most tokens written while facts are retrieved")
    match: float = param(0.6, "share of a quote's words that a sentence must hold to be what was quoted")

    spec: ClassVar[Spec] = Spec(
        name="alr2",
        family="prompt",
        summary="the model first quotes the facts for the question, then answers from the facts alone",
        formula="f ~ p(f | text, q), every f replaced by argmax_s |words(f) & words(s)| / |words(f)|; a ~ p(a | f, q)",
        seams=("prompt",),
        papers=(115,),
        source="arXiv 2410.03227, section 3; the wording of the retrieval prompt is ours",
        exact_when="never",
        refuses="nothing",
        simplified="the training that aligns a model with both steps is left out: the model is used as it is; "
        "quotes are replaced by the sentences they are found in, so that none is invented",
        neutral=None,
        test="tests/oracle/test_alr2.py",
    )

    def validate(self) -> None:
        """Something is written, and a share."""
        self.require(self.facts >= 1, "facts must be at least 1")
        self.require(0 < self.match <= 1, "match must be above 0 and at most 1")

    def choose(self, length: int, limit: int, look: Look) -> Choice:
        """The sentences that were quoted, in the order of the text, the surest first as far as they fit."""
        known = sentences(look.text)
        found: dict[tuple[int, int], float] = {}
        for quote in quotes(look.write(RETRIEVE, self.facts)):
            if (hit := locate(quote, look.text, known)) is not None and hit[1] >= self.match:
                span = tokens_of(*hit[0], look.offsets)
                found[span] = max(found.get(span, 0.0), hit[1])
        kept: list[tuple[int, int]] = []
        for span, _ in sorted(found.items(), key=lambda item: (-item[1], item[0])):
            if sum(b - a for a, b in joined([*kept, span])) <= limit:
                kept.append(span)
        if not kept:
            return Choice(((0, length),))
        return Choice(tuple(joined(kept)), tuple((a, b, score) for (a, b), score in sorted(found.items())))

    def passes(self, length: int, limit: int) -> list[tuple[int, int]] | None:
        """The whole text, and about as much as was quoted."""
        return [(length, 1), (min(length, self.facts), 1)]


def sentences(text: str) -> list[tuple[int, int]]:
    """Characters [start, end) of every sentence or line of `text`, with what stands between them at its end."""
    ends = [m.end() for m in re.finditer(r"[.!?][\"')\]]*\s+|\n+", text)]
    edges = [0, *ends, *([len(text)] if not ends or ends[-1] < len(text) else [])]
    return [(a, b) for a, b in pairwise(edges) if text[a:b].strip()]


def quotes(written: str) -> list[str]:
    """The sentences that the model wrote, one after the other, without those that hold no word."""
    parts = [written[a:b] for a, b in sentences(written)]
    return [p for p in parts if words(p)]


def words(text: str) -> set[str]:
    """The words and numbers of a text in lower case."""
    return set(re.findall(r"\w+", text.lower()))


def locate(quote: str, text: str, known: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], float] | None:
    """(the sentence that holds the largest share of a quote's words, the share); of equals the shortest, the first."""
    asked = words(quote)
    best: tuple[float, int, int, int] | None = None
    for a, b in known:
        held = words(text[a:b])
        share = len(asked & held) / len(asked)
        if share and (best is None or (-share, len(held), a) < best[:3]):
            best = (-share, len(held), a, b)
    return None if best is None else ((best[2], best[3]), -best[0])


def tokens_of(start: int, end: int, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The tokens [first, last) that hold characters [start, end); `offsets` ascend and cover the text."""
    inside = [i for i, (a, b) in enumerate(offsets) if b > start and a < end]
    return inside[0], inside[-1] + 1


def joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans with overlapping and touching ones joined."""
    out: list[tuple[int, int]] = []
    for a, b in sorted(spans):
        if out and a <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], b)
        else:
            out.append((a, b))
    return out
