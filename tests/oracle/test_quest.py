"""Quest against a choice of pages that is made by hand, one decoded token at a time."""

from __future__ import annotations

import pytest
import torch

import tiny
from lengthwise.attention.quest import Quest
from lengthwise.core import scoring
from lengthwise.core.stack import Stack

LENGTH = 700


@pytest.mark.parametrize("architecture", ["llama", "llama-mha", "gemma2"])
def test_decoded_tokens_see_the_pages_of_largest_bounds(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, checked = tiny.model(architecture), tiny.tokens(LENGTH), []
    original = scoring.Scorer._listed

    def check(self, lists):  # type: ignore[no-untyped-def]
        out, lse = original(self, lists)
        view = self.view
        q = view.rope.rotate(view.q, view.positions) if view.raw else view.q
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        group = q.shape[0] // k.shape[0]
        for h in range(k.shape[0]):
            upper = []
            for start in range(0, view.kv.n, 64):
                page = k[h, start : start + 64]
                bounds = []
                for g in range(h * group, (h + 1) * group):
                    ends = [q[g, 0] * end for end in (page.min(0).values, page.max(0).values)]
                    bounds.append(sum(max(float(a), float(b)) for a, b in zip(*ends, strict=True)))
                exact = (page @ q[h * group : (h + 1) * group, 0].T).max()
                assert max(bounds) >= float(exact) - 1e-4
                upper.append(max(bounds))
            pages = [len(upper) - 1, *sorted(range(len(upper) - 1), key=lambda p: -upper[p])[:2]]
            seen = [n for n in range(view.kv.n) if n // 64 in pages]
            for g in range(h * group, (h + 1) * group):
                logits = k[h, seen].double() @ q[g, 0].double() * view.scale
                if view.softcap is not None:
                    logits = view.softcap * torch.tanh(logits / view.softcap)
                expected = logits.softmax(0) @ v[h, seen].double()
                torch.testing.assert_close(out[g, 0].double(), expected, atol=1e-5, rtol=1e-4)
        checked.append(view.layer)
        return out, lse

    monkeypatch.setattr(scoring.Scorer, "_listed", check)
    dense = 0 if architecture == "gemma2" else 1  # its layer 0 slides
    with Stack([Quest(budget=200, dense_layers=dense)]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids, chunk=150)
        read = run.ledger.pairs
        assert read == run.ledger.dense_pairs or architecture == "gemma2"
        for i in range(3):
            model(ids[:, -1 - i : LENGTH - i], past_key_values=cache)
    assert checked == [1] * 3


def test_a_token_reads_its_budget() -> None:
    model, ids = tiny.model("llama"), tiny.tokens(1500)
    spent = []
    with Stack([Quest(budget=128, dense_layers=0)]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :-1])
        for i in (-2, -1):
            before = run.ledger.pairs
            model(ids[:, i:][:, :1], past_key_values=cache)
            spent.append((run.ledger.pairs - before) / (2 * run.facts.heads))
    # at most 128 keys, and two bounds for each of 24 pages
    assert all(64 + 48 <= pairs <= 128 + 48 for pairs in spent)


def test_bounds_of_pages_follow_the_keys_as_they_are_written() -> None:
    """Pages that fill while tokens are decoded have the bounds of all their keys."""
    model, ids = tiny.model("llama"), tiny.tokens(340)
    with Stack([Quest(budget=64, dense_layers=0)]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :190])
        for i in range(189, 340):
            model(ids[:, i : i + 1], past_key_values=cache)
        kv, state = cache.layers[0].rows[0], cache.states[0, 0, "quest"]
        k = next(iter(kv.keys.values())).read(0, 340)
    for page in range(6):
        keys = k[:, 64 * page : 64 * page + 64]
        assert torch.equal(state["low"][:, page], keys.min(1).values)
        assert torch.equal(state["high"][:, page], keys.max(1).values)
