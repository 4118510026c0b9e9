"""LServe against lists made by hand: streaming heads, two levels of pages, and choices that hold for a few tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.attention import __main__ as program
from lengthwise.attention import _calibrate
from lengthwise.attention.lserve import Lserve
from lengthwise.core import compat, scoring
from lengthwise.core.grammar import parse
from lengthwise.core.stack import Stack, refusals
from lengthwise.errors import BadParameter

LENGTH = 700


def pages(q: Tensor, k: Tensor, budget: int) -> set[int]:
    """Physical pages of the queries q [group, D] of one KV head among keys k [n, D]."""
    n = len(k)
    score = dict.fromkeys(range(-(-n // 64)), float("-inf"))
    for a in range(0, n - n % 16, 16):
        page = k[a : a + 16].double()
        for x in q.double():
            bound = float(torch.maximum(x * page.amin(0), x * page.amax(0)).sum())
            assert bound >= float((page @ x).max()) - 1e-9
            score[a // 64] = max(score[a // 64], bound)
    order = sorted(score, key=lambda p: (p not in (0, len(score) - 1), -score[p]))
    return set(order[: budget // 64])


@pytest.mark.parametrize("architecture", ["llama", "llama-mha", "gemma2"])
@pytest.mark.parametrize("gated", [True, False])
def test_heads_stream_and_read_pages(
    architecture: str, gated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny.model(architecture), tiny.tokens(LENGTH)
    kv_heads = compat.model_facts(model).kv_heads
    streams = [[gated and (h + layer) % 2 == 1 for h in range(kv_heads)] for layer in range(2)]
    _calibrate.write_gates(tmp_path / "g.json", streams)
    method = Lserve(gates=str(tmp_path / "g.json") if gated else None, sinks=64, window=100, budget=256, reuse=3)
    chosen: dict[tuple[int, int], set[int]] = {}
    steps: dict[int, int] = {}
    checked = []
    original = scoring.Scorer._listed

    def check(self, lists):  # type: ignore[no-untyped-def]
        out, lse = original(self, lists)
        view = self.view
        q = view.rope.rotate(view.q, view.positions) if view.raw else view.q
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        n, count, group = view.kv.n, q.shape[1], 4 // k.shape[0]
        step = steps.get(view.layer, 0)
        for lane in range(k.shape[0]):
            mask = torch.ones(count, n, dtype=torch.bool)
            if streams[view.layer][lane]:
                for a in range(0, count, 64):
                    stop = min(n, n - count + a + 64)
                    blocks = -(-stop // 64)
                    mask[a : a + 64] = (torch.arange(n) < 64) | (torch.arange(n) >= 64 * (blocks - 3))
            elif count == 1:
                if step % 3 == 0:
                    chosen[view.layer, lane] = pages(q[lane * group : (lane + 1) * group, 0], k[lane], 256)
                mask[0] = torch.tensor([t // 64 in chosen[view.layer, lane] for t in range(n)])
            mask &= torch.arange(n) <= view.positions[:, None]
            for h in range(lane * group, (lane + 1) * group):
                logits = q[h].double() @ k[lane].double().T * view.scale
                if view.softcap is not None:
                    logits = view.softcap * torch.tanh(logits / view.softcap)
                logits = logits.masked_fill(~mask, float("-inf"))
                expected = logits.softmax(-1) @ v[lane].double()
                torch.testing.assert_close(out[h].double(), expected, atol=1e-5, rtol=1e-4)
        if count == 1:
            steps[view.layer] = step + 1
        checked.append(count)
        return out, lse

    monkeypatch.setattr(scoring.Scorer, "_listed", check)
    with Stack([method]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :-7], chunk=300)
        for i in range(LENGTH - 8, LENGTH - 1):
            model(ids[:, i : i + 1], past_key_values=cache)
    assert steps[1] == 7
    assert (300 in checked) == gated


def test_a_page_that_opens_between_two_choices_is_read() -> None:
    model, ids = tiny.model("llama"), tiny.tokens(520)
    with Stack([Lserve(budget=128, reuse=16)]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :510], chunk=300)  # reads 509
        before = []
        for i in range(509, 516):
            model(ids[:, i : i + 1], past_key_values=cache)
            before.append(cache.states[0, 0, "lserve"]["pages"].shape[1])
    assert before == [8] * 7  # chosen once, when there were 8 pages
    state = cache.states[0, 0, "lserve"]
    assert int(state["left"]) == 16 - 7
    assert all(isinstance(value, int | Tensor) for value in state.values())


def test_reading_more_ends_a_choice() -> None:
    model, ids = tiny.model("llama"), tiny.tokens(700)
    with Stack([Lserve(budget=128, reuse=16)]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :500])
        model(ids[:, 499:500], past_key_values=cache)
        model(ids[:, 500:650], past_key_values=cache)
        model(ids[:, 650:651], past_key_values=cache)
    assert cache.states[0, 0, "lserve"]["pages"].shape[1] == 11


def test_choices_are_counted_when_they_are_made() -> None:
    model, ids, spent = tiny.model("llama"), tiny.tokens(600), []
    with Stack([Lserve(budget=128, reuse=4)]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids)
        for _ in range(8):
            before = run.ledger.pairs
            model(ids[:, -1:], past_key_values=cache)
            spent.append(run.ledger.pairs - before)
    bounds = 2 * 4 * 2 * (600 // 16)
    assert all(bounds < spent[i] <= bounds + 128 * 4 * 2 for i in (0, 4))
    assert all(spent[i] <= 128 * 4 * 2 for i in (1, 2, 3, 5, 6, 7))


def test_gates_are_found_by_what_heads_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny.model("llama"), tmp_path / "heads.json"
    ids = _calibrate.repeated(97, 500, period=200)
    assert torch.equal(ids[:, :200], ids[:, 200:400])
    gates, far = _calibrate.streaming_heads(model, ids, share=0.5, sinks=8, window=40)
    assert sum(map(sum, gates)) == 2
    away = [x for xs, gs in zip(far, gates) for x, g in zip(xs, gs) if not g]
    near = [x for xs, gs in zip(far, gates) for x, g in zip(xs, gs) if g]
    assert max(near) <= min(away)
    # the same share from the plain model's attention
    eager = tiny.model("llama", attention="eager")
    with torch.no_grad():
        plain = eager(ids, output_attentions=True, use_cache=False).attentions
    m, n = torch.arange(500)[:, None], torch.arange(500)
    for layer, weights in enumerate(plain):
        beyond = (weights[0] * ((n >= 8) & (m - n >= 40))).sum(-1)[:, -256:].mean(-1)
        assert far[layer] == pytest.approx(beyond.view(2, 2).amax(1).tolist(), abs=1e-4)
    monkeypatch.setattr(program.models, "load", lambda name: (model, None))
    program.main(["lserve", "--length", "600", "--out", str(path), "--share", "0.25"])
    assert sum(map(sum, json.loads(path.read_text())["streaming"])) == 1
    other = compat.model_facts(tiny.model("llama-mha"))
    assert "find them anew" in refusals([Lserve(gates=str(path))], other)[0]


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text('{"gates": []}')
    for name in ("g", "none"):
        with pytest.raises(BadParameter, match="holds no gates"):
            parse(f"lserve:gates={tmp_path}/{name}.json")
