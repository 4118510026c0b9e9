"""Lanes, arenas and codes against plain lists of tokens."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lengthwise
import tiny
from lengthwise.cache._integers import IntCodec
from lengthwise.core import growing, store
from lengthwise.core.arena import Arena, Disk, Lru, Ram, free_disk
from lengthwise.core.frames import NATIVE, UNROTATED, Rotation
from lengthwise.core.pagefile import PageFile
from lengthwise.core.store import KV, Lane, Layout

HEADS, DIM = 2, 8
ARENAS: dict[str, Callable[[], Arena]] = {
    "ram": Ram,
    "disk": Disk,
    "lru": lambda: Lru(Disk(), 8, 3),
    "small lru": lambda: Lru(Disk(), 5, 1),
}


def fresh(count: int, made: int) -> Tensor:
    """`count` new tokens [H, count, D], each with a number of its own in its first channel."""
    x = torch.randn(HEADS, count, DIM, generator=torch.Generator().manual_seed(made))
    x[:, :, 0] = torch.arange(made, made + count)
    return x


def poison(lane: Lane) -> None:
    """What a lane has reserved and not filled must never be read."""
    hot = lane._hot
    hot.tensor[:, hot.n : hot.n + 5000] = float("nan")


def ascending(data: Any, n: int) -> Tensor:
    kept = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return torch.tensor([i for i, keep in enumerate(kept) if keep], dtype=torch.long)


STEPS = st.lists(st.sampled_from(["append", "settle", "keep", "read", "gather", "restore", "rewrite"]), max_size=14)


def layouts() -> list[Any]:
    out: list[Any] = [pytest.param(Layout(), id="hot")]
    for name, arena in ARENAS.items():
        for hot in (0, 3, 20):
            out.append(pytest.param(Layout(arena=arena, hot=hot), id=f"{name} {hot}"))
    return out


@pytest.mark.parametrize("layout", layouts())
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_lane_is_a_list(layout: Layout, data: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # memory of its own from the first token on
            patch.setattr(growing, "_SMALL", 0)
            patch.setattr(growing, "_TAIL", 0)
        patch.setattr(store, "_DECODED", data.draw(st.sampled_from([7, 4096])))
        check_lane(layout, data)


def check_lane(layout: Layout, data: Any) -> None:
    lane, tokens, made = Lane(HEADS, DIM, torch.float32, torch.device("cpu"), layout), torch.zeros(HEADS, 0, DIM), 0
    for step in ["append", *data.draw(STEPS)]:
        n = tokens.shape[1]
        if step == "append":
            x = fresh(data.draw(st.sampled_from([1, 2, 63, 90])), made)
            made += x.shape[1]
            lane.append(x)
            tokens = torch.cat([tokens, x], 1)
            poison(lane)
        elif step == "settle":
            lane.settle()
            poison(lane)
            if layout.hot is not None:
                assert len(lane) - lane.cold_tokens <= layout.hot + 64
        elif step == "keep":
            slots = ascending(data, n)
            lane.keep(slots)
            tokens = tokens[:, slots]
            poison(lane)
        elif step == "rewrite":
            tokens = fresh(data.draw(st.sampled_from([0, 1, n])), made)
            lane.rewrite(tokens)
            made += tokens.shape[1]
            poison(lane)
        elif step == "read" and n:
            a = data.draw(st.integers(0, n - 1))
            b = data.draw(st.integers(a + 1, n))
            assert torch.equal(lane.read(a, b), tokens[:, a:b])
        elif step == "gather" and n:
            slots = ascending(data, n)
            assert torch.equal(lane.gather(slots), tokens[:, slots])
        elif step == "restore":
            state = {k: v.clone() for k, v in lane.state().items()}
            assert {k: (v.shape, v.dtype) for k, v in lane.outline().items()} == {
                k: (v.shape, v.dtype) for k, v in state.items()
            }
            lane = Lane(HEADS, DIM, torch.float32, torch.device("cpu"), layout)
            lane.restore(state, n)
            poison(lane)
        assert len(lane) == tokens.shape[1]
    assert torch.equal(lane.read(0, len(lane)), tokens)


def test_a_lane_that_forgets() -> None:
    lane, tokens = Lane(HEADS, DIM, torch.float32, torch.device("cpu"), Layout(hot=10, forget=True)), []
    for i in range(40):
        tokens.append(fresh(7, 7 * i))
        lane.append(tokens[-1])
        lane.settle()
        n = len(lane)
        assert n == 7 * (i + 1)
        recent = max(0, n - 10)
        assert torch.equal(lane.read(recent, n), torch.cat(tokens, 1)[:, recent:])
        assert lane.nbytes()[0] <= 1.5 * (10 + 64 + 7) * HEADS * DIM * 4


def test_reading_what_is_hot_copies_nothing() -> None:
    lane = Lane(HEADS, DIM, torch.float32, torch.device("cpu"), Layout())
    lane.append(fresh(30, 0))
    assert lane.read(3, 20).data_ptr() == lane._hot.tensor[:, 3:].data_ptr()
    lane.reserve(500, 1 << 40)
    where = lane._hot.tensor.data_ptr()
    for i in range(47):
        lane.append(fresh(10, i))
    assert lane._hot.tensor.data_ptr() == where


@pytest.mark.parametrize("most", [100, 130])
def test_a_lane_of_known_size_grows_no_further(most: int) -> None:
    lane = Lane(HEADS, DIM, torch.float32, torch.device("cpu"), Layout())
    lane.reserve(0, most)
    for i in range(most):
        lane.append(fresh(1, i))
    assert lane.nbytes()[0] == most * HEADS * DIM * 4
    lane.append(fresh(1, 0))
    assert len(lane) == most + 1


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_kv_is_lists_in_step(data: Any) -> None:
    """Lanes of different layouts, the positions and the count stay in step."""
    keys: dict[Rotation, Layout] = {NATIVE: Layout(), UNROTATED: Layout(arena=Ram, hot=5)}

    def make() -> KV:
        return KV(keys, Layout(arena=Disk, hot=9), HEADS, DIM, torch.float32, torch.device("cpu"))

    kv, made, dropped = make(), 0, 0
    held = torch.zeros(0, dtype=torch.long)
    for step in ["append", *data.draw(STEPS)]:
        if step == "append":
            x = fresh(data.draw(st.sampled_from([1, 5, 70])), made)
            where = torch.arange(made, made + x.shape[1])
            kv.append({NATIVE: x, UNROTATED: -x}, 2 * x, where)
            held, made = torch.cat([held, where]), made + x.shape[1]
        elif step == "settle":
            kv.settle()
        elif step == "keep":
            slots = ascending(data, kv.n)
            dropped += kv.n - len(slots)
            kv.keep(slots)
            held = held[slots]
        elif step == "restore":
            state = {k: v.clone() for k, v in kv.state().items()}
            kv = make()
            kv.restore(state)
            kv.evicted = dropped
        assert kv.n == len(held) == len(kv.values)
        assert kv.positions.tolist() == held.tolist()
        assert kv.evicted == dropped
        for lane, factor in zip(kv.lanes(), (1, -1, 2), strict=True):
            assert (lane.read(0, kv.n)[0, :, 0] * factor / factor**2).tolist() == held.tolist()
    assert sum(lane.nbytes()[0] for lane in kv.lanes()) == kv.nbytes()[0]


@pytest.mark.parametrize("make", ARENAS.values(), ids=ARENAS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_arenas(make: Callable[[], Arena], data: Any) -> None:
    """Several tensors of different types and shapes, read at ranges and at scattered indices."""
    arena = make()
    parts = [torch.zeros(0, 2, 3), torch.zeros(0, 4, dtype=torch.uint8), torch.zeros(0, 1, dtype=torch.bfloat16)]
    for step in ["append", *data.draw(st.lists(st.sampled_from(["append", "keep", "read", "range"]), max_size=12))]:
        n = len(parts[0])
        if step == "append":
            m = data.draw(st.sampled_from([1, 4, 33]))
            new = [torch.randn(m, 2, 3), torch.randint(0, 255, (m, 4), dtype=torch.uint8), torch.randn(m, 1).bfloat16()]
            arena.append(tuple(new))
            parts = [torch.cat([p, x]) for p, x in zip(parts, new, strict=True)]
        elif step == "keep":
            slots = ascending(data, n)
            arena.keep(slots)
            parts = [p[slots] for p in parts]
        elif n:
            slots = ascending(data, n)
            a = data.draw(st.integers(0, n - 1))
            where: slice | Tensor = slots if step == "read" else slice(a, data.draw(st.integers(a, n)))
            got = arena.read(where)
            assert all(torch.equal(g, p[where]) for g, p in zip(got, parts, strict=True))
            assert [g.dtype for g in got] == [p.dtype for p in parts]
    if isinstance(arena, Disk):
        assert arena.nbytes() == sum(p.numel() * p.element_size() for p in parts)


def test_disk_is_a_file_without_a_name(tmp_path: Path) -> None:
    """Nothing is to be seen in the folder, nothing is open before the first token and after the last arena."""
    files = Path("/proc/self/fd")
    before = len(list(files.iterdir())) if files.exists() else 0
    arenas = [Disk(str(tmp_path)) for _ in range(50)]
    assert not files.exists() or len(list(files.iterdir())) == before
    for i, arena in enumerate(arenas):
        arena.append((torch.full((10, 3), float(i)),))
    assert not list(tmp_path.iterdir())
    assert not files.exists() or len(list(files.iterdir())) == before + 1
    assert all(arena.read(slice(0, 10))[0].eq(i).all() for i, arena in enumerate(arenas))
    assert arenas[0].nbytes() == 120
    assert free_disk(str(tmp_path)) > 0
    del arenas, arena
    gc.collect()
    assert not files.exists() or len(list(files.iterdir())) == before


def test_extents_are_used_again(tmp_path: Path) -> None:
    """The file stays as large as what was ever held at once, and no arena sees another's tokens."""

    def fill(value: float, count: int) -> Disk:
        arena = Disk(str(tmp_path))
        for _ in range(count):
            arena.append((torch.full((1000, 256), value),))  # about one extent
        return arena

    first, second = fill(1.0, 3), fill(2.0, 3)
    file = first._file
    assert file is second._file is not None
    size = file._file.seek(0, 2)
    for i in range(5):
        del first
        first = fill(3.0 + i, 3)
        second.keep(torch.arange(1, 3000, 3))
        second.append((torch.full((2000, 256), 2.0),))
        assert first.read(slice(0, 3000))[0].eq(3.0 + i).all()
        assert second.read(slice(0, 3000))[0].eq(2.0).all()
        assert file._file.seek(0, 2) <= size + (1 << 20)


