"""Block-sparse attention against a mask that is built by hand, head by head and block by block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.attention.block_sparse import BlockSparse
from lengthwise.core import scoring
from lengthwise.core.grammar import parse
from lengthwise.core.stack import Stack, refusals

LENGTH = 700


def chosen(q: Tensor, k: Tensor, method: BlockSparse, start: int, step: int) -> Tensor:
    """What each query sees: bool [Hq, C, S], by the method's formula; queries stand at the last C slots."""
    heads, count, slots = q.shape[0], q.shape[1], k.shape[1]
    groups = heads // k.shape[0]
    seen = torch.zeros(heads, count, slots, dtype=torch.bool)
    sinks, window = -(-method.sinks // 64), -(-method.window // 64) + 1
    for a in range(0, count, step):
        rows = range(a, min(count, a + step))
        limit = -(-(start + rows[-1] + 1) // 64)
        for head in range(heads):
            kv = head // groups
            shared = range(kv * groups, (kv + 1) * groups) if method.share == "group" else [head]
            score = {}
            for b in range(sinks, max(sinks, limit - window)):
                keys = k[kv, 64 * b : 64 * (b + 1)].double()
                each = []
                for h in shared:
                    for row in rows:
                        query = q[h, row].double()
                        if method.score == "mean":
                            each.append(float(query @ keys.mean(0)))
                        else:
                            each.append(float(torch.maximum(query * keys.amin(0), query * keys.amax(0)).sum()))
                score[b] = max(each)
            best = sorted(score, key=lambda b: -score[b])[: method.top]
            for b in {*range(min(sinks, limit)), *best, *range(max(0, limit - window), limit)}:
                seen[head, rows[0] : rows[-1] + 1, 64 * b : 64 * (b + 1)] = True
    positions = torch.arange(start, start + count)
    return seen & (torch.arange(slots) <= positions[:, None])


@pytest.mark.parametrize("score", ["mean", "bounds"])
@pytest.mark.parametrize("share", ["group", "head"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_sees_what_the_formula_says(score: str, share: str, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = BlockSparse(top=2, sinks=64, window=100, score=score, share=share)  # type: ignore[arg-type]
    model, ids = tiny.model(architecture), tiny.tokens(LENGTH)
    checked = []
    original = scoring.Scorer._listed

    def check(self, lists):  # type: ignore[no-untyped-def]
        out, lse = original(self, lists)
        view = self.view
        q = view.rope.rotate(view.q, view.positions) if view.raw else view.q
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        mask = chosen(q, k, method, view.start, 64)
        groups = q.shape[0] // k.shape[0]
        logits = q.double() @ k.repeat_interleave(groups, 0).double().transpose(1, 2) * view.scale
        if view.softcap is not None:
            logits = view.softcap * torch.tanh(logits / view.softcap)
        logits = logits.masked_fill(~mask, float("-inf"))
        expected = logits.softmax(-1) @ v.repeat_interleave(groups, 0).double()
        torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse.double(), logits.logsumexp(-1), atol=1e-5, rtol=1e-5)
        checked.append((len(view.positions), int(mask.sum())))
        return out, lse

    monkeypatch.setattr(scoring.Scorer, "_listed", check)
    with Stack([method]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids, chunk=150)
        for i in range(3):
            model(ids[:, -1 - i : LENGTH - i], past_key_values=cache)
    sizes = {rows for rows, _ in checked}
    assert 1 in sizes
    assert 150 in sizes
    listed = [layer for layer in run.ledger.layers if layer.kind == "full"]
    assert sum(pairs for _, pairs in checked) <= sum(layer.pairs for layer in listed)
    assert all(layer.pairs < layer.dense_pairs for layer in listed)


def test_a_planted_key_is_found_when_its_block_is_chosen() -> None:
    """Bounds are no less than any dot product of the block, so the block of an outstanding key comes first."""
    method = BlockSparse(top=1, sinks=0, window=1)
    torch.manual_seed(0)
    q, k = torch.randn(4, 64, 16), torch.randn(2, 640, 16) * 0.1
    k[:, 200] = 4 * q[::2, 10]
    mask = chosen(q, k, method, 576, 64)
    assert mask[0, 10, 192:256].all()
    assert mask[2, 10, 192:256].all()


def test_refuses_what_moves_drops_or_codes_keys() -> None:
    for other in ("int8", "streaming-llm", "infllm", "sirllm", "offload", "dynamic-ntk:factor=2"):
        reasons = refusals(parse(f"block-sparse + {other}"))
        assert any("block-sparse" in r for r in reasons), other
    assert not refusals(parse("block-sparse + yarn:factor=2"))
