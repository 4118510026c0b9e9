"""XL3M: read segments with the question, splice the relevant ones in order (arXiv 2405.17755)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from lengthwise.core.seams import Choice, Probe, Prompts
from lengthwise.core.spec import Spec, param


@dataclass(frozen=True)
class Xl3m(Prompts):
    """Cuts the text into overlapping segments, reads each with the question, keeps the `top` most relevant ones.

    score=certainty is the paper's: the lower the entropy of the next token after segment and question, the more
    relevant the segment. score=question asks instead how likely the segment makes the question's own tokens; on
    small models it finds what certainty misses, since many segments make a model certain of something trivial.
    `zoom` then cuts what was kept into pieces, scores those in the same way and keeps the `top` best of them, so that
    a small model is not lost in what surrounds a fact. What is left is spliced in the order of the text (overlaps
    once) and read with the question again. The paper's method is score=certainty,zoom=0.
    """

    segment: int = param(1024, "tokens of a segment")
    overlap: int = param(128, "tokens that neighbouring segments share")
    top: int = param(3, "segments (and then pieces) that are kept, as far as they fit the window")
    zoom: int = param(256, "tokens of the pieces into which kept segments are cut and scored again; 0: none")
    score: Literal["question", "certainty"] = param("question", "relevance: likelihood of the question, or certainty")

    spec: ClassVar[Spec] = Spec(
        name="xl3m",
        family="prompt",
        summary="segments read with the question, the most relevant spliced in order and read again",
        formula="certainty: H_i = -sum_v p(v|S_i,q) ln p(v|S_i,q), keep the lowest; "
        "question: l_i = mean_t ln p(q_t|S_i,q_<t), keep the highest",
        seams=("prompt",),
        papers=(220,),
        source="arXiv 2405.17755; the paper's segment sizes and number could not be found, so the defaults are ours; "
        "score=question is query likelihood (Ponte and Croft 1998) and zoom is ours",
        exact_when="the text and the question fit the trained window",
        refuses="segments that do not fit the window with the question",
        simplified="the published relevance is an option (score=certainty,zoom=0), not the default; "
        "overlaps are spliced once",
        bounded=True,
        neutral={},
        test="tests/oracle/test_xl3m.py",
    )

    def validate(self) -> None:
        """Segments that move forward."""
        self.require(self.top >= 1, "top must be at least 1")
        self.require(self.zoom == 0 or self.zoom >= 4, "zoom must be 0 or at least 4")
        self.require(0 <= self.overlap < self.segment, "overlap must be at least 0 and smaller than segment")

    def segments(self, length: int, limit: int) -> list[tuple[int, int]]:
        """Equal segments; the last one ends with the text, so that none is short. [] when everything fits."""
        return [] if length <= limit else cut(length, min(self.segment, limit), self.overlap)

    def choose(self, length: int, limit: int, probe: Callable[[int, int], Probe]) -> Choice:
        """The `top` segments of highest relevance that fit `limit` together; ties go to the earlier one."""
        segments = self.segments(length, limit)
        if not segments:
            return Choice(((0, length),))
        scores = [(a, b, self.relevance(probe(a, b))) for a, b in segments]
        spans = self._best(scores, limit)
        if self.zoom:
            pieces = [(a + x, a + y) for a, b in spans for x, y in cut(b - a, self.zoom, self.zoom // 4)]
            spans = self._best([(a, b, self.relevance(probe(a, b))) for a, b in pieces], limit)
        return Choice(tuple(spans), tuple(scores))

    def _best(self, scores: list[tuple[int, int, float]], limit: int) -> list[tuple[int, int]]:
        """The `top` spans of highest score that fit `limit` together, in order."""
        spans: list[tuple[int, int]] = []
        for a, b, _ in sorted(scores, key=lambda s: -s[2])[: self.top]:
            merged = union([*spans, (a, b)])
            if sum(y - x for x, y in merged) <= limit:
                spans = merged
        return spans

    def relevance(self, probe: Probe) -> float:
        """Higher is more relevant, in nats."""
        if self.score == "question":
            return float(probe.question.mean())
        return float((probe.next.exp() * probe.next).nan_to_num().sum())


def cut(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Spans of `size` (or of all, if shorter) that share `overlap` tokens; the last one ends with the text."""
    size = min(size, length)
    stride = max(1, size - min(overlap, size - 1))
    return [(a, a + size) for a in [*range(0, length - size, stride), length - size]]


def union(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans with overlapping and touching ones joined."""
    out: list[tuple[int, int]] = []
    for a, b in sorted(spans):
        if out and a <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], b)
        else:
            out.append((a, b))
    return out
