"""InfLLM against the published rule written out: scores summed pair by pair, units looked up chunk by chunk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
from lengthwise.cache.infllm import Infllm
from lengthwise.core.arena import Lru
from lengthwise.core.attach import Run
from lengthwise.core.frames import Visible
from lengthwise.core.seams import View
from reference import Held, Reference, distances, model_of, text

IDS = text(150)


class Oracle:
    """The rule for `Reference`. `chosen[layer]` lists (position of the first query, units looked up)."""

    def __init__(self, model: Any, method: Infllm) -> None:
        self.m = method
        self.reference = Reference(model, self)
        self.reference.observers.append(self.observe)
        layers = range(model.config.num_hidden_layers)
        self.weight: list[dict[int, Tensor]] = [{} for _ in layers]  # token -> weight drawn per head, while local
        self.reps: list[list[Tensor]] = [[] for _ in layers]  # unit -> mean key per head
        self.chosen: list[list[tuple[int, list[int]]]] = [[] for _ in layers]

    def read(self, ids: Tensor, passes: Sequence[int]) -> Tensor:
        """Each forward pass is cut into chunks that share a lookup."""
        return torch.cat([self.reference.read(c) for p in ids.split(list(passes)) for c in p.split(self.m.chunk)])

    def unit(self, b: int) -> range:
        return range(self.m.init + b * self.m.block, self.m.init + (b + 1) * self.m.block)

    def __call__(self, held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        m, first = self.m, int(positions[0])
        units = 0  # a unit is formed when all of it has left the local window of every query
        while first - self.unit(units)[-1] >= m.local:
            units += 1
        self.form(held, len(q), units)
        wanted = list(range(units))
        if units > m.top:
            scores = torch.tensor([self.fit(held, q, b) for b in range(units)])
            if m.rule == "max":
                scores = self.by_maximum(held, q, units)
            wanted = sorted(scores.argsort(descending=True)[: m.top].tolist())
            self.chosen[held.layer].append((first, wanted))
        seen_by_all = set(range(m.init)) | {n for b in wanted for n in self.unit(b)}
        seen_by_all |= set(range(self.unit(units)[0], held.k.shape[1]))
        d = distances(positions, held.positions)
        seen = (d >= 0) & torch.tensor([int(n) in seen_by_all for n in held.positions])
        return seen, torch.where(d < m.local, d, m.local - 1)

    def observe(self, held: Held, weights: Tensor, positions: Tensor) -> None:
        drawn = self.weight[held.layer]
        local = weights * (distances(positions, held.positions) < self.m.local)
        for n, w in enumerate(local.sum(1).T):
            drawn[n] = drawn.get(n, 0) + w

    def form(self, held: Held, heads: int, units: int) -> None:
        groups = heads // len(held.k)
        for b in range(len(self.reps[held.layer]), units):
            mean = []
            for h in range(heads):
                drawn = {n: float(self.weight[held.layer][n][h]) for n in self.unit(b)}
                best = sorted(drawn, key=lambda n: -drawn[n])[: self.m.reps]
                mean.append(held.k[h // groups, best].mean(0))
            self.reps[held.layer].append(torch.stack(mean))

    def fit(self, held: Held, q: Tensor, b: int) -> float:
        """The dot product of the mean query at local - 1 with the unit's mean representative, over all heads."""
        reps = self.reps[held.layer][b][:, None]
        at = torch.full((len(q), q.shape[1], 1), self.m.local - 1)
        each = torch.cat([self.reference.scores(q[h : h + 1], reps[h : h + 1], at[:1]) for h in range(len(q))])
        return float(each.mean((1, 2)).sum())

    def by_maximum(self, held: Held, q: Tensor, units: int) -> Tensor:
        shape = (len(q), q.shape[1], held.k.shape[1])
        logits = self.reference.scores(q, held.k, torch.full(shape, self.m.local - 1))
        best = torch.stack([logits[..., list(self.unit(b))].amax(-1) for b in range(units)], -1)
        return best.softmax(-1).amax((0, 1))


def run_logits(
    method: Infllm, model: Any, ids: Tensor, passes: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Run, list[list[tuple[int, list[int]]]]]:
    chosen: list[list[tuple[int, list[int]]]] = [[] for _ in range(model.config.num_hidden_layers)]
    real = Infllm.visible

    def visible(self: Infllm, view: View) -> Visible:
        out = real(self, view)
        if out.slots is not None:
            units = max(0, view.start - self.local + 1 - self.init) // self.block
            inside = (out.slots >= self.init) & (out.slots < self.init + units * self.block)
            picked = (out.slots[inside] - self.init) // self.block
            chosen[view.layer].append((view.start, picked.unique().tolist()))
            assert len(picked) == self.top * self.block
        return out

    monkeypatch.setattr(Infllm, "visible", visible)
    with lengthwise.stack(method).on(model) as run, torch.no_grad():
        cache = run.cache()
        logits = torch.cat([model(p[None], past_key_values=cache).logits[0] for p in ids.split(list(passes))])
    monkeypatch.undo()
    return logits, run, chosen


