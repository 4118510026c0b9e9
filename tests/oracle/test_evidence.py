"""Evidence: the passages where the mass is, in the right file, at the right characters."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.documents import Corpus, Document
from lengthwise.evidence import SPAN, passages

WORDS = [f"word{i:04d}" for i in range(400)]
TEXT = " ".join(w + ("." if i % 10 == 9 else "") for i, w in enumerate(WORDS))
OFFSETS = [(i, i + 4) for i in range(0, len(TEXT) - 4, 4)]


def test_the_passage_around_the_peak_comes_first_and_ends_with_its_sentence() -> None:
    mass = torch.full((len(OFFSETS),), 0.001)
    at = next(
        i for i, (a, _) in enumerate(OFFSETS) if TEXT[a:].startswith("word0205") or "word0205" in TEXT[a : a + 12]
    )
    mass[at] = 50.0
    found = passages(mass, OFFSETS, Corpus([Document("a.txt", TEXT)]))
    assert "word0205" in found[0].text
    assert found[0].text == TEXT[found[0].start : found[0].end]
    assert found[0].text.endswith(".")
    assert found[0].weight > 0.9
    assert [p.weight for p in found] == sorted((p.weight for p in found), reverse=True)


def test_several_files_are_told_apart() -> None:
    corpus = Corpus([Document("a.txt", TEXT), Document("b.txt", TEXT)])
    offsets = [(i, i + 4) for i in range(0, len(corpus.text) - 4, 4)]
    mass = torch.zeros(len(offsets))
    mass[-60] = 1.0
    found = passages(mass, offsets, corpus)
    assert found[0].file == "b.txt"
    assert found[0].text == TEXT[found[0].start : found[0].end]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_shares_are_shares_and_passages_do_not_overlap_in_tokens(values: list[float]) -> None:
    mass = torch.tensor(values)
    found = passages(mass, OFFSETS[: len(values)], Corpus([Document("a.txt", TEXT)]), most=100)
    assert sum(p.weight for p in found) <= 1.0 + 1e-4
    assert all(0 <= p.start < p.end <= len(TEXT) for p in found)
    assert bool(found) == bool(mass.sum() > 0)
    assert len(found) <= max(1, 2 * len(values) // SPAN + 1)


def test_no_passage_reaches_over_what_was_left_out() -> None:
    kept = [*range(100, 180), *range(600, 680)]
    mass = torch.zeros(len(kept))
    mass[75:85] = 1.0  # five tokens on each side of the gap
    found = passages(mass, [OFFSETS[i] for i in kept], Corpus([Document("a.txt", TEXT)]))
    assert len(found) == 2
    assert all(p.end - p.start < 32 * 4 + 2 * 120 for p in found)


def test_no_attention_no_evidence() -> None:
    assert passages(torch.zeros(10), OFFSETS[:10], Corpus([Document("a.txt", TEXT)])) == []
