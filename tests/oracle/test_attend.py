"""Partial attention and the merge of partials, against softmax over everything in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lengthwise.core import attend
from lengthwise.core.frames import FAR, Frame, Visible, stay
from lengthwise.core.pieces import cut

INF = float("-inf")
SHAPES = [(1, 1), (1, 63), (1, 1000), (63, 63), (63, 1), (300, 1000), (64, 200)]
HEADS = [(4, 4), (6, 2), (5, 1)]
Way = Callable[..., attend.Partial]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, size: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, cap: float | None) -> attend.Partial:
    """One query, head and key at a time, as the formula says."""
    groups = len(q) // len(k)
    outs, lses = [], []
    for h in range(len(q)):
        scores = q[h].double() @ k[h // groups].double().T * scale
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        if mask is not None:
            scores = torch.where(mask, scores, INF)
        top = scores.amax(-1, keepdim=True).clamp(min=-1e300)
        e = torch.exp(scores - top)
        total = e.sum(-1, keepdim=True)
        values = v[h // groups].double()
        outs.append(torch.where(total > 0, (e / total.clamp(min=1e-300)) @ values, 0.0))
        lses.append((total.log() + top)[:, 0])
    return torch.stack(outs), torch.stack(lses)


def close(got: attend.Partial, expected: attend.Partial, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(got[0].double(), expected[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(got[1].double(), expected[1], atol=tolerance, rtol=tolerance)


def mask_of(rows: int, keys: int, seed: int, share: float = 0.5) -> Tensor:
    return torch.rand(rows, keys, generator=torch.Generator().manual_seed(seed)) < share


WAYS: dict[str, Way] = {"naive": attend.naive, "partial": attend.partial}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("rows", "keys"), SHAPES)
@pytest.mark.parametrize(("heads", "kv"), HEADS)
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("masked", [False, True])
def test_partial(way: Way, rows: int, keys: int, heads: int, kv: int, cap: float | None, masked: bool) -> None:
    q, k, v = random(heads, rows, 24, seed=1, size=2), random(kv, keys, 24, seed=2), random(kv, keys, 24, seed=3)
    mask = mask_of(rows, keys, 4) if masked else None
    close(way(q, k, v, scale=0.3, mask=mask, softcap=cap), exact(q, k, v, 0.3, mask, cap))


@pytest.mark.parametrize("rows", [1, 63, 300])
@pytest.mark.parametrize(("heads", "kv"), HEADS)
@pytest.mark.parametrize("cap", [None, 2.0])
def test_causal(rows: int, heads: int, kv: int, cap: float | None) -> None:
    q, k, v = random(heads, rows, 24, seed=1), random(kv, rows, 24, seed=2), random(kv, rows, 24, seed=3)
    mask = torch.ones(rows, rows, dtype=torch.bool).tril()
    close(attend.partial(q, k, v, scale=0.3, causal=True, softcap=cap), exact(q, k, v, 0.3, mask, cap))


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(("rows", "keys"), [(1, 40), (63, 40), (300, 1000)])
def test_bfloat16(rows: int, keys: int, cap: float | None) -> None:
    q, k, v = (random(h, n, 32, dtype=torch.bfloat16, seed=n) for h, n in ((4, rows), (2, keys), (2, keys)))
    for mask in (None, mask_of(rows, keys, 1)):
        close(attend.partial(q, k, v, scale=0.2, mask=mask, softcap=cap), exact(q, k, v, 0.2, mask, cap), 2e-2)
        close(attend.naive(q, k, v, scale=0.2, mask=mask, softcap=cap), exact(q, k, v, 0.2, mask, cap), 1e-5)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("cap", [None, 2.0])
def test_rows_that_see_nothing(way: Way, cap: float | None) -> None:
    q, k, v = random(4, 5, 16, seed=1), random(2, 9, 16, seed=2), random(2, 9, 16, seed=3)
    mask = mask_of(5, 9, 1, 0.7)
    mask[[0, 3]] = False
    out, lse = way(q, k, v, scale=0.25, mask=mask, softcap=cap)
    assert (lse[:, [0, 3]] == INF).all()
    assert (out[:, [0, 3]] == 0).all()
    close((out, lse), exact(q, k, v, 0.25, mask, cap))
    out, lse = way(q, k, v, scale=0.25, mask=torch.zeros_like(mask), softcap=cap)
    assert (lse == INF).all()
    assert (out == 0).all()
    merged = attend.merge([(out, lse), way(q, k, v, scale=0.25, softcap=cap)])
    close(merged, exact(q, k, v, 0.25, None, cap))
    both = attend.merge([(out, lse), (out, lse)])
    assert (both[0] == 0).all()
    assert (both[1] == INF).all()


@pytest.mark.parametrize("rows", [1, 7])
def test_extreme_scores(rows: int) -> None:
    """Scores of hundreds neither overflow nor lose the smaller part."""
    q, k, v = random(2, rows, 16, seed=1, size=30), random(2, 50, 16, seed=2, size=10), random(2, 50, 16, seed=3)
    parts = [attend.partial(q, k[:, a:b], v[:, a:b], scale=1.0) for a, b in ((0, 20), (20, 21), (21, 50))]
    merged = attend.merge(parts)
    assert torch.isfinite(merged[0]).all()
    torch.testing.assert_close(merged[0].double(), exact(q, k, v, 1.0, None, None)[0], atol=1e-2, rtol=1e-2)


def test_the_other_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the CPU's fused kernel, and for values of another width, the same."""
    q, k, v = random(4, 300, 16, seed=1), random(2, 300, 16, seed=2), random(2, 300, 16, seed=3)
    mask = mask_of(300, 300, 5)
    fused = [attend.partial(q, k, v, scale=0.2, mask=mask), attend.partial(q, k, v, scale=0.2, causal=True)]
    monkeypatch.setattr(attend, "_CPU_FLASH", None)
    plain = [attend.partial(q, k, v, scale=0.2, mask=mask), attend.partial(q, k, v, scale=0.2, causal=True)]
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    wide = torch.cat([v, v], -1)
    torch.testing.assert_close(
        attend.partial(q, k, wide, scale=0.2)[0][..., :16], attend.partial(q, k, v, scale=0.2)[0]
    )


