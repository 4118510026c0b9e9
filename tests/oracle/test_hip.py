"""HiP against its tree search in plain loops; its recall; and the growth of what it scores."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.attention import hip
from lengthwise.attention.hip import Hip
from lengthwise.core import scoring
from lengthwise.core.stack import Stack

LENGTH = 700


def tree(q: Tensor, k: Tensor, first: int, last: int, ranges: int, leaf: int) -> tuple[set[int], int]:
    """Keys that the search finds for queries q [R, D] among keys first..last of k [n, D], and pairs scored."""
    edges = [first + (last - first) * i // ranges for i in range(ranges + 1)]
    nodes, pairs = list(pairwise(edges)), 0
    while max(b - a for a, b in nodes) > leaf:
        halves = [(a, (a + b + 1) // 2) for a, b in nodes] + [((a + b + 1) // 2, b) for a, b in nodes]
        score = {i: max(float(x @ k[(a + b) // 2]) for x in q) for i, (a, b) in enumerate(halves) if a < b}
        pairs += len(score) * len(q)
        best = sorted(range(len(halves)), key=lambda i: -score.get(i, -math.inf))[:ranges]
        nodes = [halves[i] for i in sorted(best)]
    return {t for a, b in nodes for t in range(a, b)}, pairs


@pytest.mark.parametrize("leaf", [1, 2, 8])
@pytest.mark.parametrize("architecture", ["llama", "llama-mha", "gemma2"])
def test_sees_what_the_search_finds(leaf: int, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Hip(top=32, leaf=leaf, sinks=30, window=60)
    model, ids, checked = tiny.model(architecture), tiny.tokens(LENGTH), []
    original = scoring.Scorer._listed

    def check(self, lists):  # type: ignore[no-untyped-def]
        out, lse = original(self, lists)
        view = self.view
        q = view.rope.rotate(view.q, view.positions) if view.raw else view.q
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        n, count = view.kv.n, q.shape[1]
        for h in range(4):
            lane = h * k.shape[0] // 4
            mask = torch.zeros(count, n, dtype=torch.bool)
            for a in range(0, count, 64):
                places = range(n - count + a, min(n, n - count + a + 64))
                stop = places[-1] // 64 + 1
                last = 64 * max(1, stop - 2)
                found, _ = tree(q[h, a : a + 64], k[lane], 64, last, 32 // leaf, leaf)
                seen = found | set(range(64)) | set(range(64 * max(0, stop - 2), n))
                for m in places:
                    mask[m - (n - count), sorted(t for t in seen if t <= m)] = True
            logits = q[h].double() @ k[lane].double().T * view.scale
            if view.softcap is not None:
                logits = view.softcap * torch.tanh(logits / view.softcap)
            logits = logits.masked_fill(~mask, float("-inf"))
            torch.testing.assert_close(lse[h].double(), logits.logsumexp(-1), atol=1e-5, rtol=1e-5)
            expected = logits.softmax(-1) @ v[lane].double()
            torch.testing.assert_close(out[h].double(), expected, atol=1e-5, rtol=1e-4)
        checked.append(count)
        return out, lse

    monkeypatch.setattr(scoring.Scorer, "_listed", check)
    with Stack([method]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids, chunk=300)
        model(ids[:, -1:], past_key_values=cache)
    assert set(checked) == {300, 99, 1}


def test_scores_grow_with_the_logarithm() -> None:
    """For one block of queries; so T log T for a text of T / 64 of them."""
    rng = torch.Generator().manual_seed(0)
    k, q, counted = torch.randn(1, 1 << 14, 8, generator=rng), torch.randn(1, 64, 8, generator=rng), {}
    for length in (1 << 10, 1 << 12, 1 << 14):
        _, counted[length] = hip.search(q, k, 0, torch.tensor([length]), 32, 2)
        _, expected = tree(q[0], k[0], 0, length, 32, 2)
        assert counted[length] == expected == 64 * 64 * int(math.log2(length / 32 / 2))
    steps = [counted[1 << 12] - counted[1 << 10], counted[1 << 14] - counted[1 << 12]]
    assert steps[0] == steps[1] < counted[1 << 10]


def test_recall_of_a_smooth_score_is_high_and_chance_is_not() -> None:
    """Where keys beside each other score alike, the search finds most of the exact top-k."""
    n, top = 4096, 128
    rng = torch.Generator().manual_seed(1)
    score = torch.nn.functional.avg_pool1d(torch.randn(1, 1, n + 126, generator=rng), 127, 1)[0, 0]
    q, k = torch.ones(1, 1, 1), score.view(1, n, 1)
    (start, stop), _ = hip.search(q, k, 0, torch.tensor([n]), top // 2, 2)
    found = {t for a, b in zip(start.flatten().tolist(), stop.flatten().tolist()) for t in range(a, b)}
    exact = set(score.topk(top).indices.tolist())
    assert len(found) <= top
    assert len(found & exact) / top > 0.7 > 10 * top / n


def test_the_ledger_counts_the_search() -> None:
    model, ids = tiny.model("llama"), tiny.tokens(LENGTH)
    with Stack([Hip(top=32, sinks=64, window=64)]).on(model) as run, torch.no_grad():
        run.prefill(ids)
    seen = 64 + 3 * 64 + 32
    most = (seen + 2 * 16 * 6) * (LENGTH - 1) * run.facts.heads * 2
    assert 0.4 * most < run.ledger.pairs <= most
