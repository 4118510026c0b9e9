"""ThinK against logits whose channels are dropped by hand, and the bytes that it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.cache.think_k import Channels
from lengthwise.core import saved
from lengthwise.core.attach import Run
from lengthwise.core.frames import NATIVE
from lengthwise.core.session import Session
from lengthwise.core.store import KV, Layout
from lengthwise.errors import BadParameter, StackRefused
from reference import Held, Reference, turn


class Thin:
    """The float64 Llama whose keys are rotated and stored; `zeroed[layer]` are the channels that a key head lost."""

    def __init__(self, model: Any, ratio: float, window: int, recent: int) -> None:
        self.ratio, self.window, self.recent = ratio, window, recent
        self.model = Reference(model)
        self.model.attend = self.attend  # type: ignore[method-assign]
        self.queries: dict[int, list[Tensor]] = {}
        self.zeroed: dict[int, list[list[int]]] = {}
        self.thin_upto = 0
        self.last_pass = 0

    def rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        z = turn(x, positions[:, None].double() * self.model.theta)
        return torch.cat([z.real, z.imag], -1)

    def attend(self, held: Held, q: Tensor, positions: Tensor) -> Tensor:
        q, k = self.rotated(q, positions), self.rotated(held.k, held.positions)
        layer, group = held.layer, len(q) // len(held.k)
        if len(positions) > 1:
            self.queries.setdefault(layer, []).extend(q.unbind(1))
        for head, channels in enumerate(self.zeroed.get(layer, [])):
            k[head][: self.thin_upto, channels] = 0
        scores = q @ k.repeat_interleave(group, 0).transpose(1, 2) * self.model.dim**-0.5
        scores = scores.masked_fill(positions[:, None] < held.positions[None], float("-inf"))
        return scores.softmax(-1) @ held.v.repeat_interleave(group, 0)

    def choose(self) -> None:
        drop = int(self.model.dim * self.ratio)
        for held in self.model.held:
            k, last = self.rotated(held.k, held.positions), self.queries[held.layer][-self.window :]
            group, self.zeroed[held.layer] = len(last[0]) // len(k), []
            for head in range(len(k)):
                worth = []
                for c in range(self.model.dim):
                    drawn = [float(q[h, c]) ** 2 for q in last for h in range(head * group, (head + 1) * group)]
                    worth.append(sum(drawn) / len(drawn) * float((k[head, :, c] ** 2).mean()))
                self.zeroed[held.layer].append(sorted(range(self.model.dim), key=lambda c: worth[c])[:drop])

    def read(self, ids: Tensor) -> Tensor:
        if len(ids) == 1 and self.last_pass > 1 and not self.zeroed:
            self.choose()
        self.last_pass = len(ids)
        out = self.model.read(ids)
        if self.zeroed and self.model.read_so_far - self.thin_upto > self.recent + 64:
            self.thin_upto = self.model.read_so_far - self.recent
        return out


def passes(text: str, model: Any, ids: Tensor, sizes: list[int]) -> tuple[Tensor, Session, Run]:
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        cache = run.cache()
        logits = [model(part[None], past_key_values=cache).logits[0] for part in ids.split(sizes)]
    return torch.cat(logits), cache, run


SIZES = [90, 31, 1, 1, 1, 20, *[1] * 70]


@pytest.mark.parametrize("architecture", ["llama", "llama-mha"])
@pytest.mark.parametrize(("ratio", "window", "recent"), [(0.4, 32, 16), (0.75, 5, 0), (0.1, 200, 33)])
def test_the_logits_of_thin_keys(ratio: float, window: int, recent: int, architecture: str) -> None:
    model, ids = tiny.model(architecture), tiny.tokens(sum(SIZES))[0]
    by_hand = Thin(model, ratio, window, recent)
    expected = torch.cat([by_hand.read(part) for part in ids.split(SIZES)])
    got, cache, run = passes(f"think-k:ratio={ratio},window={window},recent={recent}", model, ids, SIZES)
    torch.testing.assert_close(got.double(), expected, atol=3e-4, rtol=1e-4)
    for slot, channels in zip(cache.layers, by_hand.zeroed.values(), strict=True):
        lane = slot.rows[0].keys[NATIVE]
        assert lane.cold_tokens == by_hand.thin_upto > 121
        kept = lane.key_codec.kept  # type: ignore[union-attr]
        assert [sorted(set(range(12)) - set(row)) for row in kept.tolist()] == [sorted(c) for c in channels]
        assert slot.rows[0].values.cold_tokens == 0
        assert slot.rows[0].values.key_codec is None
    plain = tiny.plain_logits(model, ids[None])[0]
    assert (got - plain)[-40:].abs().max() > 1e-3
    assert run.ledger.acted["think-k"] > 0


def test_bytes() -> None:
    """Keys older than the recent ones take 60 % of their bytes; values all of them."""
    model, ids, sizes = tiny.model("llama"), tiny.tokens(4001), {}
    for text in ("dense", "think-k:ratio=0.5"):
        with lengthwise.stack(text).on(model) as run, torch.no_grad():
            cache = run.prefill(ids)
            model(ids[:, -1:], past_key_values=cache)
            sizes[text] = run.ledger.kv_bytes
    assert sizes["think-k:ratio=0.5"] < 0.8 * sizes["dense"]


def test_channels_that_matter_little_are_found() -> None:
    """Planted: four channels of 16 carry nearly all of q.k; the error of dropping half grows only past the others."""
    draw = torch.Generator().manual_seed(0)
    loud = torch.full((16,), 0.1)
    loud[[1, 4, 9, 14]] = 3.0
    k, q = (torch.randn(n, 2, 16, generator=draw) * loud for n in (200, 32))
    whole = torch.einsum("mhd,nhd->hmn", q, k)
    errors = []
    for count in (12, 8, 4, 3):
        codec = Channels(16, count)
        worth = q.square().mean(0) * k.square().mean(0)
        codec.kept = worth.sort(descending=True, stable=True).indices[:, :count].sort().values
        parts = codec.encode(k)
        assert parts[0].shape == (200, 2, count)
        thin = codec.decode(parts, k.dtype)
        errors.append(float((torch.einsum("mhd,nhd->hmn", q, thin) - whole).square().mean() / whole.square().mean()))
        assert torch.equal(codec.decode(codec.encode(thin), k.dtype), thin)
    assert max(errors[:3]) < 0.01 < 0.1 < errors[3]


def test_heads_that_evict_move_thin_keys() -> None:
    """Per-head eviction over keys of which some are thin: every head keeps its own, thin ones as they were."""
    codec = Channels(6, 3)
    kv = KV({NATIVE: Layout(codec=codec, hot=10)}, Layout(), 2, 6, torch.float32, torch.device("cpu"))
    x = torch.randn(2, 100, 6, generator=torch.Generator().manual_seed(0))
    kv.append({NATIVE: x}, x, torch.arange(100))
    kv.settle()
    lane = kv.keys[NATIVE]
    assert lane.cold_tokens == 0
    lane.key_codec.kept = torch.tensor([[0, 2, 5], [1, 2, 3]])  # type: ignore[union-attr]
    kv.settle()
    assert lane.cold_tokens == 90
    thin = lane.read(0, 100).clone()
    slots = torch.stack([torch.arange(40), torch.cat([torch.arange(5), torch.arange(65, 100)])])
    kv.keep(slots)
    assert lane.cold_tokens == 30
    for head in range(2):
        assert torch.equal(lane.read(0, 40)[head], thin[head, slots[head]])
        assert torch.equal(kv.values.read(0, 40)[head], x[head, slots[head]])


def test_a_saved_session_goes_on(tmp_path: Path) -> None:
    model, ids = tiny.model("llama"), tiny.tokens(190)
    with lengthwise.stack("think-k:recent=8 + snapkv:budget=100").on(model) as run, torch.no_grad():
        for at in (149, 151):  # before the choice, and after it
            cache = run.prefill(ids[:, :150])
            for i in range(149, at):
                model(ids[:, i : i + 1], past_key_values=cache)
            saved.save(cache, tmp_path / "s", {})
            loaded = saved.load(run, tmp_path / "s", {})
            for i in range(at, 160):
                one, two = (model(ids[:, i : i + 1], past_key_values=c).logits for c in (cache, loaded))
                assert torch.equal(one, two)
            assert cache.layers[0].rows[0].keys[NATIVE].cold_tokens > 0


def test_refusals() -> None:
    for other, word in (("offload", "tier"), ("rerope:window=16", "one position frame"), ("int8", "format")):
        with pytest.raises(StackRefused, match=word):
            lengthwise.stack(f"think-k + {other}").on(tiny.model("llama"))
    for text in ("think-k:ratio=1", "think-k:ratio=-.1", "think-k:recent=-1", "think-k:window=0"):
        with pytest.raises(BadParameter, match="think-k"):
            lengthwise.stack(text)