def test_the_file_goes_away_with_the_cache(tmp_path: Path) -> None:
    """Without a collection: a cache is in no cycle."""
    gc.collect()
    gc.disable()
    try:
        with lengthwise.stack(f"offload:hot=8,folder={tmp_path}").on(tiny.model("llama")) as run:
            cache = run.prefill(tiny.tokens(200))
            file = weakref.ref(PageFile.of(str(tmp_path)))
            assert cache.layers[0].rows[0].nbytes()[1] > 0
            assert file() is not None
            del cache
            assert file() is None
    finally:
        gc.enable()


def test_lru_counts() -> None:
    lru = Lru(Disk(), page=10, pages=2)
    lru.append((torch.arange(45.0)[:, None],))
    script = [  # slots, hits, misses, pages in memory after
        (slice(0, 10), 0, 1, [0]),
        (torch.tensor([1, 11]), 1, 1, [0, 1]),
        (slice(20, 25), 0, 1, [1, 2]),
        (torch.tensor([12, 21]), 2, 0, [1, 2]),
        (slice(40, 45), 0, 1, [2, 4]),
        (slice(0, 45), 0, 0, [2, 4]),  # too many pages to cache: read straight
        (torch.tensor([], dtype=torch.long), 0, 0, [2, 4]),
    ]
    hits = misses = 0
    for where, h, m, pages in script:
        hits, misses = hits + h, misses + m
        got = lru.read(where)[0]
        assert torch.equal(got, torch.arange(45.0)[:, None][where])
        assert (lru.hits, lru.misses) == (hits, misses)
        assert sorted(lru._cached) == pages
    assert lru.cached_bytes() == 15 * 4
    lru.append((torch.tensor([[45.0]]),))  # the page that was not full is stale now
    assert sorted(lru._cached) == [2]
    assert lru.read(slice(40, 46))[0][-1] == 45
    assert lru.read(slice(0, 1))[0] == 0
    lru.keep(torch.tensor([3, 45]))
    assert lru.read(slice(0, 2))[0][:, 0].tolist() == [3, 45]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [2, 4, 8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1e-3, 1.0, 50.0]), shift=st.sampled_from([0.0, 1.0, -3.0]))
