"""The decode kernel against the definition: every instruction set of this machine, poisoned buffers, bad pages."""

from __future__ import annotations

import ctypes
import mmap
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lengthwise.core import attend
from lengthwise.errors import BadInput
from lengthwise.kernels import BlockLists, library
from lengthwise.kernels.decode import cpu, decode, naive
from lengthwise.kernels.decode.request import Request
from lengthwise.kernels.library import Coded

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_kernels = pytest.mark.skipif(not library.available(), reason=library.describe())


def lane(x: Tensor, dtype: torch.dtype, seen: Tensor) -> Tensor:
    """x [H, S, D] as a view with odd strides into a buffer of NaN; slots that no query sees are NaN too."""
    heads, slots, dim = x.shape
    buffer = torch.full((slots + 3, heads + 1, dim + 3), NAN, dtype=dtype)
    return buffer.transpose(0, 1)[:heads, 1 : slots + 1, 1 : dim + 1].copy_(x.masked_fill(~seen[..., None], NAN))


def coded(x: Tensor, groups: int, seen: Tensor) -> Coded:
    grouped = x.unflatten(-1, (groups, -1))
    low, step = grouped.amin(-1).half(), ((grouped.amax(-1) - grouped.amin(-1)) / 255).half()
    codes = ((grouped - low[..., None]) / step.float().clamp(min=1e-6)[..., None]).round().clamp(0, 255).flatten(-2)
    view = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2] + 1), 255, dtype=torch.uint8)[:, 1:-1, 1:]
    return Coded(view.copy_(codes), lane(low, torch.float16, seen), lane(step, torch.float16, seen))


