"""Sink-and-window methods against caches that really evict and renumber, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.core.attach import Run
from reference import Held, Reference, Rule, distances, plain

MODELS = ("llama", "llama-mha")


def run_logits(text: str, model: Any, ids: Tensor, chunks: Sequence[int], block: int = 1024) -> tuple[Tensor, Run]:
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        run.block, cache = block, run.cache()
        parts = [model(part[None], past_key_values=cache).logits[0] for part in ids.split(list(chunks))]
    return torch.cat(parts), run


def splits(length: int) -> list[tuple[list[int], int]]:
    """Ways to read `length` tokens: at once, in odd chunks and small blocks, and the end token by token."""
    decode = min(20, length - 1)
    odd = [37] * ((length - decode) // 37)
    rest = length - decode - sum(odd)
    return [([length], 1024), ([length], 16), ([*odd, *([rest] if rest else []), *[1] * decode], 23)]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)


def test_the_reference_is_a_llama() -> None:
    for name in MODELS:
        ids = tiny.tokens(63)[0]
        for chunk in (1, 20, 63):
            expected = Reference(tiny.model(name), plain).read_all(ids, chunk)
            close(tiny.plain_logits(tiny.model(name), ids[None])[0], expected)


def evicting(sinks: int, window: int) -> Rule:
    """StreamingLLM: drop, renumber 0..n-1 by place in the cache, then attend. For one token at a time."""

    def rule(held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        n = len(held.positions)
        if n > sinks + window:
            held.keep(torch.cat([torch.arange(sinks), torch.arange(n - window, n)]))
        slots = torch.arange(len(held.positions))
        d = distances(slots[-1:], slots)
        return d >= 0, d

    return rule


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("sinks", "window"), [(4, 16), (0, 16), (3, 1), (7, 63)])
@pytest.mark.parametrize("length", [1, 63, 211])
def test_streaming_llm(name: str, sinks: int, window: int, length: int) -> None:
    ids, model = tiny.tokens(length)[0], tiny.model(name)
    expected = Reference(model, evicting(sinks, window)).read_all(ids, 1)
    for chunks, block in splits(length):
        got, run = run_logits(f"streaming-llm:sinks={sinks},window={window}", model, ids, chunks, block)
        close(got, expected)
        if length > 200 and block < 1024:
            assert all(layer.evicted_tokens > 0 for layer in run.ledger.layers)


def test_streaming_llm_at_length() -> None:
    """A thousand tokens, twice the trained window."""
    ids, model = tiny.tokens(1000)[0], tiny.model("llama")
    expected = Reference(model, evicting(4, 20)).read_all(ids, 1)
    got, run = run_logits("streaming-llm:sinks=4,window=20", model, ids, [900] + [1] * 100)
    close(got, expected)
    assert run.ledger.layers[0].held_tokens <= 4 + 20 + 64 + 1
    assert run.ledger.layers[0].evicted_tokens >= 900


def capped(sinks: int, window: int, limit: int) -> Rule:
    """LM-Infinite: the Λ mask, and no distance beyond the limit."""

    def rule(held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        d = distances(positions, held.positions)
        return (d >= 0) & ((d < window) | (held.positions < sinks)), d.clamp(max=limit)

    return rule


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("sinks", "window", "limit"), [(4, 16, None), (0, 16, None), (10, 1, None), (5, 63, 40), (5, 20, 50), (90, 20, 50)]
)
@pytest.mark.parametrize("length", [1, 63, 211])
def test_lm_infinite(name: str, sinks: int, window: int, limit: int | None, length: int) -> None:
    ids, model = tiny.tokens(length)[0], tiny.model(name)
    expected = Reference(model, capped(sinks, window, limit or window)).read_all(ids, 50)
    text = f"lm-infinite:sinks={sinks},window={window}" + (f",limit={limit}" if limit else "")
    for chunks, block in splits(length):
        got, run = run_logits(text, model, ids, chunks, block)
        close(got, expected)
        if length > sinks + window + 64 + 50 and block < 1024:
            assert all(layer.evicted_tokens > 0 for layer in run.ledger.layers)


def test_lm_infinite_takes_the_trained_window() -> None:
    ids, model = tiny.tokens(tiny.WINDOW + 150)[0], tiny.model("llama")
    expected = Reference(model, capped(100, tiny.WINDOW, tiny.WINDOW)).read_all(ids, 100)
    got, _ = run_logits("lm-infinite", model, ids, [len(ids)])
    close(got, expected)


def with_middle(sinks: int, window: int, top: int, first: int, at: int, oracle: list[Reference]) -> Rule:
    """LM-Infinite's retrieval: the last query of a chunk also sees, per head, the middle keys that fit it best."""
    lambda_mask = capped(sinks, window, window)

    def rule(held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        seen, d = lambda_mask(held, q, positions)
        shape = (len(q), *seen.shape)
        seen, d = seen.expand(shape).clone(), d.expand(shape).clone()
        m = int(positions[-1])
        middle = [j for j in range(m + 1) if j >= sinks and m - j >= window]
        if held.layer >= first and len(middle) >= top:
            fit = oracle[0].scores(q[:, -1:], held.k[:, middle], torch.full((len(q), 1, len(middle)), at))
            for head in range(len(q)):
                for j in fit[head, 0].argsort(descending=True)[:top]:
                    seen[head, -1, middle[j]] = True
                    d[head, -1, middle[j]] = at
        return seen, d

    return rule


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("top", "first", "at"), [(1, 0, None), (5, 1, 30), (3, 0, 3)])
def test_lm_infinite_top_k(name: str, top: int, first: int, at: int | None) -> None:
    """The last query of a forward pass looks into the middle, whatever the size of the blocks in it."""
    model, ids, sinks, window = tiny.model(name), tiny.tokens(101)[0], 4, 16
    oracle: list[Reference] = []
    oracle.append(Reference(model, with_middle(sinks, window, top, first, at or window // 2, oracle)))
    chunks = [10, 60, 20, *[1] * 11]
    expected = torch.cat([oracle[0].read(part) for part in ids.split(chunks)])
    text = f"lm-infinite:sinks={sinks},window={window},top_k={top},top_k_layer={first}"
    for block in (1024, 7):
        got, run = run_logits(text + (f",top_k_distance={at}" if at else ""), model, ids, chunks, block)
        close(got, expected)
        assert run.ledger.layers[0].evicted_tokens == 0
    without, _ = run_logits(f"lm-infinite:sinks={sinks},window={window}", model, ids, chunks)
    assert (without - got)[-1].abs().max() > 1e-2


def test_top_k_uses_the_softcap() -> None:
    """With every middle key chosen, at the distance where all far keys stand, a model with a softcap is as if the
    middle were sinks."""
    model, ids = tiny.model("gemma2"), tiny.tokens(60)[0]
    with lengthwise.stack("lm-infinite:sinks=20,window=40").on(model) as run, torch.no_grad():
        cache = run.cache()
        model(ids[None, :59], past_key_values=cache)
        expected = model(ids[None, 59:], past_key_values=cache).logits
    text = "lm-infinite:sinks=10,window=40,top_k=10,top_k_layer=0,top_k_distance=40"
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        cache = run.cache()
        model(ids[None, :59], past_key_values=cache)
        got = model(ids[None, 59:], past_key_values=cache).logits
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