def test_codes_are_within_half_a_step(
    bits: int, group: int, dtype: torch.dtype, seed: int, size: float, shift: float
) -> None:
    x = ((torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(seed)) + shift) * size).to(dtype)
    codec = IntCodec(bits, group)
    back = codec.decode(codec.encode(x), dtype)
    assert back.shape == x.shape
    assert back.dtype == dtype
    grouped = x.double().unflatten(-1, (-1, min(group, 8)))
    step = (grouped.amax(-1) - grouped.amin(-1)) / (2**bits - 1)
    # half a step, and what rounding lo and step to half floats adds: 2^-11 of lo, and of step for each code
    allowed = step / 2 + 2**-11 * (grouped.abs().amax(-1) + (2**bits - 1) * step) * 1.01 + 2e-7 * 2**bits
    allowed = allowed[..., None] + grouped.abs() * torch.finfo(dtype).eps
    assert ((back.double().unflatten(-1, (-1, min(group, 8))) - grouped).abs() <= allowed).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_of_constants_and_extremes(bits: int) -> None:
    codec = IntCodec(bits, 8)
    same = torch.full((3, 2, 8), 0.75)
    assert torch.equal(codec.decode(codec.encode(same), torch.float32), same)
    ends = torch.tensor([0.0, 15.0] * 4).expand(1, 1, 8)
    torch.testing.assert_close(codec.decode(codec.encode(ends), torch.float32), ends, atol=0, rtol=2**-11)
    codes, lo, step = codec.encode(torch.randn(6, 2, 8))
    assert codes.shape == (6, 2, bits)
    assert codes.dtype == torch.uint8
    assert lo.shape == step.shape == (6, 2, 1)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("arena", ARENAS.values(), ids=ARENAS)
