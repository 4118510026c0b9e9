"""Eviction per head against a model in float64 that is evicted by hand, from the rows of its own softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from evicted import Evicting, Keep, top
from lengthwise.cache import tova
from lengthwise.cache.knorm import Knorm
from lengthwise.cache.pyramidkv import Pyramidkv
from lengthwise.core import registry, saved
from lengthwise.core.arena import Disk
from lengthwise.core.attach import Run
from lengthwise.core.seams import Observes, View
from lengthwise.core.session import Session
from lengthwise.core.spec import Method, Spec
from lengthwise.core.store import Lane, Layout
from lengthwise.errors import BadParameter, StackRefused

PASSES = [47, 16, 1, 1, 1, 1, 25, 1, 1, 13, 7, *[1] * 9]  # two turns, and a third that is shorter than the budget


def snap(m: Any, share: Any = None) -> Keep:
    """SnapKV in loops; `share(layer, n)` is a layer's budget."""

    def votes(row: list[float], n: int) -> float:
        around = range(n - m.kernel // 2, n + m.kernel // 2 + 1)
        inside = [row[i] for i in around if 0 <= i < len(row)]
        return max(inside) if m.pool == "max" else sum(inside) / m.kernel

    def keep(o: Evicting, layer: int, coming: int) -> list[list[int]] | None:
        n = len(o.places[layer][0])
        budget = share(layer, n) if share else m.budget
        if not o.reading_ended or n <= m.budget or budget >= n:
            return None
        before, window = n - m.window, o.rows[layer][-m.window :]
        kept = []
        for head in range(o.heads):
            score = [0.0] * before
            for q in range(head * o.group, (head + 1) * o.group):
                drawn = [sum(float(row[q, s]) for row in window) for s in range(before)]
                score = [a + votes(drawn, s) / o.group for s, a in enumerate(score)]
            kept.append(top(score, budget - m.window) + list(range(before, n)))
        return kept

    return keep


def norm(m: Knorm) -> Keep:
    def keep(o: Evicting, layer: int, coming: int) -> list[list[int]] | None:
        if not o.reading_ended or layer < m.skip or len(o.places[layer][0]) <= m.budget:
            return None
        return [top([-sum(float(x) ** 2 for x in k) for k in ks], m.budget) for ks in o.reference.held[layer].k]

    return keep


def last_query(m: Any) -> Keep:
    def keep(o: Evicting, layer: int, coming: int) -> list[list[int]] | None:
        if len(o.places[layer][0]) <= m.budget:
            return None
        return [top(o.rows[layer][-1].sum(0).tolist(), m.budget)] * o.heads

    return keep


def heavy(m: Any) -> Keep:
    drawn: dict[tuple[int, int, int], float] = {}
    counted: dict[int, int] = {}

    def keep(o: Evicting, layer: int, coming: int) -> list[list[int]] | None:
        places = o.places[layer]
        n = len(places[0])
        for row in o.rows[layer][counted.get(layer, 0) :]:  # since the last eviction, so slots are the same
            for q, weights in enumerate(row.tolist()):
                for slot, weight in enumerate(weights):
                    key = (layer, q // o.group, places[q // o.group][slot])
                    drawn[key] = drawn.get(key, 0.0) + weight
        counted[layer] = len(o.rows[layer])
        if n <= m.budget:
            return None
        recent = list(range(n - m.lately, n))
        scores = [[drawn[layer, head, p] for p in places[head][: n - m.lately]] for head in range(o.heads)]
        return [top(s, m.budget - m.lately) + recent for s in scores]

    return keep


def pyramid(m: Pyramidkv) -> Keep:
    """Two layers: the first has `high`, the last `low` beside the window."""

    def share(layer: int, n: int) -> int:
        mean = m.budget - m.window
        low = mean // m.beta
        high = 2 * mean - low
        if high > n - m.window:
            high, low = n - m.window, 2 * mean - (n - m.window)
        return m.window + (high, low)[layer]

    return snap(m, share)


CASES: dict[str, tuple[str, Any]] = {
    "snapkv": ("snapkv:budget=31,window=8,kernel=5", snap),
    "snapkv, mean": ("snapkv:budget=31,window=8,kernel=5,pool=mean", snap),
    "snapkv, one": ("snapkv:budget=31,window=1,kernel=1", snap),
    "snapkv, room": ("snapkv:budget=62,window=20,kernel=3", snap),
    "pyramidkv": ("pyramidkv:budget=31,window=8,kernel=5,pool=mean", pyramid),
    "pyramidkv, steep": ("pyramidkv:budget=24,window=8,kernel=3,beta=4", pyramid),
    "pyramidkv, clamped": ("pyramidkv:budget=56,window=8,kernel=3", pyramid),
    "knorm": ("knorm:budget=30,skip=0", norm),
    "knorm, skip": ("knorm:budget=30,skip=1", norm),
    "tova": ("tova:budget=30", last_query),
    "tova, small": ("tova:budget=3", last_query),
    "h2o": ("h2o:budget=30", heavy),
    "h2o, heavy": ("h2o:budget=30,recent=0", heavy),
    "h2o, recent": ("h2o:budget=29,recent=28", heavy),
}


def run_passes(text: str, model: Any, ids: Tensor, passes: list[int]) -> tuple[Tensor, Session, Run]:
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        cache = run.cache()
        logits = [model(part[None], past_key_values=cache).logits[0] for part in ids.split(passes)]
    return torch.cat(logits), cache, run


@pytest.mark.parametrize("architecture", ["llama", "llama-mha"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_kept(case: str, architecture: str) -> None:
    text, oracle = CASES[case]
    model, passes = tiny.model(architecture), PASSES
    ids, method = tiny.tokens(sum(PASSES))[0], lengthwise.stack(text).methods[0]
    if isinstance(method, Knorm):  # no token twice: its keys in the first layer would have equal norms
        passes = PASSES[:9]
        ids = torch.randperm(tiny.VOCAB - 1, generator=torch.Generator().manual_seed(0))[: sum(passes)] + 1
    by_hand = Evicting(model, oracle(method), method.queries_at_once() or 1 << 30)
    expected = by_hand.read_all(ids, passes)
    got, cache, run = run_passes(text, model, ids, passes)
    for slot, places in zip(cache.layers, by_hand.places, strict=True):
        kv = slot.rows[0]
        assert kv.head_positions.tolist() == places
        assert kv.positions.tolist() == [max(p) for p in zip(*places, strict=True)]
    torch.testing.assert_close(got.double(), expected, atol=3e-4, rtol=1e-4)
    assert max(layer.evicted_tokens for layer in run.ledger.layers) >= 50
    assert kv.heads_differ == (method.spec.name != "tova")
    if kv.heads_differ and case != "h2o, recent":
        assert by_hand.places[1][0] != by_hand.places[1][1]


@pytest.mark.parametrize("text", ["snapkv:budget=31,window=8", "pyramidkv:budget=31", "knorm:budget=31,skip=0"])
def test_the_chunks_of_a_prefill_do_not_matter(text: str) -> None:
    model, ids = tiny.model("llama"), tiny.tokens(63)[0]
    outs = [run_passes(text, model, ids, [*passes, 1, 1])[0][-2:] for passes in ([61], [30, 31], [7, 50, 4], [59, 2])]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["snapkv", "pyramidkv", "tova", "h2o"])
def test_rows_evict_on_their_own(case: str) -> None:
    model, lengths, text = tiny.model("llama"), (60, 95, 100), CASES[case][0]
    rows = [tiny.tokens(n, seed=n)[0] for n in lengths]
    ids = torch.stack([torch.nn.functional.pad(r, (100 - len(r), 0)) for r in rows])
    passes = [20] * 4 + [16, 1, 1, 1, 1]
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        cache, a = run.cache(), 0
        for size in passes:
            a += size
            part, mask = ids[:, a - size : a], (ids[:, :a] > 0).long()
            where = (mask.cumsum(1) - 1).clamp(min=0)[:, a - size :]
            model(part, attention_mask=mask, position_ids=where, past_key_values=cache)
    for row, own in enumerate(rows):
        skip = 100 - len(own)
        sizes = [max(0, min(size, sum(passes[: i + 1]) - skip)) for i, size in enumerate(passes)]
        _, alone, _ = run_passes(text, model, own, [size for size in sizes if size])
        for layer, other in zip(cache.layers, alone.layers, strict=True):
            assert torch.equal(layer.rows[row].head_positions, other.rows[0].head_positions)


SAVED = ["snapkv:budget=31,window=8", "knorm:budget=30,skip=0 + int8:residual=8", "tova:budget=30",
         "h2o:budget=30 + int4:residual=8,group=4", "h2o:budget=30 + offload:hot=8,pages=1"]  # fmt: skip


@pytest.mark.parametrize("text", SAVED)
def test_a_saved_session_goes_on(text: str, tmp_path: Path) -> None:
    model, ids = tiny.model("llama"), tiny.tokens(150)
    with lengthwise.stack(text).on(model) as run, torch.no_grad():

        def read(cache: Session, passes: list[int], at: int) -> Tensor:
            parts = ids[:, at : at + sum(passes)].split(passes, 1)
            return torch.cat([model(p, past_key_values=cache).logits for p in parts], 1)

        cache = run.cache()
        read(cache, [90, 1, 1, 1, 11], 0)
        twin = saved.fork(cache)
        saved.save(cache, tmp_path / "s", {})
        loaded, rest = saved.load(run, tmp_path / "s", {}), [1, 1, 20, 1, 1]
        want = read(cache, rest, 104)
        assert torch.equal(read(loaded, rest, 104), want)
        assert torch.equal(read(twin, rest, 104), want)
    for slot, other, third in zip(cache.layers, loaded.layers, twin.layers, strict=True):
        kv, places = slot.rows[0], slot.rows[0].head_positions
        assert kv.heads_differ == ("tova" not in text)
        assert torch.equal(other.rows[0].head_positions, places)
        assert torch.equal(third.rows[0].head_positions, places)


@pytest.mark.parametrize("name", ["snapkv", "h2o"])
@pytest.mark.parametrize(
    "form", ["int8:residual=0", "offload:hot=0,pages=1", "int8:residual=16 + offload:hot=16,pages=1"]
)
def test_in_another_form(name: str, form: str) -> None:
    """Codes of different heads are moved apart: close to the exact run, and equal to it when nothing is rounded."""
    passes = [160, 1, 1, 1, 90, *[1] * 80]  # a lane codes 64 tokens at a time
    model, ids, text = tiny.model("llama"), tiny.tokens(sum(passes))[0], f"{name}:budget=120"
    exact, alone, _ = run_passes(text, model, ids, passes)
    got, cache, run = run_passes(f"{text} + {form}", model, ids, passes)
    assert run.ledger.acted[form.partition(":")[0]] > 0
    if "int8" not in form:
        torch.testing.assert_close(got, exact, atol=1e-4, rtol=1e-4)
        assert torch.equal(cache.layers[1].rows[0].head_positions, alone.layers[1].rows[0].head_positions)
    else:
        assert (got - exact).abs().median() < 0.1 * exact.abs().median()


class Rounded:
    """A codec of whole numbers in a byte."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.to(torch.uint8),)

    def decode(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return parts[0].to(dtype)

    def coded(self, parts: tuple[Tensor, ...]) -> None:
        return None


class Peek(Observes):
    """Remembers the softmax row of the last query: what the evicting methods must arrive at by themselves."""

    spec = Spec(name="peek", family="cache", summary="x", formula="x", seams=("observe",))
    rows: dict[int, Tensor] = {}  # noqa: RUF012

    def observe(self, view: View, frame: Any, slots: Tensor, weights: Tensor) -> None:
        row = Peek.rows.setdefault(view.layer, torch.zeros(len(weights), 0))
        row = torch.nn.functional.pad(row, (0, view.kv.n - row.shape[1]))
        row[:, slots] = weights[:, -1]
        Peek.rows[view.layer] = row


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "gpt-neox", "cohere", "qwen3"])
@pytest.mark.parametrize("position", ["", "yarn:factor=4"])
def test_the_attention_it_goes_by_is_the_models(
    architecture: str, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soft caps, partial and interleaved rotation, queries that arrive un-rotated."""
    model, ids = tiny.model(architecture), tiny.tokens(52)
    compared = []

    def spy(view: View) -> Tensor:
        weights = _last_weights(view)
        torch.testing.assert_close(weights[:, 0], Peek.rows.pop(view.layer), atol=1e-5, rtol=1e-4)
        compared.append(view.layer)
        return weights

    _last_weights = tova.last_weights
    monkeypatch.setattr(tova, "last_weights", spy)
    methods: list[Method] = [registry.get("tova")(budget=40), Peek()]
    methods += lengthwise.stack(position).methods if position else ()
    Peek.rows.clear()
    with lengthwise.stack(methods).on(model) as run, torch.no_grad():
        cache = run.cache()
        for part in ids.split([40, 8, 1, 1, 1, 1], 1):
            model(part, past_key_values=cache)
    assert len(compared) >= 4


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "knorm", "tova", "h2o", "lazy-eviction"])
def test_what_cannot_be_combined(name: str) -> None:
    for other, word in (("rerope:window=16", "one position frame"), ("dynamic-ntk", "one position frame")):
        with pytest.raises(StackRefused, match=word):
            lengthwise.stack(f"{name} + {other}").on(tiny.model("llama"))
    with pytest.raises(StackRefused, match=r"selects by position|own the seam"):
        lengthwise.stack(f"{name} + lm-infinite:window=16")


def test_bad_sizes() -> None:
    for text in ("snapkv:budget=32", "snapkv:kernel=4", "pyramidkv:beta=0", "knorm:budget=0", "h2o:recent=2000"):
        with pytest.raises(BadParameter, match=text.partition(":")[0]):
            lengthwise.stack(text)


def test_memory_is_given_back() -> None:
    """The ledger's bytes after a compression, on a store that has pages and one that has not."""
    model, ids = tiny.model("llama"), tiny.tokens(3001)
    with lengthwise.stack("snapkv:budget=64,window=8").on(model) as run, torch.no_grad():
        cache = run.prefill(ids)
        before = run.ledger.kv_bytes
        model(ids[:, -1:], past_key_values=cache)
        assert run.ledger.kv_bytes < 0.15 * before


def test_evidence_counts_positions_not_slots() -> None:
    """The attention summed by position is what each head put there, wherever its slots lie."""
    model, ids = tiny.model("llama-mha"), tiny.tokens(62)[0]
    by_hand = Evicting(model, snap(lengthwise.stack("snapkv:budget=20,window=4").methods[0]))
    by_hand.read_all(ids, [60, 1, 1])
    expected = torch.zeros(62, dtype=torch.float64)
    for layer, rows in enumerate(by_hand.rows):
        strongest = torch.zeros(62, dtype=torch.float64)
        for head, weights in enumerate(rows[-1]):
            for slot, weight in enumerate(weights.tolist()):
                place = by_hand.places[layer][head][slot]
                strongest[place] = max(float(strongest[place]), weight)
        expected += strongest
    with lengthwise.stack("snapkv:budget=20,window=4").on(model) as run, torch.no_grad():
        cache = run.cache()
        for part in ids[:61].split([60, 1]):
            model(part[None], past_key_values=cache)
        with run.watching(cache) as watch:
            model(ids[None, 61:], past_key_values=cache)
    torch.testing.assert_close(watch.mass[0][:62].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", [{}, {"hot": 5}, {"hot": 0, "arena": Disk}, {"hot": 40, "codec": Rounded()}])
def test_a_lane_keeps_by_head(layout: dict[str, Any]) -> None:
    """Against a list for each head, through many evictions: alike in all heads, or each its own."""
    draw = torch.Generator().manual_seed(1)
    lane = Lane(3, 2, torch.float32, torch.device("cpu"), Layout(**layout))
    lists: list[list[list[float]]] = [[], [], []]
    most = 0
    for turn in range(12):
        x = torch.randint(0, 99, (3, 63, 2), generator=draw).float()
        lane.append(x)
        lane.settle()
        most = max(most, lane.cold_tokens)
        for head, own in enumerate(lists):
            own += x[head].tolist()
        n, count = len(lists[0]), (len(lists[0]) * 2) // 3
        slots = torch.stack([torch.randperm(n, generator=draw)[:count].sort().values for _ in lists])
        slots = slots[0] if turn % 4 == 3 else slots
        lane.keep(slots)
        for head, row in enumerate(slots.expand(3, -1).tolist()):
            lists[head] = [lists[head][s] for s in row]
        assert len(lane) == count
        assert lane.read(0, count).tolist() == lists
        some = torch.arange(count)[::3]
        assert lane.gather(some).tolist() == [own[::3] for own in lists]
    assert (most > 0) == bool(layout)
