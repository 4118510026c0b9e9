"""Squeezed Attention against its rule written out: weights key by key, head by head; and what k-means must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.cache._kmeans import kmeans, means
from lengthwise.cache.squeezed import Squeezed
from lengthwise.core import saved
from lengthwise.errors import LengthwiseError
from reference import Held, Reference, distances, model_of, text


class Oracle:
    """The rule for `Reference`, with clusters that are given: which cluster each key of each layer and head is in."""

    def __init__(self, model: Any, method: Squeezed, end: int, states: list[dict[str, Tensor]]) -> None:
        self.m, self.end, self.states, self.reference = method, end, states, Reference(model, self)
        self.queries: dict[int, list[Tensor]] = {}
        self.thresholds: dict[tuple[int, str], float] = {}
        self.kept: list[float] = []

    def __call__(self, held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        turned = self.turned(q, positions)
        self.queries.setdefault(held.layer, []).extend(turned.unbind(1))
        d = distances(positions, held.positions)
        seen = (d >= 0).expand(len(q), -1, -1).clone()
        count = self.end - self.m.observed
        if int(positions[0]) >= self.end:
            for h in range(len(q)):
                for row in range(q.shape[1]):
                    looked_up = self.looked_up(held, h, turned[h, row])
                    seen[h, row, :count] &= looked_up
                    self.kept.append(float(looked_up.double().mean()))
        return seen, d

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        angle = positions[:, None] * self.reference.theta
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def clusters(self, held: Held, head: int, level: str) -> tuple[list[list[int]], Tensor]:
        """The keys of every cluster of a query head's keys, and their centroids."""
        count, group = self.end - self.m.observed, head * len(held.k) // self.reference.config.num_attention_heads
        state = self.states[held.layer]
        labels = state["labels"][group].tolist()
        fine: list[list[int]] = [[] for _ in range(int(count * self.m.clusters))]
        for n, label in enumerate(labels):
            fine[label].append(n)
        keys = self.turned(held.k[group : group + 1, :count], torch.arange(count))[0]
        centroids = [keys[c].mean(0) if c else keys[0] * 0 for c in fine]
        if level == "fine":
            return fine, torch.stack(centroids)
        parents = state["parents"][group].tolist()
        coarse: list[list[int]] = [[] for _ in range(max(1, int(count * self.m.coarse)))]
        for label, parent in enumerate(parents):
            coarse[parent].append(label)
        vectors = torch.stack([torch.stack([centroids[c] for c in p]).mean(0) if p else keys[0] * 0 for p in coarse])
        return [[n for c in p for n in fine[c]] for p in coarse], vectors

    def weights(self, held: Held, head: int, q: Tensor, level: str, only: Tensor | None = None) -> Tensor:
        """The weight of every clustered key [count]; keys that are not among `only` count for nothing."""
        members, centroids = self.clusters(held, head, level)
        logits = (centroids @ q) * self.reference.dim**-0.5
        total = torch.tensor(0.0, dtype=q.dtype)
        for c, keys in enumerate(members):
            total += sum(1 for n in keys if only is None or only[n]) * logits[c].exp()
        out = torch.zeros(self.end - self.m.observed, dtype=q.dtype)
        for c, keys in enumerate(members):
            for n in keys:
                if only is None or only[n]:
                    out[n] = logits[c].exp() / total
        return out

    def threshold(self, held: Held, level: str, sparsity: float) -> float:
        if (held.layer, level) not in self.thresholds:
            before = self.queries[held.layer][self.end - self.m.observed : self.end]
            found = []
            for h in range(before[0].shape[0]):
                found.append(sum(self.weights(held, h, q[h], level) for q in before) / len(before))
            ordered = torch.cat(found).sort().values
            self.thresholds[held.layer, level] = float(ordered[int(sparsity * (len(ordered) - 1))])
        return self.thresholds[held.layer, level]

    def looked_up(self, held: Held, head: int, q: Tensor) -> Tensor:
        left = None
        if self.m.coarse:
            left = self.weights(held, head, q, "coarse") > self.threshold(held, "coarse", 0.5)
        return self.weights(held, head, q, "fine", left) > self.threshold(held, "fine", self.m.sparsity)