def test_codes_are_moved_and_never_coded_again(bits: int, arena: Callable[[], Arena]) -> None:
    """A token that is kept through many evictions decodes to exactly what it was first coded to."""

    class Counting:
        def __init__(self) -> None:
            self.coded: list[int] = []

        def encode(self, x: Tensor) -> tuple[Tensor, ...]:
            self.coded += x[:, 0, 0].tolist()
            return IntCodec(bits, 4).encode(x)

        def decode(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
            return IntCodec(bits, 4).decode(parts, dtype)

    codec = Counting()
    lane = Lane(HEADS, DIM, torch.float32, torch.device("cpu"), Layout(codec=codec, arena=arena, hot=4))
    numbers = torch.zeros(0, dtype=torch.long)
    first: dict[int, Tensor] = {}
    for i in range(12):
        lane.append(fresh(30, 30 * i))
        numbers = torch.cat([numbers, torch.arange(30 * i, 30 * (i + 1))])
        lane.settle()
        for slot in range(lane.cold_tokens):
            now = lane.read(slot, slot + 1)
            assert torch.equal(first.setdefault(int(numbers[slot]), now), now)
        keep = (torch.rand(len(numbers), generator=torch.Generator().manual_seed(i)) < 0.8).nonzero()[:, 0]
        lane.keep(keep)
        numbers = numbers[keep]
    assert len(codec.coded) == len(set(codec.coded)) > 100


@pytest.mark.parametrize("text", ["int8", "int4"])
def test_the_residual_is_exact_and_the_rest_is_coded(text: str) -> None:
    """A recent token is held as it is, an older one as its code says."""
    model, ids = tiny.model("llama"), tiny.tokens(200)
    with lengthwise.stack("dense").on(model) as run:
        exact = run.prefill(ids).layers[0].rows[0].values.read(0, 199)
    with lengthwise.stack(f"{text}:residual=16").on(model) as run:
        values = run.prefill(ids).layers[0].rows[0].values
        cold = values.cold_tokens
        got = values.read(0, 199)
    assert 199 - 16 - 64 <= cold <= 199 - 16
    assert torch.equal(got[:, cold:], exact[:, cold:])
    codec = IntCodec(int(text[3:]), 64)
    x = exact[:, :cold].transpose(0, 1)
    assert torch.equal(got[:, :cold].transpose(0, 1), codec.decode(codec.encode(x), torch.float32))
    assert not torch.equal(got[:, :cold], exact[:, :cold])


@pytest.mark.parametrize(("hot", "pages"), [(0, 0), (16, 1), (16, 32), (1000, 4)])
def test_offload_is_exact(hot: int, pages: int) -> None:
    model, ids = tiny.model("llama"), tiny.tokens(300)
    with lengthwise.stack(f"offload:hot={hot},pages={pages}").on(model) as run, torch.no_grad():
        cache = run.cache()
        got = torch.cat([model(p, past_key_values=cache).logits for p in ids.split([100, 100, 90, *[1] * 10], 1)], 1)
    torch.testing.assert_close(got, tiny.plain_logits(model, ids), atol=1e-5, rtol=1e-5)
    assert (run.ledger.acted["offload"] > 0) == (hot < 300 - 64)
    assert (run.ledger.layers[0].disk_bytes > 0) == (hot < 300 - 64)
