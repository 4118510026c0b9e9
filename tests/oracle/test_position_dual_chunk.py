"""Dual chunk attention against a Llama that is given the full matrix of distances, filled pair by pair."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.core import compat
from lengthwise.core.stack import Stack, refusals
from lengthwise.position.dual_chunk import DualChunk
from reference import Held, Reference, Rule, distances

IDS = tiny.tokens(150)[0]
WAYS: list[tuple[list[int], int]] = [([150], 1024), ([150], 13), ([41, 63, 37, *[1] * 9], 23)]


@functools.cache
def matrix(n: int, window: int, local: int) -> Tensor:
    """Distances [n, n], as the paper defines them: one c x c tile for every two chunks, whose keys count from 0."""
    c = window - local
    intra = torch.arange(c)
    succ = torch.tensor([min(i + c, window) for i in range(c)])
    inter = torch.tensor([min(2 * c - 1, window)] * c)
    chunks = -(-n // c)
    out = torch.zeros(chunks * c, chunks * c, dtype=torch.long)
    for a in range(chunks):
        for b in range(a + 1):
            query = intra if a == b else succ if a == b + 1 else inter
            out[a * c : a * c + c, b * c : b * c + c] = query[:, None] - torch.arange(c)[None]
    return out[:n, :n]


def rule(window: int, local: int) -> Rule:
    def seen(held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        table = matrix(1201, window, local)
        return distances(positions, held.positions) >= 0, table[positions][:, held.positions]

    return seen


def read(text: str, name: str, ids: Tensor, chunks: list[int], block: int = 1024) -> Tensor:
    model = tiny.model(name)
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        run.block, cache = block, run.cache()
        return torch.cat([model(part[None], past_key_values=cache).logits[0] for part in ids.split(chunks)])


def test_distances_stay_in_the_window() -> None:
    plain = torch.arange(90)[:, None] - torch.arange(90)[None]
    for window, local in ((24, 8), (17, 3), (9, 0), (8, 4)):
        found = matrix(90, window, local)
        assert found[plain >= 0].max() <= window
        assert found[plain >= 0].min() >= 0
        near = (plain >= 0) & (plain <= local)  # across a border too
        assert torch.equal(found[near], plain[near])


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize(("window", "local"), [(24, 8), (63, 1), (17, 0), (150, 70), (8, 4)])
def test_logits(name: str, window: int, local: int) -> None:
    expected = Reference(tiny.model(name), rule(window, local)).read(IDS)
    for chunks, block in WAYS:
        got = read(f"dual-chunk:window={window},local={local},sharpen=false", name, IDS, chunks, block)
        torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)


def test_defaults_follow_the_trained_window() -> None:
    """w = L, local = L / 32, and logits times (0.1 ln(n/L) + 1)^2 once n tokens, more than L, are read."""
    ids, window = tiny.tokens(1201)[0], tiny.WINDOW
    factor: Callable[[int], float] = lambda m: max(1.0, 0.1 * math.log((m + 1) / window) + 1) ** 2  # noqa: E731
    expected = Reference(tiny.model("llama"), rule(window, window // 32), factor).read_all(ids, 400)
    for chunks in ([1201], [700, 500, 1]):
        got = read("dual-chunk", "llama", ids, chunks)
        torch.testing.assert_close(got.double(), expected, atol=3e-4, rtol=1e-4)


def test_exact_up_to_the_window() -> None:
    plain = tiny.plain_logits(tiny.model("llama"), IDS[None])[0]
    got = read("dual-chunk:window=100,local=40", "llama", IDS, [150])
    torch.testing.assert_close(got[:101], plain[:101], atol=1e-5, rtol=1e-5)
    assert (got[101:] - plain[101:]).abs().max() > 1e-2


def test_rows_have_their_own_chunks() -> None:
    """Chunks are counted from each row's own first token, also when a block holds padding."""
    model = tiny.model("llama")
    ids, mask = tiny.tokens(90, batch=2), torch.ones(2, 90, dtype=torch.long)
    mask[1, :13] = 0
    with lengthwise.stack("dual-chunk:window=24,local=8").on(model) as run, torch.no_grad():
        cache = run.cache()
        got = torch.cat(
            [
                model(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits
                for a, b in ((0, 50), (50, 90))
            ],
            1,
        )
    for row, pad in ((0, 0), (1, 13)):
        alone = read("dual-chunk:window=24,local=8", "llama", ids[row, pad:], [90 - pad])
        torch.testing.assert_close(got[row, pad:], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("other", ["int8:residual=16", "offload:hot=16,pages=1"])
def test_beside_a_store(other: str) -> None:
    """Keys in coded form keep their place in the chunk."""
    text = "dual-chunk:window=24,local=8"
    alone, both = (read(t, "llama", IDS, [50, 50, 50]) for t in (text, f"{text} + {other}"))
    torch.testing.assert_close(both, alone, atol=1e-4 if "offload" in other else 0.3, rtol=1e-4)


def test_refusals() -> None:
    facts = compat.model_facts(tiny.model("llama"))
    assert "beyond the trained window of 512" in refusals([DualChunk(window=600)], facts)[0]
    assert "more than half the trained window" in refusals([DualChunk(local=257)], facts)[0]
    with pytest.raises(lengthwise.errors.BadParameter, match="at most half"):
        DualChunk(window=8, local=5)
    with pytest.raises(lengthwise.errors.StackRefused, match=r"dual-chunk cuts .* sirllm scores whole passes"):
        Stack([*lengthwise.stack("dual-chunk").methods, *lengthwise.stack("sirllm").methods])