SETTINGS = {
    "published": {"init": 4, "local": 16, "block": 8, "top": 2, "reps": 2, "chunk": 8},
    "one rep": {"init": 0, "local": 9, "block": 5, "top": 3, "reps": 1, "chunk": 7},
    "all reps": {"init": 3, "local": 20, "block": 4, "top": 1, "reps": 4, "chunk": 16},
    "chunk beyond local": {"init": 4, "local": 8, "block": 8, "top": 2, "reps": 2, "chunk": 30},
    "max": {"init": 4, "local": 16, "block": 8, "top": 2, "reps": 2, "chunk": 8, "rule": "max"},
    "max, odd": {"init": 1, "local": 9, "block": 3, "top": 4, "reps": 1, "chunk": 11, "rule": "max"},
}


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("passes", [[150], [63, 41, 31, *[1] * 15]])
def test_the_rule(name: str, settings: dict[str, Any], passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, method = model_of(name), Infllm(**settings)
    oracle = Oracle(model, method)
    expected = oracle.read(IDS, passes)
    got, run, chosen = run_logits(method, model, IDS, passes, monkeypatch)
    assert chosen == oracle.chosen
    assert all(len(c) > 2 for c in chosen)
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)
    assert run.ledger.acted["infllm"] > 0
    assert run.ledger.layers[0].disk_bytes > 0


def test_odd_lengths_of_a_longer_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = model_of("llama"), text(401)
    method = Infllm(init=5, local=32, block=16, top=4, reps=3, chunk=63)
    oracle = Oracle(model, method)
    expected = oracle.read(ids, [1, 399, 1])
    got, _, chosen = run_logits(method, model, ids, [1, 399, 1], monkeypatch)
    assert chosen == oracle.chosen
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)


def test_certain_lookups_do_not_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many softmaxes round to 1, the order among the units is still that of exact arithmetic."""
    model, method = (
        model_of("llama", peaked=20.0),
        Infllm(init=4, local=16, block=4, top=4, reps=2, chunk=40, rule="max"),
    )
    oracle = Oracle(model, method)
    _, _, chosen = run_logits(method, model, IDS, [150], monkeypatch)
    oracle.read(IDS, [150])
    assert chosen[0] == oracle.chosen[0]


@pytest.mark.parametrize("rule", ["published", "max"])
def test_the_rule_matters(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The looked-up units are others than the most recent ones, and they differ between layers."""
    method = Infllm(**{**SETTINGS["published"], "rule": rule})
    _, _, chosen = run_logits(method, model_of("llama"), IDS, [150], monkeypatch)
    assert chosen[0] != chosen[1]
    latest = [list(range((first - 16 + 1 - 4) // 8))[-2:] for first, _ in chosen[0]]
    assert [units for _, units in chosen[0]] != latest


def test_rows_look_up_on_their_own() -> None:
    model, rows = model_of("llama"), [text(n, seed=9) for n in (70, 120)]
    ids = torch.stack([torch.nn.functional.pad(r, (120 - len(r), 0)) for r in rows])
    method = Infllm(**SETTINGS["max"])
    with lengthwise.stack(method).on(model) as run, torch.no_grad():
        together = model(ids, attention_mask=(ids > 0).long(), past_key_values=run.cache()).logits
        for row, own in enumerate(rows):
            alone = model(own[None], past_key_values=run.cache()).logits[0]
            torch.testing.assert_close(together[row, -len(own) :], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", ["published", "max"])
def test_disk_equals_ram(rule: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    settings = {**SETTINGS["published"], "rule": rule}
    on_disk, run, _ = run_logits(
        Infllm(**settings, to="disk", cached=4, folder=str(tmp_path)),
        model_of("llama"),
        IDS,
        [120, *[1] * 30],
        monkeypatch,
    )
    assert not list(tmp_path.iterdir())
    assert run.ledger.layers[1].disk_bytes > 0
    in_ram, run, _ = run_logits(Infllm(**settings, to="ram"), model_of("llama"), IDS, [120, *[1] * 30], monkeypatch)
    assert run.ledger.layers[1].disk_bytes == 0
    assert torch.equal(on_disk, in_ram)


def test_units_that_were_used_lately_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The LRU's hits and misses are those of a list kept by hand."""
    counts: dict[int, tuple[OrderedDict[int, None], list[int]]] = {}
    real = Lru.read

    def read(self: Lru, where: slice | Tensor) -> tuple[Tensor, ...]:
        cached, tally = counts.setdefault(id(self), (OrderedDict(), [0, 0]))
        slots = range(where.start, where.stop) if isinstance(where, slice) else where.tolist()
        pages = sorted({s // self.page for s in slots})
        if len(pages) <= self.pages:
            for p in pages:
                tally[p not in cached] += 1
            for p in pages:
                cached[p] = None
                cached.move_to_end(p)
            while len(cached) > self.pages:
                cached.popitem(last=False)
        out = real(self, where)
        assert (self.hits, self.misses) == tuple(tally)
        return out

    def append(self: Lru, parts: tuple[Tensor, ...]) -> None:
        if id(self) in counts:
            counts[id(self)][0].pop(self._n // self.page, None)
        real_append(self, parts)

    real_append = Lru.append
    monkeypatch.setattr(Lru, "read", read)
    monkeypatch.setattr(Lru, "append", append)
    method = Infllm(init=8, local=16, block=8, top=2, reps=2, chunk=8, cached=6)
    with lengthwise.stack(method).on(model_of("llama")) as run, torch.no_grad():
        cache = run.cache()
        for part in text(320).split([280, *[1] * 40]):
            model_of("llama")(part[None], past_key_values=cache)
        assert sum(tally[0] for _, tally in counts.values()) > sum(tally[1] for _, tally in counts.values()) > 0
