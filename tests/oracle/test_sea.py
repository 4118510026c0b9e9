"""SEA against an estimate and a mask that are built by hand, key by key, and what distilling is for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.attention import _estimator
from lengthwise.attention.sea import Sea
from lengthwise.core import compat, scoring
from lengthwise.core.grammar import parse
from lengthwise.core.stack import Stack, refusals
from lengthwise.errors import BadParameter

LENGTH = 331


def drawn(model, seed: int = 5) -> _estimator.Estimator:  # type: ignore[no-untyped-def]
    """An estimator whose decoder is not zero."""
    facts = compat.model_facts(model)
    shape = len(facts.layer_kinds), facts.heads, facts.kv_heads, facts.head_dim, 7
    estimator = _estimator.Estimator(*shape, seed=seed).requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for name in ("up", "up_bias", "down", "down_bias"):
        x = getattr(estimator, name)
        x.copy_(torch.randn(x.shape, generator=draw))
    return estimator


def convolved(c: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """Channels c [I, T] through w [O, I, 3], with zeros at the ends."""
    out = bias.double()[:, None].repeat(1, c.shape[1])
    for t in range(c.shape[1]):
        for j in (-1, 0, 1):
            if 0 <= t + j < c.shape[1]:
                out[:, t] += w[:, :, j + 1].double() @ c[:, t + j]
    return out


def shares(
    e: _estimator.Estimator, layer: int, q: Tensor, k: Tensor, m: int, whole: int, most: int, width: int, scale: float
) -> Tensor:
    """Shares [Hq, whole] of a query q [Hq, D] at position m in the bins of keys k [Hkv, S, D]; `most` are there."""
    heads, group = q.shape[0], q.shape[0] // k.shape[0]
    x, nears = torch.full((heads, most), -15.0, dtype=torch.float64), []
    for h in range(heads):
        s, keys = q[h].double() * scale**0.5, k[h // group].double() * scale**0.5
        phi_q = torch.exp(e.wq[layer, h].double() @ s - s @ s / 2)
        phi_k = torch.exp(keys @ e.wk[layer, h // group].double().T - (keys * keys).sum(1, keepdim=True) / 2)
        mass = [float((phi_k[b * width : (b + 1) * width] @ phi_q).sum()) / len(phi_q) for b in range(whole)]
        near = float((keys[whole * width : m + 1] @ s).exp().sum())
        total = sum(mass) + near
        for b in range(whole):
            x[h, b] = max(-15.0, math.log(mass[b] / total))
        nears.append(math.log(near / total))
    back = torch.tensor([[math.log(1 + max(0, whole - b)) / 5 for b in range(most)]], dtype=torch.float64)
    y = convolved(torch.cat([x / 15, back]), e.up[layer], e.up_bias[layer]).relu()
    logits = (x + convolved(y, e.down[layer], e.down_bias[layer]))[:, :whole]
    return torch.cat([logits, torch.tensor(nears)[:, None]], 1).softmax(-1)[:, :whole]


def chosen(e: _estimator.Estimator, layer: int, q: Tensor, k: Tensor, start: int, method: Sea, scale: float) -> Tensor:
    """What each query sees: bool [Hq, C, S]."""
    (heads, count, _), n, group = q.shape, k.shape[1], q.shape[0] // k.shape[0]
    width = next(64 << i for i in range(20) if n <= (64 << i) * method.bins)
    seen = torch.zeros(heads, count, n, dtype=torch.bool)
    tiles = [range(a, min(count, a + 64)) for a in range(0, count, 64)]
    most = max(1, (start + tiles[-1][0]) // width)
    for rows in tiles:
        whole = (start + rows[0]) // width
        score = {}
        for row in rows if whole else ():
            found = shares(e, layer, q[:, row], k, start + row, whole, most, width, scale)
            for h in range(heads):
                for b in range(whole):
                    score[h // group, b] = max(score.get((h // group, b), 0.0), float(found[h, b]))
        best = sorted(score, key=lambda pair: -score[pair])[: max(1, round(method.top * k.shape[0] / width))]
        for h in range(heads):
            for row in rows:
                seen[h, row, whole * width : start + row + 1] = True
                for g, b in best:
                    if g == h // group:
                        seen[h, row, b * width : (b + 1) * width] = True
    return seen


@pytest.mark.parametrize(("top", "bins"), [(64, 256), (128, 256), (64, 4)])
@pytest.mark.parametrize("architecture", ["llama", "llama-mha"])
def test_sees_what_the_formula_says(
    top: int, bins: int, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, checked = tiny.model(architecture), tiny.tokens(LENGTH), []
    estimator = drawn(model)
    estimator.save(tmp_path / "e.safetensors")
    method = Sea(params=str(tmp_path / "e.safetensors"), top=top, bins=bins)
    original = scoring.Scorer._listed

    def check(self, lists):  # type: ignore[no-untyped-def]
        out, lse = original(self, lists)
        view = self.view
        if view.layer == 1 and (len(view.positions) == 1 or view.kv.n == 330):
            k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
            group = view.q.shape[0] // k.shape[0]
            mask = chosen(estimator, view.layer, view.q, k, view.start, method, view.scale)
            logits = view.q.double() @ k.repeat_interleave(group, 0).double().transpose(1, 2) * view.scale
            expected = logits.masked_fill(~mask, float("-inf")).softmax(-1) @ v.repeat_interleave(group, 0).double()
            torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-4)
            checked.append((len(view.positions), int(mask.sum())))
        return out, lse

    monkeypatch.setattr(scoring.Scorer, "_listed", check)
    with Stack([method]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids, chunk=110)
        model(ids[:, -1:], past_key_values=cache)
    assert {1, 110} <= {rows for rows, _ in checked}
    assert run.ledger.acted["sea"] > 0


def test_the_cost_of_the_estimate_is_linear() -> None:
    """As many numbers are held, and as many pairs scored for each token, at any length; dense has twice as many."""
    model, counts, sizes = tiny.model("llama"), [], []
    for length in (1024, 2048):
        with Stack([Sea(top=64, bins=16)]).on(model) as run:
            cache = run.prefill(tiny.tokens(length + 1), chunk=512)
            seen, counts_before = run.ledger.pairs, length
            sizes.append(sum(s["sums"].numel() for (_, _, name), s in cache.states.items() if name == "sea"))
        counts.append(seen / counts_before)
    assert sizes[0] == sizes[1]
    assert counts[1] < 1.7 * counts[0]


def test_an_estimate_of_the_kernel_alone_is_near_the_truth() -> None:
    """FAVOR+ with many features, no decoder: the shares of small queries and keys."""
    torch.manual_seed(0)
    e = _estimator.Estimator(1, 4, 2, 16, 16384).requires_grad_(False)
    q, k = torch.randn(4, 5, 16), torch.randn(2, 320, 16)
    rows = torch.tensor([319, 310, 300, 290, 257])
    near, exact = _estimator.teacher(q, k, rows, 0.25, 64)
    bins = e.of_keys(0, k, 0.25).unflatten(1, (-1, 64)).sum(2)
    got = e.shares(0, q, bins, rows // 64, near, 0.25).exp()
    torch.testing.assert_close(got.sum(-1), torch.ones(4, 5), atol=1e-5, rtol=0)
    assert float((got - exact).abs().mean()) < 0.02
    x, y = torch.randn(2, 40, 16) * 0.6, torch.randn(2, 30, 16) * 0.6
    kernel = e.of_keys(0, x, 0.25) @ e.of_keys(0, y, 0.25).transpose(1, 2) / 16384
    off = kernel / (x @ y.transpose(1, 2) * 0.25).exp() - 1
    assert float(off.abs().mean()) < 0.05
    assert abs(float(off.mean())) < 0.02
    direct = (q[0, 0] @ k[0].T * 0.25).softmax(0)
    torch.testing.assert_close(exact[0, 0, :4], direct[:256].view(4, 64).sum(1), atol=1e-5, rtol=1e-4)


def test_distilling_finds_what_the_kernel_alone_does_not() -> None:
    """KL to a tiny teacher falls, and more of its far attention lies in the mask; the model is as before."""
    model = tiny.model("llama")
    before, was = tiny.plain_logits(model, tiny.tokens(60)), [p.requires_grad for p in model.parameters()]
    losses: list[float] = []
    texts = [tiny.tokens(512, seed=i)[0] for i in range(3)]
    told = {"progress": lambda *given: losses.append(given[2])}
    e = _estimator.fit(model, texts, steps=30, rows=48, rate=0.02, **told)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not e.wq.requires_grad
    assert torch.equal(tiny.plain_logits(model, tiny.tokens(60)), before)
    assert [p.requires_grad for p in model.parameters()] == was


def test_refusals(tmp_path: Path) -> None:
    facts = compat.model_facts(tiny.model("llama"))
    for other in ("int8", "streaming-llm", "h2o", "dynamic-ntk:factor=2", "block-sparse"):
        assert any("sea" in r and other.split(":")[0] in r for r in refusals(parse(f"sea + {other}"))), other
    assert not refusals(parse("sea + yarn:factor=2"))
    path = tmp_path / "e.safetensors"
    assert any("scripts/fit_sea.py" in r for r in refusals([Sea(params=str(path))]))
    _estimator.Estimator(2, 4, 2, 16).save(path)
    assert any("not for this llama" in r for r in refusals([Sea(params=str(path))], facts))
    for bad in ({"top": 10}, {"bins": 3}):
        with pytest.raises(BadParameter):
            Sea(**bad)