@pytest.mark.parametrize("rows", [1, 30])
def test_weights(rows: int) -> None:
    """Weights of disjoint key sets, given the logsumexp over all, are softmax over all."""
    q, k, v = random(6, rows, 16, seed=1), random(2, 50, 16, seed=2), random(2, 50, 16, seed=3)
    for cap in (None, 1.5):
        for mask in (None, mask_of(rows, 50, 3)):
            out, lse = attend.naive(q, k, v, scale=0.4, mask=mask, softcap=cap)
            parts = [
                attend.weights(q, k[:, s], lse, scale=0.4, mask=None if mask is None else mask[:, s], softcap=cap)
                for s in (slice(0, 17), slice(17, 50))
            ]
            w = torch.cat(parts, -1)
            torch.testing.assert_close(w.sum(-1), torch.ones(6, rows), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(w @ v.repeat_interleave(3, 0), out, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_split_anywhere_merge_in_any_order(data: Any) -> None:
    """However the keys are split, whatever the order and nesting of the merges, the result is that of all keys."""
    keys = data.draw(st.integers(1, 40))
    rows = data.draw(st.sampled_from([1, 2, 9]))
    heads, kv = data.draw(st.sampled_from(HEADS))
    seed = data.draw(st.integers(0, 999))
    q, k, v = (
        random(heads, rows, 8, seed=seed, size=2),
        random(kv, keys, 8, seed=seed + 1),
        random(kv, keys, 8, seed=seed + 2),
    )
    mask = mask_of(rows, keys, seed, data.draw(st.sampled_from([0.1, 0.5, 1.0])))
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=keys, max_size=keys)))
    sets = [(owner == i).nonzero()[:, 0] for i in range(4)]
    sets = [sets[i] for i in data.draw(st.permutations(range(4))) if len(sets[i])]
    parts = [attend.partial(q, k[:, s], v[:, s], scale=0.5, mask=mask[:, s]) for s in sets]
    expected = exact(q, k, v, 0.5, mask, None)
    close(attend.merge(parts), expected)
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [attend.merge(parts[i : i + 2])]
    close(parts[0], expected)


