"""SirLLM against a cache that is evicted by hand with surprisals from its own logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.cache.sirllm import SLACK, Sirllm
from lengthwise.core.attach import Run
from lengthwise.core.frames import NATIVE, UNROTATED
from lengthwise.core.session import Session
from reference import Held, Reference, distances


class Oracle:
    """Reads pass by pass: evict, renumber, attend; then note the surprisal of what was read."""

    def __init__(self, model: Any, method: Sirllm) -> None:
        self.m, self.reference = method, Reference(model, self.rule)
        self.surprise: list[float] = []
        self.turn_of: list[int] = []
        self.turn, self.decoding = 0, False
        self.last: Tensor | None = None
        self.kept: list[list[int]] = []

    def rule(self, held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        n = held.k.shape[1]
        d = distances(torch.arange(n - len(positions), n), torch.arange(n))
        return d >= 0, d

    def evict(self, coming: int) -> None:
        m, positions = self.m, self.reference.held[0].positions.tolist()
        size = m.sinks + m.entropy + m.recent
        if len(positions) + coming <= size:
            return
        coming = max(coming, min(SLACK, size // 8))
        worth = [self.surprise[p] * m.decay ** (self.turn - self.turn_of[p]) for p in positions]
        order = sorted(range(len(positions)), key=lambda s: -worth[s])
        kept = set(order[: max(0, m.entropy - coming)]) | set(range(m.sinks))
        for slot in reversed(range(len(positions))):
            if len(kept) >= size - coming:
                break
            kept.add(slot)
        for held in self.reference.held:
            held.keep(torch.tensor(sorted(kept)))
        self.kept.append([positions[s] for s in sorted(kept)])

    def read(self, ids: Tensor) -> Tensor:
        if len(ids) > 1 and (not self.surprise or self.decoding):
            self.turn += 1
        self.decoding = len(ids) == 1
        self.evict(len(ids))
        logits = self.reference.read(ids)
        before = [None if self.last is None else self.last, *logits[:-1]]
        own = [None if b is None else -float(b.log_softmax(-1)[i]) for b, i in zip(before, ids, strict=True)]
        known = [s for s in own if s is not None]
        self.surprise += [s if s is not None else max(known, default=0.0) for s in own]
        self.turn_of += [self.turn] * len(ids)
        self.last = logits[-1]
        return logits


def run_passes(method: Sirllm, model: Any, ids: Tensor, passes: Sequence[int]) -> tuple[Tensor, Session, Run]:
    with lengthwise.stack(method).on(model) as run, torch.no_grad():
        cache = run.cache()
        logits = [model(part[None], past_key_values=cache).logits[0] for part in ids.split(list(passes))]
    return torch.cat(logits), cache, run


TURNS = [20, *[1] * 7, 15, 12, *[1] * 30, 9, *[1] * 12, 21, 17, *[1] * 5]
SETTINGS = {
    "all three": {"sinks": 2, "entropy": 30, "recent": 14},
    "no recent": {"sinks": 3, "entropy": 43, "recent": 0},
    "no entropy": {"sinks": 2, "entropy": 0, "recent": 44},
    "no sinks": {"sinks": 0, "entropy": 40, "recent": 8},
    "decay": {"sinks": 2, "entropy": 40, "recent": 4, "decay": 0.7},
    "strong decay": {"sinks": 2, "entropy": 40, "recent": 4, "decay": 0.05},
}


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_is_kept(name: str, settings: dict[str, Any]) -> None:
    model, method, ids = tiny.model(name), Sirllm(**settings), tiny.tokens(sum(TURNS))[0]
    oracle = Oracle(model, method)
    expected = torch.cat([oracle.read(part) for part in ids.split(TURNS)])
    got, cache, run = run_passes(method, model, ids, TURNS)
    torch.testing.assert_close(got.double(), expected, atol=3e-4, rtol=1e-4)
    for layer, held in zip(cache.layers, oracle.reference.held, strict=True):
        assert layer.rows[0].positions.tolist() == held.positions.tolist()
    torch.testing.assert_close(
        cache.surprise.values[0].double(), torch.tensor(oracle.surprise).double(), atol=1e-4, rtol=1e-4
    )
    assert cache.surprise.turns[0].tolist() == oracle.turn_of
    assert cache.turn == 4
    assert len(oracle.kept) > 3
    assert run.ledger.acted["sirllm"] == len(oracle.kept) * model.config.num_hidden_layers
    assert run.ledger.layers[0].held_tokens <= method.size


def test_decay_changes_what_is_kept() -> None:
    model, ids = tiny.model("llama"), tiny.tokens(sum(TURNS))[0]
    kept = {}
    for decay in (1.0, 0.05):
        _, cache, _ = run_passes(Sirllm(sinks=2, entropy=40, recent=4, decay=decay), model, ids, TURNS)
        kept[decay] = cache.layers[0].rows[0].positions.float()
    assert kept[1.0].tolist() != kept[0.05].tolist()
    assert kept[0.05].mean() > kept[1.0].mean()  # old turns count for less


def test_surprise_decides() -> None:
    """Kept beside sinks and recent tokens are the most surprising, not the least."""
    model, ids = tiny.model("llama"), tiny.tokens(68)[0]
    method = Sirllm(sinks=2, entropy=34, recent=10)
    _, cache, _ = run_passes(method, model, ids, [23, 22, 23])
    kept = cache.layers[0].rows[0].positions
    older = torch.arange(2, 45)
    stayed = torch.isin(older, kept)
    surprise = cache.surprise.values[0]
    assert surprise[older[stayed]].mean() > surprise[older[~stayed]].mean()


def test_renumbering_equals_recomputation() -> None:
    """After an eviction keys stand at 0..n-1: rotated anew from the un-rotated ones, in every layer."""
    model, ids = tiny.model("llama"), tiny.tokens(sum(TURNS))[0]
    _, cache, run = run_passes(Sirllm(sinks=2, entropy=30, recent=14), model, ids, TURNS)
    theta = 10_000.0 ** (-torch.arange(0, 12, 2).double() / 12)
    for layer in cache.layers:
        kv = layer.rows[0]
        raw = kv.keys[UNROTATED].read(0, kv.n).double()
        a, b = raw.chunk(2, -1)
        turned = torch.complex(a, b) * torch.polar(torch.ones(kv.n, 6).double(), torch.arange(kv.n)[:, None] * theta)
        expected = torch.cat([turned.real, turned.imag], -1)
        torch.testing.assert_close(kv.keys[NATIVE].read(0, kv.n).double(), expected, atol=1e-4, rtol=1e-4)
    assert run.ledger.layers[0].evicted_tokens > 50


def test_rows_evict_on_their_own() -> None:
    """Rows of a left-padded batch keep what each would keep alone, also when a row's first chunk is all padding."""
    model, lengths = tiny.model("llama"), (60, 95, 100)  # the first begins where a chunk begins
    rows = [tiny.tokens(n, seed=n)[0] for n in lengths]
    ids = torch.stack([torch.nn.functional.pad(r, (100 - len(r), 0)) for r in rows])
    method = Sirllm(sinks=2, entropy=30, recent=14)
    with lengthwise.stack(method).on(model) as run, torch.no_grad():
        cache = run.cache()
        for start in range(0, 100, 20):
            model(ids[:, start : start + 20], attention_mask=(ids[:, : start + 20] > 0).long(), past_key_values=cache)
    for row, own in enumerate(rows):
        first = len(own) % 20 or 20
        _, alone, _ = run_passes(method, model, own, [first, *[20] * ((len(own) - first) // 20)])
        torch.testing.assert_close(cache.surprise.values[row], alone.surprise.values[0], atol=1e-3, rtol=1e-3)
        kept = cache.layers[1].rows[row].positions.tolist()
        assert kept == alone.layers[1].rows[0].positions.tolist()


def test_with_integers_behind_it() -> None:
    """Renumbering reads coded keys back: close to the exact cache, and still bounded."""
    model, ids = tiny.model("llama"), tiny.tokens(sum(TURNS))[0]
    exact, _, _ = run_passes(Sirllm(sinks=2, entropy=30, recent=14), model, ids, TURNS)
    with lengthwise.stack("sirllm:sinks=2,entropy=30,recent=14 + int8:residual=0").on(model) as run, torch.no_grad():
        cache = run.cache()
        got = torch.cat([model(p[None], past_key_values=cache).logits[0] for p in ids.split(TURNS)])
    assert torch.isfinite(got).all()
    assert (got - exact).abs().median() < 0.2 * exact.abs().median()
