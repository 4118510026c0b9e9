"""The attention kernel against the definition: every instruction set of this machine, poisoned buffers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_case import CASES, DTYPES, Case, check, needs_kernels
from lengthwise.core.frames import FAR
from lengthwise.kernels import library
from lengthwise.kernels.attend import attend, cpu


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_as_naive(name: str, dtype: torch.dtype, isa: str) -> None:
    check(Case(**CASES[name], dtype=dtype, seed=len(name)))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_head_dims(dim: int, dtype: torch.dtype, isa: str) -> None:
    check(Case(heads=3, kv_heads=1, rows=70, slots=140, dim=dim, dtype=dtype))
    check(Case(heads=2, kv_heads=2, rows=20, slots=70, dim=dim, coded=True, dtype=dtype))


@needs_kernels
def test_group_larger_than_a_unit(isa: str) -> None:
    """A group whose queries do not fit the cache together is worked on in parts, the last one smaller."""
    for dtype in DTYPES[:2]:
        check(Case(heads=26, kv_heads=2, rows=65, slots=130, dim=256, dtype=dtype))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["float32", "bfloat16"])
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    case = Case(rows=300, slots=600, groups=2, rules=((400, 10),), dtype=dtype)
    first = cpu.attend(case.request(), threads=1)
    for threads in (2, 3, 5, 8):
        other = cpu.attend(case.request(), threads=threads)
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1], other[1])
        assert first[2] == other[2]


@needs_kernels
def test_growing_maximum_is_rescaled(isa: str) -> None:
    """Later keys score higher: by less than the slack of the lazy rescaling, and by far more."""
    for growth in (0.01, 0.2, 3.0):
        case = Case(heads=2, rows=10, slots=640, dim=16)
        case.q = [torch.ones(2, 10, 16)]
        case.k = [(torch.arange(640) * growth)[None, :, None].expand(2, 640, 16) / 16]
        check(case)


@needs_kernels
def test_a_seen_nan_stays(isa: str) -> None:
    case = Case(heads=2, kv_heads=1, rows=64, slots=64)
    case.k[0][0, 10, 3] = float("nan")
    out, lse, _ = cpu.attend(case.request())
    assert not out[:, :10].isnan().any()
    assert not lse[:, :10].isnan().any()
    assert out[:, 10:].isnan().all()
    assert lse[:, 10:].isnan().all()


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bfloat16", "float16"])
def test_every_number_of_16_bits_is_read_and_written(dtype: torch.dtype, isa: str) -> None:
    """One key: the output is its value. All 65,536 of them, subnormals and infinities too."""
    v = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(256, 1, 256)
    q = k = torch.ones(256, 1, 1, dtype=dtype)
    zero = torch.zeros(1, dtype=torch.int64)
    out, _, _ = attend([q], [k], v, q_positions=zero, k_positions=zero, scale=1.0)
    finest = 2.0**-126 if dtype == torch.bfloat16 else 0.0  # the pair product counts a subnormal bfloat16 as 0
    torch.testing.assert_close(out.float(), v.float(), atol=finest, rtol=0, equal_nan=True)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads, ratio = draw(st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 1)]))
    low = draw(st.integers(1, 200))
    return Case(
        heads=kv_heads * ratio,
        kv_heads=kv_heads,
        rows=draw(st.integers(1, 200)),
        slots=draw(st.integers(0, 400)),
        dim=draw(st.integers(1, 5)) * 16,
        dtype=draw(st.sampled_from(DTYPES)),
        frames=draw(st.sampled_from([((0, FAR),), ((0, low), (low, FAR)), ((low, FAR),), ((-5, low),)])),
        rules=draw(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 100)), max_size=2).map(tuple)),
        groups=draw(st.sampled_from([0, 1, kv_heads, kv_heads * ratio])),
        query_block=draw(st.sampled_from([64, 192])),
        share=draw(st.sampled_from([0.0, 0.2, 0.8, 1.0])),
        gaps=draw(st.booleans()),
        coded=draw(st.booleans()),
        softcap=draw(st.sampled_from([None, 5.0])),
        seed=draw(st.integers(0, 1000)),
    )


@needs_kernels
@given(case=cases(), which=st.integers(0, 100), threads=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_fuzz(case: Case, which: int, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENGTHWISE_ISA", library.available()[which % len(library.available())])
        check(case, threads=threads)