@st.composite
def cuts(draw: Any) -> tuple[tuple[Frame, ...], Visible, Tensor, Tensor]:
    held = draw(st.integers(0, 40))
    rows = draw(st.integers(1, 12))
    gaps = draw(st.lists(st.integers(1, 3), min_size=held, max_size=held))
    before = torch.tensor([0, *gaps]).cumsum(0)[1:] if held else torch.zeros(0, dtype=torch.long)
    start = (int(before[-1]) if held else -1) + 1
    q = torch.arange(start, start + rows)
    slots = torch.cat([before, q])
    edges = sorted(set(draw(st.lists(st.integers(1, 50), max_size=3))))
    frames = tuple(Frame(a, b) for a, b in zip([0, *edges], [*edges, FAR], strict=True))
    rules = tuple(draw(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), max_size=2)))
    chosen = None
    if draw(st.booleans()):
        keep = torch.tensor(draw(st.lists(st.booleans(), min_size=held, max_size=held)), dtype=torch.bool)
        chosen = torch.cat([keep.nonzero()[:, 0], torch.arange(held, held + rows)])
    return frames, Visible(chosen, rules), q, slots


@settings(max_examples=300, deadline=None)
@given(cuts())
def test_cut(case: tuple[tuple[Frame, ...], Visible, Tensor, Tensor]) -> None:
    """Pieces cover every visible pair once, in the frame of its distance, and no other; reaches do so by the rules."""
    frames, visible, q, positions = case
    d = q[:, None] - positions[None]
    allowed = d >= 0
    if visible.slots is not None:
        allowed &= torch.isin(torch.arange(len(positions)), visible.slots)
    for window, sinks in visible.rules:
        allowed &= (d < window) | (positions < sinks)
    covered = {frame: torch.zeros_like(d) for frame in frames}
    both = cut(frames, visible, q, positions)
    for piece in both.pieces:
        slots = piece.indices()
        assert piece.count == len(slots) > 0
        assert bool((slots.diff() > 0).all())
        see = torch.ones(len(q), len(slots), dtype=torch.long)
        if piece.causal:
            see = see.tril()
        elif piece.mask is not None:
            see = piece.mask.long()
        assert piece.pairs == int(see.sum())
        covered[piece.frame].index_add_(1, slots, see)
    for frame in frames:
        inside = (d >= frame.low) & (d < frame.high)
        assert torch.equal(covered[frame], (allowed & inside).long())
    reached = {frame: torch.zeros_like(d) for frame in frames}
    for reach in both.reaches:
        ranges = [reach.slots] if reach.cover is None else [reach.slots, reach.cover]
        seen = [torch.zeros_like(d, dtype=torch.bool) for _ in ranges]
        for mask, slots in zip(seen, ranges, strict=True):
            mask[:, slots] = (d[:, slots] >= max(0, reach.frame.low)) & (d[:, slots] < reach.frame.high)
            for window, sinks in reach.rules:
                mask[:, slots] &= (d[:, slots] < window) | (positions[slots] < sinks)[None]
        assert all(torch.equal(mask, seen[0]) for mask in seen)
        if reach.runs:
            assert len(q) == 1
            runs = torch.cat([torch.arange(r.start, r.stop) for r in reach.runs])
            assert torch.equal(runs, torch.arange(len(positions))[reach.slots])
            assert bool(seen[0][:, runs].all())
        reached[reach.frame] += seen[0].long()
    for frame in frames:
        assert torch.equal(reached[frame], covered[frame])


def test_visible_and() -> None:
    some, other = Visible(torch.tensor([0, 2, 5, 9]), ((4, 1),)), Visible(torch.tensor([2, 3, 9, 11]), ((7, 0),))
    both = some & other
    assert both.slots is not None
    assert both.slots.tolist() == [2, 9]
    assert both.rules == ((4, 1), (7, 0))
    assert (some & Visible()).slots is some.slots
    assert (Visible() & some).slots is some.slots
    assert Frame().query is stay
    assert math.isclose(FAR, 2.0**62)