def case(
    heads: int = 6,
    kv_heads: int = 2,
    slots: int = 300,
    length: int | None = None,
    dim: int = 32,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    pages: Tensor | None = None,
    seen: Tensor | None = None,
    groups: int = 0,
    softcap: float | None = None,
    size: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of one call; whatever the query does not see is NaN."""
    g = torch.Generator().manual_seed(seed)
    length = slots if length is None else length
    q = torch.randn(heads, dim, generator=g) * size
    k = torch.randn(kv_heads, slots, dim, generator=g)
    v = torch.randn(kv_heads, slots, value_dim or dim, generator=g)
    sees = visible(kv_heads, slots, length, pages, seen)
    keys: Any = coded(k, groups, sees) if groups else lane(k, dtype, sees)
    values: Any = coded(v, groups, sees) if groups else lane(v, dtype, sees)
    options = {"pages": pages, "length": length, "scale": dim**-0.5, "softcap": softcap, "seen": seen}
    return {"q": q.to(dtype), "k": keys, "v": values, **options}


def visible(kv_heads: int, slots: int, length: int, pages: Tensor | None, seen: Tensor | None) -> Tensor:
    """Which slots [Hkv, slots] the query sees, slot by slot."""
    found = torch.zeros(kv_heads, slots, dtype=torch.bool)
    for head in range(kv_heads):
        for slot in range(length):
            listed = pages is None or slot // 64 in pages[head % len(pages)].tolist()
            shown = seen is None or bool(seen[head % len(seen), slot])
            found[head, slot] = listed and shown
    return found


def check(arguments: dict[str, Any], **more: Any) -> tuple[Tensor, Tensor]:
    """The kernel against the oracle on the same arguments."""
    out, lse, pairs = decode(**arguments, **more)
    expected, expected_lse, expected_pairs = naive.decode(Request(**arguments))
    assert not expected.isnan().any()
    assert out.dtype == lse.dtype == torch.float32
    assert pairs == expected_pairs
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse, expected_lse, atol=2e-5, rtol=1e-5)
    return out, lse


def random_pages(groups: int, slots: int, seed: int = 0) -> Tensor:
    """Pages [groups, all there are + 2] in random order, about half of them listed, with pads between."""
    g = torch.Generator().manual_seed(seed)
    blocks = -(-slots // 64)
    rows = []
    for _ in range(groups):
        ids = torch.cat([torch.randperm(blocks, generator=g), torch.tensor([-1, -1])])
        ids[torch.rand(blocks + 2, generator=g) < 0.5] = -1
        rows.append(ids[torch.randperm(blocks + 2, generator=g)])
    return torch.stack(rows).int()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("paged", [False, True])
def test_oracle_is_attention_over_what_is_visible(dtype: torch.dtype, paged: bool) -> None:
    pages = random_pages(2, 300) if paged else None
    seen = torch.rand(1, 300, generator=torch.Generator().manual_seed(1)) < 0.7
    a = case(dtype=dtype, pages=pages, seen=seen, softcap=3.0)
    out, lse, pairs = naive.decode(Request(**a))
    mask = visible(2, 300, 300, pages, seen)
    for head in range(2):
        group = slice(3 * head, 3 * head + 3)
        k, v = (a[x][head : head + 1].float().nan_to_num() for x in "kv")
        expected = attend.naive(a["q"][group, None].float(), k, v, scale=a["scale"], mask=mask[head][None], softcap=3.0)
        torch.testing.assert_close(out[group, None], expected[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(lse[group, None], expected[1], atol=1e-5, rtol=1e-5)
    assert pairs == 3 * int(mask.sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300, 2500])
def test_lengths(isa: str, dtype: torch.dtype, length: int) -> None:
    check(case(slots=length + 7, length=length, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (80, 40), (33, 7), (1, 1), (128, 256), (96, 48)])
def test_dimensions(isa: str, dtype: torch.dtype, dim: int, value_dim: int) -> None:
    check(case(dim=dim, value_dim=value_dim, dtype=dtype))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (8, 4), (4, 4), (5, 1), (7, 1), (32, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gqa_ratios(isa: str, dtype: torch.dtype, heads: int, kv_heads: int) -> None:
    check(case(heads, kv_heads, dtype=dtype, pages=random_pages(kv_heads, 300)))


@pytest.mark.parametrize("groups", [1, 2, 32])
@pytest.mark.parametrize("dim", [32, 96])
def test_codes(isa: str, groups: int, dim: int) -> None:
    seen = torch.rand(1, 300, generator=torch.Generator().manual_seed(2)) < 0.8
    check(case(dim=dim, groups=groups, seen=seen, pages=random_pages(1, 300, seed=3)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2])
def test_hidden_slots(isa: str, dtype: torch.dtype, groups: int) -> None:
    seen = torch.rand(groups, 320, generator=torch.Generator().manual_seed(2)) < 0.3
    seen[0, 64:192] = False
    check(case(length=300, slots=310, dtype=dtype, seen=seen[:, :310], pages=random_pages(2, 300, seed=5)))


def test_one_row_of_seen_may_be_flat(isa: str) -> None:
    a = case(seen=torch.arange(300)[None] % 3 > 0)
    out, lse = check(a)
    flat = decode(**{**a, "seen": a["seen"][0]})
    assert torch.equal(flat[0], out)
    assert torch.equal(flat[1], lse)


@pytest.mark.parametrize("other", [[], [1], [3, 4]])
def test_block_lists_as_pages(other: list[int]) -> None:
    mask = torch.zeros(2, 1, 5, dtype=torch.bool)
    mask[0, 0, [0, 2]] = mask[1, 0, other] = True
    pages = BlockLists.of(mask).pages()
    assert pages.dtype == torch.int32
    assert pages.tolist() == [[0, 2], [*other, -1, -1][:2]]


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
def test_softcap(isa: str, softcap: float) -> None:
    check(case(softcap=softcap, size=4.0))


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_large_scores_do_not_overflow(isa: str, size: float) -> None:
    a = case(size=size, slots=1500)
    out, lse, _ = decode(**a)
    expected, expected_lse, _ = naive.decode(Request(**a))
    torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=1e-3)  # a score of 1,000 is only known to 6e-5


@pytest.mark.parametrize(
    "nothing",
    [
        {"length": 0},
        {"slots": 0},
        {"pages": torch.full((1, 4), -1, dtype=torch.int32)},
        {"pages": torch.zeros(1, 0, dtype=torch.int32)},
        {"seen": torch.zeros(1, 300, dtype=torch.bool)},
    ],
    ids=["no length", "no slots", "pads", "no pages", "hidden"],
)
def test_a_query_that_sees_nothing(isa: str, nothing: dict[str, Any]) -> None:
    out, lse, pairs = decode(**case(**nothing))
    assert torch.equal(out, torch.zeros(6, 32))
    assert torch.equal(lse, torch.full((6,), float("-inf")))
    assert pairs == 0


def test_one_group_sees_nothing_beside_one_that_does(isa: str) -> None:
    out, lse = check(case(pages=torch.tensor([[-1, -1], [3, 0]], dtype=torch.int32)))
    assert torch.equal(lse.isinf(), torch.tensor([True] * 3 + [False] * 3))
    assert bool((out[3:] != 0).any(1).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    a = case(slots=4000, dtype=dtype, pages=random_pages(2, 4000))
    one = check(a, threads=1)
    for threads in range(2, 9):
        for x, y in zip(one, decode(**a, threads=threads)[:2]):
            assert torch.equal(x, y)


def test_a_nan_that_is_seen_shows(isa: str) -> None:
    a = case()
    a["v"][0, 7] = NAN
    out = decode(**a)[0]
    assert out[:3].isnan().all()
    assert not out[3:].isnan().any()


def guarded(x: Tensor) -> Tensor:
    """A copy of x that ends where readable memory ends: a read beyond it kills the process."""
    size = x.numel() * x.element_size()
    page, pages = mmap.PAGESIZE, -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * page)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages * page
    assert (
        ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(page), mmap.PROT_READ & 0) == 0
    )
    whole = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=pages * page - size)
    return whole.view(x.shape).copy_(x)


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@pytest.mark.parametrize("dim", [7, 33, 48, 64])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8])
def test_nothing_is_read_beyond_the_last_slot(isa: str, dtype: torch.dtype, dim: int) -> None:
    for length in (5, 65):
        q, k, v = torch.randn(4, dim), torch.randn(2, length, dim), torch.randn(2, length, dim)
        keys: Any = guarded(k.to(dtype)) if dtype != torch.uint8 else None
        values: Any = guarded(v.to(dtype)) if dtype != torch.uint8 else None
        if dtype == torch.uint8:
            every = torch.ones(2, length, dtype=torch.bool)
            keys, values = (
                Coded(*(guarded(part.contiguous()) for part in (c.codes, c.low, c.step)))
                for c in (coded(x, 1, every) for x in (k, v))
            )
        check({"q": q, "k": keys, "v": values, "length": length, "scale": 0.3, **NOTHING})


NOTHING: dict[str, Any] = {"pages": None, "softcap": None, "seen": None}


@needs_kernels
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    slots = data.draw(st.integers(0, 400))
    length = data.draw(st.integers(0, slots))
    blocks = -(-length // 64)
    rows = data.draw(st.sampled_from([1, kv_heads]))
    pages = None
    bad = False
    if data.draw(st.booleans()):
        ids = [data.draw(st.permutations(range(blocks))) for _ in range(rows)]
        pages = torch.tensor(ids, dtype=torch.int32).view(rows, blocks)
        pages[torch.rand(pages.shape, generator=torch.Generator().manual_seed(slots)) < 0.4] = -1
        if pages.numel() and data.draw(st.booleans()):
            wrong = data.draw(st.one_of(st.integers(blocks, 2**31 - 1), st.integers(-(2**31), -2)))
            at = data.draw(st.integers(0, pages.numel() - 1))
            bad, good = True, pages.clone()
            pages.view(-1)[at] = wrong
    a = case(
        heads=kv_heads * group,
        kv_heads=kv_heads,
        slots=slots,
        length=length,
        dim=data.draw(st.integers(1, 70)),
        value_dim=data.draw(st.integers(1, 70)),
        dtype=data.draw(st.sampled_from(DTYPES)),
        pages=good if bad else pages,
        seed=data.draw(st.integers(0, 9)),
    )
    if not bad:
        check(a, threads=data.draw(st.integers(1, 4)))
        return
    a["pages"] = pages
    with pytest.raises(BadInput, match="block"):
        decode(**a)
    with pytest.raises(BadInput, match="block id outside"):  # the C side does not trust Python
        cpu.decode(unchecked(a))


def unchecked(arguments: dict[str, Any]) -> Request:
    """A request that nobody checked."""
    q, k, v = (arguments[x] for x in "qkv")
    sizes = {"heads": q.shape[0], "kv_heads": k.shape[0], "value_dim": v.shape[2]}
    request: Any = SimpleNamespace(**arguments, **sizes)
    return request


@needs_kernels
@pytest.mark.parametrize(
    "change",
    [{"length": -1}, {"heads": 5}, {"kv_heads": 0}, {"value_dim": 0}],
    ids=lambda change: next(iter(change)),
)
def test_the_c_side_refuses_sizes(change: dict[str, Any]) -> None:
    request: Any = unchecked(case())
    for name, value in change.items():
        setattr(request, name, value)
    with pytest.raises(BadInput, match="size that it does not take"):
        cpu.decode(request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 301}, "length must be from 0 to the 300"),
        ({"length": -1}, "length must be"),
        ({"q": torch.zeros(6, 31)}, "does not fit keys"),
        ({"q": torch.zeros(5, 32)}, "does not fit keys"),
        ({"v": torch.zeros(2, 299, 32)}, "values"),
        ({"softcap": 0.0}, "softcap"),
        ({"softcap": NAN}, "softcap"),
        ({"pages": torch.zeros(1, 2)}, "pages must be int32"),
        ({"pages": torch.tensor([[0, 5]], dtype=torch.int32)}, "block (id )?outside the"),
        ({"pages": torch.tensor([[-2, 0]], dtype=torch.int32)}, "block (id )?outside the"),
        ({"pages": torch.zeros(3, 2, dtype=torch.int32)}, "one for each of 2 KV heads"),
        ({"seen": torch.ones(1, 299, dtype=torch.bool)}, "seen covers 299"),
        ({"seen": torch.ones(1, 300)}, "seen must be bool"),
    ],
)
@pytest.mark.parametrize("backend", ["naive", "cpu"])
def test_bad_input(change: dict[str, Any], message: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "cpu" and not library.available():
        pytest.skip(library.describe())
    monkeypatch.setenv("LENGTHWISE_KERNELS", backend)
    with pytest.raises(BadInput, match=message):
        decode(**{**case(), **change})


@needs_kernels
def test_lanes_that_the_kernel_cannot_read() -> None:
    a = case()
    with pytest.raises(BadInput, match="contiguous in D"):
        decode(**{**a, "k": a["k"].transpose(1, 2).contiguous().transpose(1, 2)})
    with pytest.raises(BadInput, match="float32, bfloat16 and float16"):
        decode(**{**a, "k": a["k"].double()})
    with pytest.raises(BadInput, match="threads"):
        decode(**a, threads=0)


def test_gradients_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    a = case(slots=70)
    a["q"].requires_grad_()
    decode(**a)[0].sum().backward()
    assert a["q"].grad is not None
    assert bool((a["q"].grad != 0).any())
