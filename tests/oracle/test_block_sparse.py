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


def chosen(q: Tensor, k: Tensor, method: BlockSparse, start: int, scale: float, softcap: float | None) -> Tensor:
    """What each query sees: bool [Hq, C, S], by the method's formula; queries stand at the last C slots."""
    heads, count, slots = q.shape[0], q.shape[1], k.shape[1]
    groups = heads // k.shape[0]
    seen = torch.zeros(heads, count, slots, dtype=torch.bool)
    sinks, window = -(-method.sinks // 64), -(-method.window // 64) + 1
    for a in range(0, count, 64):
        rows = range(a, min(count, a + 64))
        limit = -(-(start + rows[-1] + 1) // 64)
        always = {b for b in range(limit) if b < sinks or b >= limit - window}
        for kv in range(k.shape[0]):
            shared = range(kv * groups, (kv + 1) * groups)
            score = dict.fromkeys(range(limit), 0.0)
            for h in shared:
                if count == 1:
                    query = q[h, 0].double()
                    for b in score:
                        keys = k[kv, 64 * b : 64 * (b + 1)].double()
                        bound = float(torch.maximum(query * keys.amin(0), query * keys.amax(0)).sum())
                        score[b] = bound if h == shared[0] else max(score[b], bound)
                    continue
                for place in range(64 // method.sample - 1, 64, 64 // method.sample):
                    row = min(a + place, rows[-1])
                    logits = k[kv, : start + row + 1].double() @ q[h, row].double() * scale
                    if softcap is not None:
                        logits = softcap * torch.tanh(logits / softcap)
                    for b, part in enumerate(logits.softmax(0).split(64)):
                        score[b] = max(score[b], float(part.sum()))
            others = sorted(set(score) - always, key=lambda b: -score[b])
            if count == 1:
                picked = others[: method.top] if method.top else others
            else:
                picked, held, wanted = [], sum(score[b] for b in always), method.mass * sum(score.values())
                while others and held < wanted:
                    picked.append(others.pop(0))
                    held += score[picked[-1]]
            for b in {*always, *picked}:
                seen[shared[0] : shared[-1] + 1, rows[0] : rows[-1] + 1, 64 * b : 64 * (b + 1)] = True
    positions = torch.arange(start, start + count)
    return seen & (torch.arange(slots) <= positions[:, None])


@pytest.mark.parametrize(("mass", "sample"), [(0.5, 8), (0.8, 1), (0.6, 4)])
@pytest.mark.parametrize("top", [0, 2])
@pytest.mark.parametrize("architecture", ["llama", "llama-mha", "gemma2"])
def test_sees_what_the_formula_says(
    mass: float, sample: int, top: int, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = BlockSparse(mass=mass, sample=sample, top=top, sinks=64, window=100)
    model, ids = tiny.model(architecture), tiny.tokens(LENGTH)
    checked = []
    original = scoring.Scorer._listed

    def check(self, lists):  # type: ignore[no-untyped-def]
        out, lse = original(self, lists)
        view = self.view
        q = view.rope.rotate(view.q, view.positions) if view.raw else view.q
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        mask = chosen(q, k, method, view.start, view.scale, view.softcap)
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
    assert 150 in sizes
    assert (1 in sizes) == (top > 0)
    listed = [layer for layer in run.ledger.layers if layer.kind == "full"]
    assert sum(pairs for _, pairs in checked) <= sum(layer.pairs for layer in listed)
    assert all(layer.pairs < layer.dense_pairs for layer in listed) or sample == 8


def test_the_scores_of_the_choice_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, attended = tiny.model("llama"), tiny.tokens(641), []
    original = scoring.kernels.attend

    def count(*args, **options):  # type: ignore[no-untyped-def]
        result = original(*args, **options)
        attended.append(result[2])
        return result

    monkeypatch.setattr(scoring.kernels, "attend", count)
    with Stack([BlockSparse(mass=0.5)]).on(model) as run, torch.no_grad():
        run.prefill(ids, chunk=640)
    sampled = sum(range(8, 641, 8)) * run.facts.heads * 2
    assert run.ledger.pairs == sum(attended) + sampled


def test_what_one_head_of_one_sampled_query_needs_is_found() -> None:
    """All other queries want the first block; a mean over them would not reach the planted key."""
    method = BlockSparse(mass=0.6, sample=8, sinks=0, window=1)
    torch.manual_seed(0)
    q, k = torch.zeros(4, 64, 16), torch.randn(2, 640, 16) * 0.1
    k[:, 5, 0] = q[..., 0] = 9.0
    q[1, 15] = 0
    q[1, 15, 1] = k[0, 200, 1] = 9.0
    mask = chosen(q, k, method, 576, 1.0, None)
    assert mask[0, 10, 192:256].all()
    assert not mask[2, 10, 192:256].any()
    assert not mask[0, 10, 320:384].any()


def test_refuses_what_moves_drops_or_codes_keys() -> None:
    for other in ("int8", "streaming-llm", "infllm", "sirllm", "offload", "dynamic-ntk:factor=2"):
        reasons = refusals(parse(f"block-sparse + {other}"))
        assert any("block-sparse" in r for r in reasons), other
    assert not refusals(parse("block-sparse + yarn:factor=2"))
