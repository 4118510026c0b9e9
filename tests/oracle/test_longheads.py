"""LongHeads against its rule written out: query by query, head by head, chunk by chunk."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.cache.longheads import Longheads
from lengthwise.core import saved
from lengthwise.errors import LengthwiseError
from reference import Held, Reference, distances, model_of, text


class Oracle:
    """The rule for `Reference`. `chosen[layer][position]` are the chunks that each head picked."""

    def __init__(self, model: Any, chunk: int, length: int) -> None:
        self.size, self.k, self.reference = chunk, length // chunk, Reference(model, self)
        self.queries: dict[int, list[Tensor]] = {}  # layer -> un-rotated queries [Hq, D] by position
        self.chosen: list[dict[int, list[list[int]]]] = [{} for _ in self.reference.held]

    def __call__(self, held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        self.queries.setdefault(held.layer, []).extend(q.unbind(1))
        heads, n = len(q), len(held.positions)
        d = distances(positions, held.positions).expand(heads, -1, -1).clone()
        seen = d >= 0
        for row, m in enumerate(positions.tolist()):
            if m < self.k * self.size:
                continue
            own = m // self.size
            self.chosen[held.layer][m] = []
            for h in range(heads):
                scores = {b: float(q[h, row] @ self.vector(held, h, b)) for b in range(1, own - 1)}
                best = sorted(sorted(scores, key=lambda b: -scores[b])[: self.k - 3])
                self.chosen[held.layer][m].append(best)
                order = [0, *best, own - 1, own]
                place = (len(order) - 1) * self.size + m % self.size
                seen[h, row] = False
                for number, b in enumerate(order):
                    for i in range(b * self.size, min((b + 1) * self.size, m + 1, n)):
                        seen[h, row, i] = True
                        d[h, row, i] = place - (number * self.size + i % self.size)
        return seen, d

    def vector(self, held: Held, head: int, b: int) -> Tensor:
        """The chunk read by its own tokens, both sides rotated at their places, and the mean's look at its keys."""
        tokens = range(b * self.size, (b + 1) * self.size)
        group = head * len(held.k) // self.queries[held.layer][0].shape[0]
        q = torch.stack([self.queries[held.layer][i][head] for i in tokens])[None]
        k, v = held.k[group : group + 1, tokens], held.v[group, tokens]
        places = torch.arange(self.size)
        read = self.reference.scores(q, k, distances(places, places)[None])[0].softmax(-1) @ v
        turned = torch.stack([self.turned(k[0, i], i) for i in range(self.size)])
        return (turned @ read.mean(0) * self.reference.dim**-0.5).softmax(0) @ turned

    def turned(self, x: Tensor, place: int) -> Tensor:
        a, b = x.chunk(2)
        angle = place * self.reference.theta
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


def run_logits(method: Longheads, model: Any, ids: Tensor, passes: Sequence[int]) -> tuple[Tensor, Any]:
    with lengthwise.stack(method).on(model) as run, torch.no_grad():
        cache = run.cache()
        logits = torch.cat([model(p[None], past_key_values=cache).logits[0] for p in ids.split(list(passes))])
    return logits, run


@functools.cache
def expected(name: str, chunk: int, length: int, tokens: int) -> tuple[Tensor, Oracle]:
    """What is seen does not depend on how the text is cut into passes."""
    oracle = Oracle(model_of(name), chunk, length)
    return oracle.reference.read_all(text(tokens), 50), oracle


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize(("chunk", "length"), [(8, 40), (7, 21), (5, 34)])
@pytest.mark.parametrize("passes", [[101], [1, 62, 13, 17, *[1] * 8]])
def test_the_rule(name: str, chunk: int, length: int, passes: list[int]) -> None:
    want, oracle = expected(name, chunk, length, 101)
    got, run = run_logits(Longheads(chunk=chunk, length=length), model_of(name), text(101), passes)
    torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=1e-4)
    assert run.ledger.acted["longheads"] > 0
    if length // chunk > 3:  # heads, queries and layers choose differently, and not the latest
        heads = oracle.chosen[0][100]
        assert any(h != heads[0] for h in heads)
        assert oracle.chosen[0] != oracle.chosen[1]
        assert any(h != list(range(100 // chunk - 1 - len(h), 100 // chunk - 1)) for h in heads)


def test_odd_lengths_of_a_longer_text() -> None:
    want, _ = expected("llama", 16, 97, 301)
    got, _ = run_logits(Longheads(chunk=16, length=97), model_of("llama"), text(301), [1, 299, 1])
    torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=1e-4)


def test_what_is_scored_and_read() -> None:
    """A decoded token scores the keys of k chunks at most, and one vector for every chunk it may choose."""
    chunk, length, n = 8, 40, 170
    with lengthwise.stack(Longheads(chunk=chunk, length=length)).on(model_of("llama")) as run, torch.no_grad():
        cache = run.prefill(text(n)[None])
        before = [(r.pairs, r.bytes_read) for r in run.ledger.layers]
        model_of("llama")(text(n)[None, -1:], past_key_values=cache)
        for (pairs, read), r in zip(before, run.ledger.layers, strict=True):
            near = chunk + (n - 1) % chunk + 1
            assert r.pairs - pairs == 4 * (3 * chunk + near + (n - 1) // chunk - 2)
            one = 2 * 12 * 4  # key and value of one head in bytes
            most = 2 * near + 2 * chunk + 4 * 2 * chunk  # nearby, first chunk, each head's own two
            assert (2 * near + 4 * chunk) * one <= r.bytes_read - read <= most * one
        assert run.stack.methods[0].tokens_seen(n, run.facts) == 40 + 21  # type: ignore[attr-defined]


def test_the_trained_window_is_the_length() -> None:
    method = Longheads(chunk=32)
    with lengthwise.stack(method).on(model_of("llama")) as run:
        assert method.frames(run.facts)[0].high == tiny.WINDOW


def test_rows_choose_on_their_own() -> None:
    model, rows = model_of("llama"), [text(n, seed=9) for n in (70, 121)]
    ids = torch.stack([torch.nn.functional.pad(r, (121 - len(r), 0)) for r in rows])
    with lengthwise.stack("longheads:chunk=8,length=40").on(model) as run, torch.no_grad():
        together = model(ids, attention_mask=(ids > 0).long(), past_key_values=run.cache()).logits
        for row, own in enumerate(rows):
            alone = model(own[None], past_key_values=run.cache()).logits[0]
            torch.testing.assert_close(together[row, -len(own) :], alone, atol=1e-4, rtol=1e-4)


def test_a_saved_session_goes_on(tmp_path: Any) -> None:
    model, ids = model_of("llama"), text(120)[None]
    with lengthwise.stack("longheads:chunk=8,length=40").on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :101])
        saved.save(cache, tmp_path / "s", {})
        loaded = saved.load(run, tmp_path / "s", {})
        for i in range(100, 120):
            want, got = (model(ids[:, i : i + 1], past_key_values=c).logits for c in (cache, loaded))
            assert torch.equal(want, got)


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ("longheads:length=513,chunk=16", "length=513 is beyond the trained window of 512"),
        ("longheads", "chunk=256 fits fewer than 3 times into the trained window of 512"),
        ("longheads:chunk=16,length=40", "fewer than 3 chunks of 16"),
        ("longheads:chunk=16 + tokenselect", "longheads and tokenselect both own the seam 'position'"),
    ],
)
def test_what_does_not_fit(stack: str, says: str) -> None:
    with pytest.raises(LengthwiseError, match=says):
        lengthwise.stack(stack).on(model_of("llama"))