def run_logits(method: Squeezed, model: Any, ids: Tensor, passes: Sequence[int]) -> tuple[Tensor, Any, Any]:
    with lengthwise.stack(method).on(model) as run, torch.no_grad():
        cache = run.cache()
        logits = torch.cat([model(p[None], past_key_values=cache).logits[0] for p in ids.split(list(passes))])
    return logits, run, cache


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"observed": 10, "clusters": 0.1},
    "sparse": {"observed": 7, "clusters": 0.2, "sparsity": 0.9},
    "two levels": {"observed": 10, "clusters": 0.3, "coarse": 0.07, "sparsity": 0.6},
    "fixed": {"observed": 9, "clusters": 0.1, "fixed": 81},
    "fixed, two levels": {"observed": 9, "clusters": 0.3, "coarse": 0.1, "fixed": 81, "sparsity": 0.5},
}


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_rule(name: str, settings: dict[str, Any]) -> None:
    """With `fixed`, a question of several tokens is looked up too; else the first decoded token begins."""
    model, method, ids = model_of(name), Squeezed(**settings), text(103)
    passes = [41, 40, 13, *[1] * 9] if method.fixed else [63, 31, *[1] * 9]
    got, run, cache = run_logits(method, model, ids, passes)
    states = [cache.states[layer, 0, "squeezed"] for layer in range(2)]
    oracle = Oracle(model, method, method.fixed or 94, states)
    want = torch.cat([oracle.reference.read(p) for p in ids.split(passes)])
    torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=1e-4)
    for layer, state in enumerate(states):
        assert abs(float(state["threshold"].exp()) / oracle.thresholds[layer, "fine"] - 1) < 1e-3
    kept = sum(oracle.kept) / len(oracle.kept)
    assert 0.3 * (1 - method.sparsity) < kept < 2 * (1 - method.sparsity)
    assert max(oracle.kept) > min(oracle.kept)
    assert run.ledger.acted["squeezed"] > 0


def test_only_chosen_keys_are_read() -> None:
    """Bytes of one decoded token, dense and squeezed: centroids, keys and values of what was looked up, the rest."""
    ids, reads = text(400), {}
    for sparsity in (0.0, 0.9):
        method = Squeezed(observed=20, clusters=0.05, sparsity=sparsity)
        with lengthwise.stack(method).on(model_of("llama-mha")) as run, torch.no_grad():
            cache = run.prefill(ids[None])
            before = sum(r.bytes_read for r in run.ledger.layers)
            model_of("llama-mha")(ids[None, -1:], past_key_values=cache)
            reads[sparsity] = sum(r.bytes_read for r in run.ledger.layers) - before
    assert reads[0.0] == 2 * 400 * 2 * 48 * 4
    assert 0.1 * reads[0.0] < reads[0.9] < 0.4 * reads[0.0]


def test_k_means_ends_where_nothing_moves() -> None:
    x = torch.randn(3, 200, 8, generator=torch.Generator().manual_seed(0))
    labels = kmeans(x, 12)
    assert torch.equal(labels, kmeans(x, 12))
    for h in range(3):
        unit = [v / v.norm() for v in x[h]]
        centres = [
            torch.stack([u for u, at in zip(unit, labels[h], strict=True) if at == c]).mean(0) for c in range(12)
        ]
        for u, label in zip(unit, labels[h], strict=True):
            away = [float((u - c).norm()) for c in centres]
            assert away[int(label)] <= min(away) + 1e-5


