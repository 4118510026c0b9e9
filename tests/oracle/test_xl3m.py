"""XL3M: which segments are cut, how they are scored, which are kept and spliced."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.core.seams import Probe
from lengthwise.prompt.xl3m import Xl3m, cut, union

VOCAB = 50


def probe_of(logits: torch.Tensor, question: torch.Tensor) -> Probe:
    return Probe(question, torch.log_softmax(logits, -1))


@given(st.integers(1, 500), st.integers(1, 80), st.integers(0, 100))
def test_segments_cover_the_text_and_none_is_short(length: int, size: int, overlap: int) -> None:
    spans = cut(length, size, overlap)
    covered = torch.zeros(length, dtype=torch.bool)
    for a, b in spans:
        assert b - a == min(size, length)
        covered[a:b] = True
    assert covered.all()
    assert spans == sorted(set(spans))
    gaps = [d - b for (_, b), (d, _) in itertools.pairwise(spans)]
    assert all(gap <= -min(overlap, size - 1) for gap in gaps)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda t: (t[0], t[0] + t[1])), max_size=8))
def test_union_is_the_set_of_tokens_in_order(spans: list[tuple[int, int]]) -> None:
    joined = union(spans)
    assert {i for a, b in spans for i in range(a, b)} == {i for a, b in joined for i in range(a, b)}
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(joined))


def test_certainty_is_the_entropy_of_the_next_token() -> None:
    method = Xl3m(score="certainty")
    flat, peaked = torch.zeros(VOCAB), torch.zeros(VOCAB)
    peaked[7] = 4.0
    for logits in (flat, peaked):
        p = torch.softmax(logits.double(), -1)
        entropy = -(p * p.log()).sum()
        assert abs(method.relevance(probe_of(logits, torch.zeros(1))) + float(entropy)) < 1e-5
    question = torch.zeros(1)
    assert method.relevance(probe_of(peaked, question)) > method.relevance(probe_of(flat, question))


def test_a_certain_model_has_finite_relevance() -> None:
    logits = torch.full((VOCAB,), float("-inf"))
    logits[3] = 0.0
    assert Xl3m(score="certainty").relevance(probe_of(logits, torch.zeros(1))) == 0.0


def test_question_score_is_the_mean_log_likelihood() -> None:
    assert Xl3m().relevance(Probe(torch.tensor([-1.0, -3.0]), torch.zeros(VOCAB))) == -2.0


def test_a_text_that_fits_is_read_whole_and_never_probed() -> None:
    def never(a: int, b: int) -> Probe:
        raise AssertionError("probed")

    assert Xl3m().choose(900, 1000, never).spans == ((0, 900),)


def scored(values: dict[tuple[int, int], float]):
    asked: list[tuple[int, int]] = []

    def probe(a: int, b: int) -> Probe:
        asked.append((a, b))
        return Probe(torch.tensor([values.get((a, b), -9.0)]), torch.zeros(VOCAB))

    return probe, asked


def test_the_best_segments_are_spliced_in_the_order_of_the_text() -> None:
    method = Xl3m(segment=100, overlap=0, top=2, zoom=0)
    probe, asked = scored({(300, 400): -1.0, (100, 200): -2.0, (200, 300): -3.0})
    choice = method.choose(600, 500, probe)
    assert choice.spans == ((100, 200), (300, 400))
    assert asked == [(a, a + 100) for a in range(0, 600, 100)]
    assert {(a, b): s for a, b, s in choice.scores}[300, 400] == -1.0


def test_what_is_kept_never_exceeds_the_room() -> None:
    probe, _ = scored({(0, 100): -1.0, (100, 200): -2.0, (500, 600): -3.0})
    choice = Xl3m(segment=100, overlap=0, top=3, zoom=0).choose(600, 250, probe)
    assert choice.spans == ((0, 200),)


def test_overlapping_segments_are_spliced_once_and_ties_go_to_the_earlier() -> None:
    probe, _ = scored({})
    choice = Xl3m(segment=100, overlap=50, top=2, zoom=0).choose(600, 500, probe)
    assert choice.spans == ((0, 150),)


def test_zoom_scores_pieces_of_what_was_kept() -> None:
    method = Xl3m(segment=100, overlap=0, top=1, zoom=40)
    probe, asked = scored({(300, 400): -1.0, (330, 370): -0.5})
    assert method.choose(600, 500, probe).spans == ((330, 370),)
    assert asked[6:] == [(300, 340), (330, 370), (360, 400)]
