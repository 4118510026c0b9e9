"""TokenSelect against its rule written out: votes counted head by head, the choice renumbered without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
from lengthwise.cache.tokenselect import Tokenselect
from lengthwise.core import saved
from lengthwise.errors import LengthwiseError
from reference import Held, Reference, distances, model_of, text


class Oracle:
    """The rule for `Reference`. `chosen[layer]` lists (position of the first query, tokens, whether taken over)."""

    def __init__(self, model: Any, method: Tokenselect) -> None:
        self.m, self.reference = method, Reference(model, self)
        self.chosen: list[list[tuple[int, list[int], bool]]] = [[] for _ in self.reference.held]
        self.query: dict[int, Tensor] = {}
        self.latest: list[bool] = []  # whether the latest tokens would have been the same choice

    def read(self, ids: Tensor, passes: Sequence[int]) -> Tensor:
        parts = [c for p in ids.split(list(passes)) for c in p.split(self.m.chunk)]
        return torch.cat([self.reference.read(c) for c in parts])

    def __call__(self, held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        m, n = self.m, len(held.positions)
        d = distances(positions, held.positions)
        if n <= m.init + m.top + m.local:
            return d >= 0, d
        middle = list(range(m.init, n - m.local))
        seen = [*range(m.init), *self.choose(held, q, int(positions[0]), middle), *range(n - m.local, n)]
        number = torch.full((n,), 10**6)
        for i, token in enumerate(seen):
            number[token] = i
        return (d >= 0) & (number < 10**6), distances(number[positions], number)

    def choose(self, held: Held, q: Tensor, first: int, middle: list[int]) -> list[int]:
        heads, rows = q.shape[:2]
        at = torch.arange(rows)[:, None] + self.m.local
        one = torch.ones(len(held.k), 1, self.reference.dim, dtype=q.dtype)
        # rotated queries, read off products with the unit vectors
        basis = torch.eye(self.reference.dim, dtype=q.dtype)
        turned = torch.stack(
            [
                self.reference.scores(q, one * basis[j], at.expand(heads, rows, 1))[..., 0] * self.reference.dim**0.5
                for j in range(self.reference.dim)
            ],
            -1,
        )
        mean = turned.mean(1).flatten()
        known = self.query.get(held.layer)
        if rows == 1 and known is not None and self.m.reuse is not None:
            cosine = float(mean @ known / mean.norm() / known.norm())
            if cosine >= self.m.reuse:
                self.chosen[held.layer].append((first, self.chosen[held.layer][-1][1], True))
                return self.chosen[held.layer][-1][1]
        votes = torch.zeros(len(middle), dtype=q.dtype)
        for h in range(heads):
            keys = held.k[h * len(held.k) // heads, middle]
            votes += (keys @ mean.view(heads, -1)[h]).softmax(0)
        best = sorted(middle[i] for i in votes.argsort(descending=True)[: self.m.top])
        self.query[held.layer] = mean
        self.latest.append(best == middle[-self.m.top :])
        self.chosen[held.layer].append((first, best, False))
        return best


def run_logits(method: Tokenselect, model: Any, ids: Tensor, passes: Sequence[int]) -> tuple[Tensor, Any]:
    with lengthwise.stack(method).on(model) as run, torch.no_grad():
        cache = run.cache()
        logits = torch.cat([model(p[None], past_key_values=cache).logits[0] for p in ids.split(list(passes))])
    return logits, run


SETTINGS: dict[str, dict[str, Any]] = {
    "small": {"init": 4, "local": 16, "top": 12, "chunk": 8},
    "no first tokens, one chosen": {"init": 0, "local": 9, "top": 1, "chunk": 9},
    "odd": {"init": 3, "local": 13, "top": 31, "chunk": 7, "reuse": 0.5},
    "never reused": {"init": 4, "local": 16, "top": 12, "chunk": 16, "reuse": None},
}


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("passes", [[150], [63, 41, 26, *[1] * 20]])
def test_the_rule(name: str, settings: dict[str, Any], passes: list[int]) -> None:
    model, method, ids = model_of(name), Tokenselect(**settings), text(150)
    oracle = Oracle(model, method)
    expected = oracle.read(ids, passes)
    got, run = run_logits(method, model, ids, passes)
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)
    assert run.ledger.acted["tokenselect"] > 0
    assert all(len(c) > 3 for c in oracle.chosen)
    # the mechanism matters: other tokens than the latest ones, different ones in different layers
    assert not all(oracle.latest)
    assert [c for _, c, _ in oracle.chosen[0]] != [c for _, c, _ in oracle.chosen[1]]


def test_odd_lengths_of_a_longer_text() -> None:
    model, ids, method = model_of("llama"), text(401), Tokenselect(init=5, local=32, top=40, chunk=31)
    expected = Oracle(model, method).read(ids, [1, 399, 1])
    got, _ = run_logits(method, model, ids, [1, 399, 1])
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("reuse", "least", "most"), [(None, 0, 0), (1.0, 0, 0), (0.3, 2, 39), (1e-6, 15, 40)])
def test_similar_queries_share_a_choice(reuse: float | None, least: int, most: int) -> None:
    """Both what is reused and what that saves: a choice that is taken over reads no key."""
    model, method, ids = model_of("llama"), Tokenselect(init=4, local=16, top=12, chunk=8, reuse=reuse), text(130)
    passes = [110, *[1] * 20]
    oracle = Oracle(model, method)
    expected = oracle.read(ids, passes)
    got, run = run_logits(method, model, ids, passes)
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)
    taken = sum(again for c in oracle.chosen for _, _, again in c)
    assert least <= taken <= most
    pairs = 0
    for chosen in oracle.chosen:
        for first, _, again in chosen:
            count = min(8, 110 - first) if first < 110 else 1
            near = sum(min(16, first + count) - (count - 1 - i) for i in range(count))
            pairs += 4 * (near + count * 16 + (0 if again else first + count - 4 - 16))
    small = sum(i + 1 for i in range(32)) * 4 * 2
    assert run.ledger.pairs == pairs + small


def test_rows_choose_on_their_own() -> None:
    model, rows = model_of("llama"), [text(n, seed=9) for n in (70, 120)]
    ids = torch.stack([torch.nn.functional.pad(r, (120 - len(r), 0)) for r in rows])
    with lengthwise.stack("tokenselect:init=4,local=16,top=12,chunk=10").on(model) as run, torch.no_grad():
        together = model(ids, attention_mask=(ids > 0).long(), past_key_values=run.cache()).logits
        for row, own in enumerate(rows):
            alone = model(own[None], past_key_values=run.cache()).logits[0]
            torch.testing.assert_close(together[row, -len(own) :], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stack", ["tokenselect:init=4,local=16,top=12,chunk=8,reuse=0.3"])
def test_a_saved_session_goes_on(stack: str, tmp_path: Any) -> None:
    model, ids = model_of("llama"), text(120)[None]
    with lengthwise.stack(stack).on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :101])
        saved.save(cache, tmp_path / "s", {})
        loaded = saved.load(run, tmp_path / "s", {})
        for i in range(100, 120):
            want, got = (model(ids[:, i : i + 1], past_key_values=c).logits for c in (cache, loaded))
            assert torch.equal(want, got)


def test_what_is_kept_of_the_keys() -> None:
    """Rotated keys are held for the window alone: the distant past costs one lane of keys, not two."""
    model, ids = model_of("llama"), text(400)[None]
    with lengthwise.stack("tokenselect:init=4,local=16,top=12,chunk=8").on(model) as run:
        cache = run.prefill(ids, chunk=50)
        near, far = cache.layers[0].rows[0].keys.values()
        assert len(far) == 399
        assert near.cold_tokens > 300


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ("tokenselect", "init \\+ top \\+ local = 2688 is beyond the trained window of 512"),
        ("tokenselect:local=8,chunk=9", "a chunk must fit the local window"),
        ("tokenselect:reuse=1.5", "reuse must be"),
        ("tokenselect + yarn", "yarn.*both own the seam 'position'"),
    ],
)
def test_what_does_not_fit(stack: str, says: str) -> None:
    with pytest.raises(LengthwiseError, match=says):
        lengthwise.stack(stack).on(model_of("llama"))