def test_k_means_finds_directions_whatever_the_lengths() -> None:
    draw = torch.Generator().manual_seed(3)
    centres = torch.eye(6)[:4]
    which = torch.randint(4, (1, 150), generator=draw)
    x = centres[which] + 0.05 * torch.randn(1, 150, 6, generator=draw)
    x = x * (0.1 + 10 * torch.rand(1, 150, 1, generator=draw))
    labels = kmeans(x, 4)
    assert len({(int(a), int(b)) for a, b in zip(which[0], labels[0], strict=True)}) == 4
    centroids, sizes = means(x, labels, 4)
    for c in range(4):
        torch.testing.assert_close(centroids[0, c], x[0, labels[0] == c].mean(0))
        assert int(sizes[0, c]) == int((labels[0] == c).sum())


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_other_models(softcap: float | None) -> None:
    """Every key is looked up where the threshold lies below all weights: equal to the plain model."""
    model = tiny.model("gemma2" if softcap else "qwen3")
    ids = tiny.tokens(120)
    plain = tiny.plain_logits(model, ids)[0, -5:]
    with lengthwise.stack("squeezed:observed=10,clusters=0.1,sparsity=0.7").on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :-4])
        for row, name, state in [(r, n, s) for (_, r, n), s in cache.states.items()]:
            assert (row, name) == (0, "squeezed")
            assert "labels" not in state
        first = model(ids[:, -5:-4], past_key_values=cache).logits[0]
        assert (first - plain[0]).abs().max() > 1e-3
        for state in cache.states.values():
            state["threshold"] -= 1e9
        rest = torch.cat([model(ids[:, i : i + 1], past_key_values=cache).logits[0] for i in range(116, 120)])
    full = [r for r in run.ledger.layers if r.kind == "full"]
    assert len(full) == (1 if softcap else 2)
    if softcap:  # one full layer: the token that was squeezed left its mark on no key before it
        torch.testing.assert_close(rest, plain[1:], atol=1e-4, rtol=1e-4)


def test_rows_are_clustered_on_their_own() -> None:
    model, rows = model_of("llama"), [text(n, seed=9) for n in (71, 120)]
    ids = torch.stack([torch.nn.functional.pad(r, (120 - len(r), 0)) for r in rows])
    mask = (ids > 0).long()
    with lengthwise.stack("squeezed:observed=10,clusters=0.1").on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :-3], attention_mask=mask[:, :-3])
        together = []
        for i in range(116, 120):
            seen = mask[:, : i + 1]
            given = {"attention_mask": seen, "position_ids": seen.sum(1, keepdim=True) - 1}
            together.append(model(ids[:, i : i + 1], past_key_values=cache, **given).logits)
        for row, own in enumerate(rows):
            alone = run.prefill(own[None, :-3])
            for i in range(4):
                at = len(own) - 4 + i
                logits = model(own[None, at : at + 1], past_key_values=alone).logits[0]
                torch.testing.assert_close(together[i][row], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at", [60, 103])
def test_a_saved_session_goes_on(at: int, tmp_path: Any) -> None:
    """Saved before or after the prompt was clustered."""
    model, ids = model_of("llama"), text(110)[None]
    with lengthwise.stack("squeezed:observed=10,clusters=0.2,coarse=0.05").on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, : min(at, 95)])
        for i in range(cache.get_seq_length(), at):
            model(ids[:, i : i + 1], past_key_values=cache)
        saved.save(cache, tmp_path / "s", {})
        loaded = saved.load(run, tmp_path / "s", {})
        rest = ids[:, cache.get_seq_length() :].split(1 if at > 95 else 40, 1)
        for part in [*rest, ids[:, :1]]:
            want, got = (model(part, past_key_values=c).logits for c in (cache, loaded))
            assert torch.equal(want, got)


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ("squeezed:sparsity=1.0", "sparsity must be"),
        ("squeezed:coarse=0.05", "coarse must be"),
        ("squeezed:fixed=120", "fewer than 2 clusters"),
        ("squeezed + streaming-llm:window=40", "squeezed looks keys up by clusters, and streaming-llm evicts"),
        ("squeezed + self-extend:window=64", "squeezed clusters keys where they stand, and self-extend"),
        ("squeezed + tokenselect:init=4,local=16,top=8,chunk=8", "squeezed .* and tokenselect chooses keys too"),
    ],
)
def test_what_does_not_fit(stack: str, says: str) -> None:
    with pytest.raises(LengthwiseError, match=says):
        lengthwise.stack(stack).on(model_of("llama"))
