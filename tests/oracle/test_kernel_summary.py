"""Block summaries and the choice of blocks: against loops over keys, queries and blocks, on every instruction set."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels import build, library
from lengthwise.kernels.attend.lists import BlockLists
from lengthwise.kernels.summary import Summary, cpu, representatives, summarize, top_blocks

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WAYS = ["naive", *build.ISAS]
needs_kernels = pytest.mark.skipif(not library.available(), reason=library.describe())


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The oracle, and the kernel on every instruction set."""
    if request.param == "naive":
        monkeypatch.setenv("LENGTHWISE_KERNELS", "naive")
    elif request.param not in library.available():
        pytest.skip(f"{request.param} cannot run here")
    else:
        monkeypatch.setenv("LENGTHWISE_ISA", request.param)
    return request.param


def poisoned(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [H, S, D] as a view with odd strides into a buffer of NaN."""
    heads, slots, dim = x.shape
    buffer = torch.full((slots + 3, heads + 1, dim + 3), NAN, dtype=dtype)
    return buffer.transpose(0, 1)[:heads, 1 : slots + 1, 1 : dim + 1].copy_(x)


def keys(slots: int = 300, heads: int = 2, dim: int = 24, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return poisoned(torch.randn(heads, slots, dim, generator=torch.Generator().manual_seed(seed)), dtype)


def exact(*shape: int, seed: int = 0) -> Tensor:
    """Small integers: every sum of products is exact in float32, so that scores have no rounding, and many ties."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("dim", [1, 24, 64])
def test_summaries(way: str, dtype: torch.dtype, length: int, dim: int) -> None:
    k = keys(dtype=dtype, dim=dim)
    k[:, length:] = NAN
    got = summarize(k, length=length)
    assert got.mean.dtype == torch.float32
    assert got.low.dtype == got.high.dtype == dtype
    for block in range(-(-length // 64)):
        part = k[:, 64 * block : min(length, 64 * block + 64)]
        mean = part.double().sum(1) / part.shape[1]
        torch.testing.assert_close(got.mean[:, block].double(), mean, atol=1e-6, rtol=1e-5)
        assert torch.equal(got.low[:, block], part.min(1).values)
        assert torch.equal(got.high[:, block], part.max(1).values)
    assert got.mean.shape[1] == -(-length // 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_new_blocks_are_computed(way: str, dtype: torch.dtype) -> None:
    k = keys(dtype=dtype)
    whole = summarize(k, length=300)
    room = Summary(*(torch.full((2, 9, 24), -7.0, dtype=x.dtype) for x in whole))
    first = Summary(*(x[:, :2] for x in room))
    assert summarize(k[:, :150], length=128, out=first) is first
    k[:, :128] = NAN  # read no more
    summarize(k, length=300, start_block=2, out=Summary(*(x[:, 2:5] for x in room)))
    for x, expected in zip(room, whole):
        assert torch.equal(x[:, :5], expected)
        assert bool((x[:, 5:] == -7).all())


@pytest.mark.parametrize("length", [0, 64])
def test_no_new_block(way: str, length: int) -> None:
    assert summarize(keys(), length=length, start_block=length // 64).mean.shape == (2, 0, 24)


def test_threads_do_not_change_summaries(way: str) -> None:
    one = summarize(keys(), length=300, threads=1)
    for threads in (2, 8):
        assert all(torch.equal(a, b) for a, b in zip(one, summarize(keys(), length=300, threads=threads)))


def best_blocks(q: Tensor, s: Summary, i: int, heads: range, limit: int, a: dict[str, Any]) -> list[int]:
    """The definition, head by head."""
    sinks, local = a["always"]
    taken = [b for b in range(limit) if b < sinks or b >= limit - local]
    ratio, rows = q.shape[0] // s.mean.shape[0], slice(a["query_block"] * i, a["query_block"] * (i + 1))
    best = torch.full((s.mean.shape[1],), float("-inf"), dtype=torch.float64)
    for h in heads:
        mean, low, high = (x[h // ratio].double() for x in s)
        x = q[h, rows, None].double()
        scores = x * mean if a["kind"] == "mean" else torch.maximum(x * low, x * high)
        best = torch.maximum(best, scores.sum(-1).amax(0))
    others = sorted(set(range(limit)) - set(taken), key=lambda b: (-float(best[b]), b))
    return sorted(taken + others[: a["count"]])


def check(q: Tensor, s: Summary, limits: list[int], **a: Any) -> BlockLists:
    a = {"kind": "mean", "share": "group", "always": (1, 1), "query_block": 64, "count": 2, **a}
    lists = top_blocks(q, s, limits=torch.tensor(limits), **a)
    groups = s.mean.shape[0] if a["share"] == "group" else q.shape[0]
    assert lists.query_block == a["query_block"]
    assert lists.offsets.shape == (groups, len(limits) + 1)
    lists.mask(s.mean.shape[1])  # the form that `attend` accepts
    for g in range(groups):
        heads = range(g * q.shape[0] // groups, (g + 1) * q.shape[0] // groups)
        for i, limit in enumerate(limits):
            got = lists.blocks[lists.offsets[g, i] : lists.offsets[g, i + 1]].tolist()
            assert got == best_blocks(q.float(), s, i, heads, limit, a)
    return lists


@pytest.mark.parametrize("kind", ["mean", "bounds"])
@pytest.mark.parametrize("share", ["group", "head"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (5, 1)])
def test_the_best_blocks_and_ties(way: str, kind: str, share: str, heads: int, kv_heads: int) -> None:
    s = Summary(exact(kv_heads, 20, 3), *exact(kv_heads, 20, 3, seed=1)[None].expand(2, -1, -1, -1))
    s = s._replace(high=s.low + exact(kv_heads, 20, 3, seed=2).abs())
    check(exact(heads, 130, 3, seed=3), s, [20, 13, 7], kind=kind, share=share, count=4, always=(2, 3))


@pytest.mark.parametrize("kind", ["mean", "bounds"])
@pytest.mark.parametrize("queries", [1, 16, 17, 64, 65, 200])
def test_numbers_of_queries(way: str, kind: str, queries: int) -> None:
    low = exact(2, 30, 5, seed=1)
    s = Summary(exact(2, 30, 5), low, low + exact(2, 30, 5, seed=2).abs())
    check(exact(4, queries, 5, seed=4), s, [30] * -(-queries // 64), kind=kind, count=3)
    check(exact(4, queries, 5, seed=4), s, [30] * -(-queries // 128), kind=kind, count=3, query_block=128)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["mean", "bounds"])
def test_dtypes_and_strides(way: str, dtype: torch.dtype, kind: str) -> None:
    low = exact(2, 30, 9, seed=1)
    s = Summary(
        poisoned(exact(2, 30, 9), torch.float32),
        poisoned(low, dtype),
        poisoned(low + exact(2, 30, 9, seed=2).abs(), dtype),
    )
    check(poisoned(exact(4, 100, 9, seed=4), dtype), s, [30, 17], kind=kind, count=5)


def test_few_blocks_are_all_taken(way: str) -> None:
    s = Summary(*(exact(2, 9, 4) for _ in range(3)))
    for limit in range(10):
        for always in ((0, 0), (2, 3), (9, 9)):
            check(exact(4, 64, 4), s, [limit], always=always, count=4)
            check(exact(4, 64, 4), s, [limit], always=always, count=0)


def test_blocks_beyond_the_limit_have_no_say(way: str) -> None:
    mean = exact(2, 12, 4)
    mean[:, 6:] = NAN
    s = Summary(mean, mean, mean)
    check(exact(4, 64, 4, seed=2), s, [6], count=2)
    check(exact(4, 64, 4, seed=2), s, [6], count=2, kind="bounds")


@pytest.mark.parametrize("queries", [3, 16, 40])
def test_a_score_that_is_no_number_comes_last(way: str, queries: int) -> None:
    mean = torch.tensor([0.0, 1.0, NAN, -5.0, 2.0])[None, :, None].contiguous()
    for at in range(queries):
        q = torch.ones(1, queries, 1)
        q[0, at] = NAN  # a query that is no number has no say
        lists = top_blocks(q, Summary(mean, mean, mean), count=2, limits=torch.tensor([5]), always=(0, 0))
        assert lists.blocks.tolist() == [1, 4]
        lists = top_blocks(q, Summary(mean, mean, mean), count=4, limits=torch.tensor([5]), always=(0, 0))
        assert lists.blocks.tolist() == [0, 1, 3, 4]


def test_bounds_are_never_below_a_score(way: str) -> None:
    """Quest's promise: the block of the best key of a query is found with as many blocks as have bounds above it."""
    k = keys(640, heads=1)
    q = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(5))
    s = summarize(k, length=640)
    logits = (k[0].float() @ q[0, 0]).view(10, 64).amax(1)
    upper = torch.maximum(q[0, 0] * s.low[0].float(), q[0, 0] * s.high[0].float()).sum(-1)
    assert bool((upper >= logits - 1e-5).all())
    needed = int((upper >= logits.max()).sum())
    lists = top_blocks(q, s, count=needed, limits=torch.tensor([10]), kind="bounds", always=(0, 0))
    assert int(logits.argmax()) in lists.blocks.tolist()


def test_one_query_of_one_head_is_enough(way: str) -> None:
    mean = torch.zeros(1, 10, 8)
    mean[0, 5, 3] = 1.0
    q = -0.01 * torch.rand(3, 64, 8, generator=torch.Generator().manual_seed(0))
    q[:, :, 3] = -1.0  # all but one want anything else
    q[2, 40, 3] = 0.5
    lists = top_blocks(q, Summary(mean, mean, mean), count=1, limits=torch.tensor([10]), always=(0, 0))
    assert lists.blocks.tolist() == [5]


@pytest.mark.parametrize("kind", ["mean", "bounds"])
def test_threads_do_not_change_lists(way: str, kind: str) -> None:
    s = summarize(keys(2000), length=2000)
    q = torch.randn(6, 300, 24, generator=torch.Generator().manual_seed(7))
    limits = torch.tensor([28, 29, 30, 31, 32])
    one = top_blocks(q, s, count=5, limits=limits, kind=kind, threads=1)  # type: ignore[arg-type]
    for threads in (2, 5, 8):
        many = top_blocks(q, s, count=5, limits=limits, kind=kind, threads=threads)  # type: ignore[arg-type]
        assert torch.equal(one.blocks, many.blocks)
        assert torch.equal(one.offsets, many.offsets)


def test_no_queries(way: str) -> None:
    s = summarize(keys(), length=300)
    lists = top_blocks(torch.zeros(4, 0, 24), s, count=2, limits=torch.zeros(0, dtype=torch.int64))
    assert lists.offsets.tolist() == [[0], [0]]
    assert len(lists.blocks) == 0


@needs_kernels
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    blocks, dim, queries = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 20)), data.draw(st.integers(1, 140))
    low = exact(kv_heads, blocks, dim, seed=data.draw(st.integers(0, 99)))
    s = Summary(exact(kv_heads, blocks, dim, seed=7), low, low + exact(kv_heads, blocks, dim, seed=8).abs())
    q = exact(kv_heads * group, queries, dim, seed=9)
    stripes = -(-queries // 64)
    limits = data.draw(st.lists(st.integers(0, blocks), min_size=stripes, max_size=stripes))
    options: dict[str, Any] = {
        "kind": data.draw(st.sampled_from(["mean", "bounds"])),
        "share": data.draw(st.sampled_from(["group", "head"])),
        "always": data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5))),
        "count": data.draw(st.integers(0, 10)),
    }
    check(q, s, limits, **options)
    wrong = data.draw(st.one_of(st.integers(blocks + 1, 2**62), st.integers(-(2**62), -1)))
    limits[data.draw(st.integers(0, stripes - 1))] = wrong
    with pytest.raises(BadInput, match="a limit is outside"):
        top_blocks(q, s, limits=torch.tensor(limits), **options)


@needs_kernels
def test_the_c_side_refuses_limits_that_python_let_through() -> None:
    s = summarize(keys(), length=300)
    args = cpu._TopBlocksArgs(lists=2, heads=2, kv_heads=2, queries=1, query_block=64, blocks=5, dim=24, threads=1)
    for name, value in (("q", keys(1)), ("first", s.mean)):
        setattr(args, name, library.lane(value))
    for bad in (6, -1):
        limits, offsets, chosen = torch.tensor([bad]), torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, dtype=torch.int32)
        args.limits, args.offsets, args.chosen = (ctypes.c_void_p(x.data_ptr()) for x in (limits, offsets, chosen))
        with pytest.raises(BadInput, match="block id outside"):
            library.function("top_blocks")(args)


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("start", [0, 2])
def test_representatives(scored: bool, start: int) -> None:
    k = keys(310)
    k[:, 256:] = NAN  # the fifth block is not full
    scores = torch.rand(4, 310, generator=torch.Generator().manual_seed(3)) if scored else None
    got = representatives(k, length=310 - 50, count=3, scores=scores, start_block=start)
    heads = 4 if scored else 2
    assert got.shape == (heads, 4 - start, 3, 24)
    for h in range(heads):
        lane = h * 2 // heads
        for b in range(start, 4):
            by = scores[h] if scores is not None else k[lane].float().pow(2).sum(-1)
            order = sorted(range(64 * b, 64 * b + 64), key=lambda slot: -float(by[slot]))
            assert torch.equal(got[h, b - start], k[lane, order[:3]])


def test_equal_representatives_come_in_order() -> None:
    k = torch.arange(128.0).view(1, 128, 1)
    got = representatives(k, length=128, count=2, scores=torch.zeros(1, 128))
    assert got.flatten().tolist() == [0, 1, 64, 65]


def test_bad_input(way: str) -> None:
    k, s, limits = keys(), summarize(keys(), length=300), torch.tensor([5])
    q = torch.zeros(4, 10, 24)

    def refused(message: str, call: Any, *args: Any, **options: Any) -> None:
        with pytest.raises(BadInput, match=message):
            call(*args, **options)

    refused("do not have 301 slots", summarize, k, length=301)
    refused("start_block must be from 0 to the 5", summarize, k, length=300, start_block=6)
    refused("out must hold 5 blocks", summarize, k, length=300, out=Summary(*(x[:, :4] for x in s)))
    refused("out must hold", summarize, k.bfloat16(), length=300, out=s)
    refused("do not fit summaries", top_blocks, q[..., :5], s, count=1, limits=limits)
    refused("do not fit summaries", top_blocks, q[:3], s, count=1, limits=limits)
    refused("one shape", top_blocks, q, s._replace(low=s.low[:, 1:]), count=1, limits=limits)
    refused("limits must be int64", top_blocks, q, s, count=1, limits=limits.int())
    refused("each of 1 query blocks", top_blocks, q, s, count=1, limits=torch.tensor([1, 2]))
    refused("a limit is outside", top_blocks, q, s, count=1, limits=torch.tensor([6]))
    refused("at least 0", top_blocks, q, s, count=-1, limits=limits)
    refused("at least 0", top_blocks, q, s, count=1, limits=limits, always=(0, -1))
    refused("mean or bounds", top_blocks, q, s, count=1, limits=limits, kind="best")
    refused("multiple of 64", top_blocks, q, s, count=1, limits=limits, query_block=32)
    refused("do not have blocks", representatives, k, length=301, count=1)
    refused("from 1 to 64", representatives, k, length=300, count=65)
    refused("scores", representatives, k, length=300, count=1, scores=torch.zeros(3, 300))
