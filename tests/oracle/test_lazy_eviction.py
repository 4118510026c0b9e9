"""LazyEviction against recurrence counted by hand, and on a trace whose tokens recur."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from evicted import Evicting, Keep, top
from lengthwise.cache.h2o import H2o
from lengthwise.cache.lazy_eviction import LazyEviction
from lengthwise.cache.tova import Tova
from lengthwise.core import saved
from lengthwise.core.frames import PLAIN
from lengthwise.errors import BadParameter


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def importance(age: int, interval: int) -> float:
    if interval == 0:
        return 0.0 if age > 0 else 1.0
    return 2 * sigma(-age / interval) + 2 * sigma(-(interval - 1))


class Recurrence:
    """Every layer, head and position: the last step at which it was active and the longest interval."""

    def __init__(self, m: LazyEviction) -> None:
        self.m = m
        self.last: dict[tuple[int, int, int], int] = {}
        self.longest: dict[tuple[int, int, int], int] = {}
        self.seen: dict[int, int] = {}
        self.evictions = 0

    def step(self, o: Evicting) -> int:
        return sum(size == 1 for size in o.passes)

    def keep(self, o: Evicting, layer: int, coming: int) -> list[list[int]] | None:
        """What the pass before this one drew counts now, before its slots change."""
        m, t, places = self.m, self.step(o), o.places[layer]
        rows = o.rows[layer][self.seen.get(layer, 0) :]
        self.seen[layer] = len(o.rows[layer])
        born = t - 1 if len(rows) == 1 else t
        for head in range(o.heads):
            for slot, position in enumerate(places[head]):
                key = (layer, head, position)
                self.last.setdefault(key, born)
                self.longest.setdefault(key, 0)
                if len(rows) != 1:
                    continue
                if max(float(rows[0][q, slot]) for q in range(head * o.group, (head + 1) * o.group)) >= m.alpha:
                    self.longest[key] = max(self.longest[key], t - self.last[key])
                    self.last[key] = t
        n = len(places[0])
        if t == 0 or t % m.window or n <= m.budget:
            return None
        self.evictions += 1
        kept = []
        for head in range(o.heads):
            keys = [(layer, head, p) for p in places[head][: n - m.window]]
            scores = [importance(t - self.last[k], self.longest[k]) for k in keys]
            # as float32 rounds them, so that equal ones are equal
            kept.append(
                top([float(torch.tensor(s)) for s in scores], m.budget - m.window) + list(range(n - m.window, n))
            )
        return kept


def oracle(m: LazyEviction) -> tuple[Recurrence, Keep]:
    counted = Recurrence(m)
    return counted, counted.keep


PASSES = [33, *[1] * 23, 6, *[1] * 30]
SETTINGS: dict[str, dict[str, Any]] = {
    "often active": {"budget": 24, "window": 5, "alpha": 0.02},
    "seldom active": {"budget": 24, "window": 5, "alpha": 0.2},
    "never active": {"budget": 24, "window": 7, "alpha": 1.1},
    "wide window": {"budget": 24, "window": 23, "alpha": 0.05},
    "every step": {"budget": 24, "window": 1, "alpha": 0.05},
}


@pytest.mark.parametrize("architecture", ["llama", "llama-mha"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_is_kept(settings: dict[str, Any], architecture: str) -> None:
    method = LazyEviction(**settings)
    model, ids = tiny.model(architecture), tiny.tokens(sum(PASSES))[0]
    counted, keep = oracle(method)
    by_hand = Evicting(model, keep)
    expected = by_hand.read_all(ids, PASSES)
    with lengthwise.stack(method).on(model) as run, torch.no_grad():
        cache = run.cache()
        got = torch.cat([model(part[None], past_key_values=cache).logits[0] for part in ids.split(PASSES)])
    assert counted.evictions >= 4
    for slot, places in zip(cache.layers, by_hand.places, strict=True):
        assert slot.rows[0].head_positions.tolist() == places
    torch.testing.assert_close(got.double(), expected, atol=3e-4, rtol=1e-4)


def test_a_saved_session_goes_on(tmp_path: Path) -> None:
    model, ids = tiny.model("llama"), tiny.tokens(90)
    with lengthwise.stack("lazy-eviction:budget=24,window=5,alpha=0.05").on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :40])
        for i in range(39, 62):
            model(ids[:, i : i + 1], past_key_values=cache)
        saved.save(cache, tmp_path / "s", {})
        loaded = saved.load(run, tmp_path / "s", {})
        for i in range(62, 90):
            one, two = (model(ids[:, i : i + 1], past_key_values=c).logits for c in (cache, loaded))
            assert torch.equal(one, two)


def trace(steps: int, period: int, start: int) -> list[Tensor]:
    """Weights [1, t] of every step on `start` read tokens and those written: token 3 is drawn on every `period` steps.

    The rest goes to the step's own token, some to the one of three steps before, a little to everything else.
    """
    rows = []
    for t in range(1, steps + 1):
        n = start + t
        row = torch.full((n,), 1e-4)
        row[-4] = 0.02
        row[3] = 0.5 if t % period == 0 else 1e-6
        row[-1] = 1 - row[:-1].sum()
        rows.append(row)
    return rows


@pytest.mark.parametrize("method", [LazyEviction(budget=40, window=10, alpha=0.01), H2o(budget=40), Tova(budget=40)])
def test_a_token_that_recurs_outlives_its_silence(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn on at every 9th step, out of sight between: kept where what was drawn last decides too greedily."""
    start, steps, period = 30, 80, 9
    kv = SimpleNamespace(n=start, positions=torch.arange(start))
    view = SimpleNamespace(kv=kv, state={}, facts=SimpleNamespace(kv_heads=1), positions=torch.arange(start))
    held = list(range(start))
    method.keep(view) if not isinstance(method, Tova) else None
    if isinstance(method, H2o):
        method.observe(view, PLAIN[0], torch.arange(start), torch.full((1, 1, start), 1e-4))
    for whole in trace(steps, period, start):
        view.positions = torch.arange(1)
        kept = method.keep(view) if not isinstance(method, Tova) else greedy(method, view, monkeypatch)
        if kept is not None:
            held = [held[int(s)] for s in torch.atleast_2d(kept)[0]]
        held.append(len(whole) - 1)
        kv.n = len(held)
        weights = whole[held][None, None]
        if not isinstance(method, Tova):
            method.observe(view, PLAIN[0], torch.arange(len(held)), weights)
        view.row = weights
    assert (3 in held) == (not isinstance(method, Tova))
    assert len(held) <= 40 + 10


def greedy(method: Tova, view: Any, monkeypatch: pytest.MonkeyPatch) -> Tensor | None:
    """Tova on the trace's own weights."""
    monkeypatch.setattr("lengthwise.cache.tova.last_weights", lambda v: v.row)
    monkeypatch.setattr("lengthwise.cache.tova.remember", lambda v, count: None)
    return method.keep(view)


def test_bad_sizes() -> None:
    for text in ("lazy-eviction:budget=175", "lazy-eviction:window=0", "lazy-eviction:alpha=0"):
        with pytest.raises(BadParameter, match="lazy-eviction"):
            lengthwise.stack(text)
