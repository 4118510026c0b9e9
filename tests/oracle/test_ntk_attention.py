"""NTK-attention against sums over single keys, and its prefix beside the explicit one that it stands for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.attention import _prefix
from lengthwise.attention.ntk_attention import NtkAttention
from lengthwise.core import compat
from lengthwise.core.grammar import parse
from lengthwise.core.scoring import Scorer
from lengthwise.core.stack import Stack, refusals
from lengthwise.errors import BadParameter

LENGTH = 121


def phi(x: Tensor) -> Tensor:
    """The feature map, one number after the other."""
    y = [float(a) / len(x) ** 0.25 for a in x]
    return torch.tensor([a + 1 if a > 0 else math.exp(a) for a in y], dtype=torch.float64)


def expected(q: Tensor, k: Tensor, v: Tensor, seen: list[int], z: Tensor, kk: Tensor, scale: float) -> Tensor:
    """One query q [D] over keys k [S, D]: numerator over denominator."""
    top, bottom = phi(q) @ z.double(), float(phi(q) @ kk.double())
    for n in seen:
        w = math.exp(float(q.double() @ k[n].double()) * scale)
        top, bottom = top + w * v[n].double(), bottom + w
    return top / bottom


def prefix_of(model, seed: int = 3):  # type: ignore[no-untyped-def]
    facts = compat.model_facts(model)
    prefix = _prefix.Prefix(len(facts.layer_kinds), facts.heads, facts.head_dim).requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for x in (prefix.z, prefix.k):
        x.copy_(torch.randn(x.shape, generator=draw) * 3)
    return prefix


@pytest.mark.parametrize("architecture", ["llama", "llama-mha"])
@pytest.mark.parametrize("trained", [True, False])
def test_attention_is_that_of_the_formula(
    architecture: str, trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, checked = tiny.model(architecture), tiny.tokens(LENGTH), []
    known = prefix_of(model)
    known.save(tmp_path / "p.safetensors")
    method = NtkAttention(params=str(tmp_path / "p.safetensors")) if trained else NtkAttention(prefix=23)
    original = Scorer.score

    def check(self, cut, extras):  # type: ignore[no-untyped-def]
        out, lse = original(self, cut, extras)
        view = self.view
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        group, dim = view.q.shape[0] // k.shape[0], k.shape[2]
        for h in range(view.q.shape[0]):
            own_k, own_v = k[h // group], v[h // group]
            first = 0 if trained or view.start < 23 else 23
            z, kk = torch.zeros(dim, dim), torch.zeros(dim)
            if trained:
                z, kk = known.z[view.layer, h], known.k[view.layer, h].abs()
            elif first:
                z = sum((phi(own_k[n])[:, None] * own_v[n].double() for n in range(23)), torch.zeros(dim, dim))
                kk = sum((phi(own_k[n]) for n in range(23)), torch.zeros(dim))
            for row in {0, len(view.positions) - 1}:
                m = int(view.positions[row])
                wanted = expected(view.q[h, row], own_k, own_v, list(range(first, m + 1)), z, kk, view.scale)
                torch.testing.assert_close(out[h, row].double(), wanted, atol=1e-4, rtol=1e-4)
                checked.append((m, bool(kk.any())))
        return out, lse

    monkeypatch.setattr(Scorer, "score", check)
    with Stack([method]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids, chunk=50)
        model(ids[:, -1:], past_key_values=cache)
    assert (LENGTH - 1, True) in checked
    assert trained or (23, True) in checked  # the first token after the prefix, though both were read in one chunk
    assert (0, trained) in checked
    assert run.ledger.acted["ntk-attention"] > 0
    assert run.ledger.pairs > 0


def test_a_prefix_without_weight_adds_its_values() -> None:
    """k = 0 with Z beside it is a numerator alone, as in the formula; Z = k = 0 is nothing."""
    q, z = torch.randn(2, 5, 8), torch.randn(2, 8, 8)
    out, lse = _prefix.partial(q, z, torch.zeros(2, 8))
    torch.testing.assert_close(out * lse.exp()[..., None], _prefix.feature(q) @ z, atol=1e-5, rtol=1e-5)
    out, lse = _prefix.partial(q, z * 0, torch.zeros(2, 8))
    assert not (out * lse.exp()[..., None]).any()
    assert float(lse.max()) < -40


def test_beside_the_explicit_prefix() -> None:
    """d^2 + d numbers for any m; where exp(q.k) is nearly linear they give what the explicit prefix gives."""
    sizes, errors = set(), []
    for m in (16, 256, 4096):
        draw = torch.Generator().manual_seed(m)
        q, keys = (torch.randn(1, n, 16, generator=draw) * 0.1 for n in (40, m))
        values = torch.randn(1, m, 16, generator=draw) + torch.linspace(-2, 2, 16)
        z, k = _prefix.summed(keys, values)
        sizes.add((z.numel(), k.numel()))
        explicit = (q @ keys.transpose(1, 2) * 0.25).softmax(-1) @ values
        out, _ = _prefix.partial(q, z, k)
        errors.append(float((out - explicit).norm() / explicit.norm()))
    assert sizes == {(256, 16)}
    assert max(errors) < 0.01


def test_the_training_form_is_the_reading_form(tmp_path: Path) -> None:
    model, ids = tiny.model("llama"), tiny.tokens(70)
    prefix = prefix_of(model)
    prefix.save(tmp_path / "p.safetensors")
    with _prefix.attending(model, _prefix.attend_beside(prefix)), torch.no_grad():
        trained = model(ids, use_cache=False).logits
    with Stack([NtkAttention(params=str(tmp_path / "p.safetensors"))]).on(model) as run, torch.no_grad():
        cache = run.cache()
        read = torch.cat([model(part, past_key_values=cache).logits for part in ids.split(33, 1)], 1)
    torch.testing.assert_close(read, trained, atol=1e-4, rtol=1e-4)
    assert (read - tiny.plain_logits(model, ids)).abs().max() > 0.1


def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, ids = tiny.model("llama"), tiny.tokens(60, batch=4)
    before, was = tiny.plain_logits(model, ids), [p.requires_grad for p in model.parameters()]
    losses: list[float] = []
    prefix = _prefix.fit(
        model, lambda step: (ids, ids), steps=12, rate=0.05, progress=lambda *given: losses.append(given[2])
    )
    with torch.no_grad():
        plain = float(model(ids, labels=ids).loss)
    assert losses[0] == pytest.approx(plain, abs=0.02)
    assert losses[-1] < losses[0] - 0.1
    assert torch.equal(tiny.plain_logits(model, ids), before)
    assert [p.requires_grad for p in model.parameters()] == was
    prefix.save(tmp_path / "p.safetensors")
    with Stack([NtkAttention(params=str(tmp_path / "p.safetensors"))]).on(model) as run:
        read = torch.cat([run.losses(row[None]) for row in ids])
    assert float(read.mean()) < losses[0] - 0.1


def test_refusals(tmp_path: Path) -> None:
    facts = compat.model_facts(tiny.model("llama"))
    for other in ("h2o", "streaming-llm", "self-extend", "infllm"):
        assert any(
            "ntk-attention" in r and other in r for r in refusals(parse(f"ntk-attention:prefix=8 + {other}"), facts)
        )
    for other in ("yarn:factor=2", "int4", "offload", "masformer"):
        assert not refusals(parse(f"ntk-attention:prefix=8 + {other}"), facts), other
    assert not refusals(parse("ntk-attention + self-extend:window=16,group=4"), facts)
    path = tmp_path / "p.safetensors"
    assert any("scripts/fit_prefix.py" in r for r in refusals([NtkAttention(params=str(path))]))
    _prefix.Prefix(2, 4, 16).save(path)
    assert any("2 layers of 4 heads of 16" in r for r in refusals([NtkAttention(params=str(path))], facts))
    path.write_bytes(b"nothing")
    assert any("is not a file" in r for r in refusals([NtkAttention(params=str(path))]))
    with pytest.raises(BadParameter, match="not both"):
        NtkAttention(params="a", prefix=1)
