"""The fused element-wise kernels against the operators of transformers' Llama, in units of the last place."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from lengthwise.errors import BadInput
from lengthwise.kernels import build, library
from lengthwise.kernels.fused import add_rms_norm, cpu, rms_norm, rotary, silu_mul

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [(1, 1), (3, 37), (5, 576), (70, 1000)]
# differing by one unit before the product with a weight can be two after it; float32 sums are added in another order
NORM_ULPS = {torch.float32: 16, torch.bfloat16: 2, torch.float16: 2}
SILU_ULPS = {torch.float32: 64, torch.bfloat16: 1, torch.float16: 2}
SHARE = 3e-4  # of 16-bit results may differ at all
WAYS = ["naive", *build.ISAS]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stock operators, and the kernel on every instruction set."""
    monkeypatch.setattr("lengthwise.kernels.fused._SMALL", 0)
    if request.param == "naive":
        monkeypatch.setenv("LENGTHWISE_KERNELS", "naive")
    elif request.param not in library.available():
        pytest.skip(f"{request.param} cannot run here")
    else:
        monkeypatch.setenv("LENGTHWISE_ISA", request.param)
    return request.param


def random(*shape: int, dtype: torch.dtype, seed: int = 0, size: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def poisoned(x: Tensor) -> Tensor:
    """x as a view into a buffer of NaN: rows and heads with odd strides."""
    buffer = torch.full((*(n + 2 for n in x.shape[:-1]), x.shape[-1] + 5), NAN, dtype=x.dtype)
    return buffer[(*(slice(1, -1) for _ in x.shape[:-1]), slice(2, -3))].copy_(x)


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """How many numbers of the dtype lie between, for each element."""
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16

    def rank(x: Tensor) -> Tensor:
        bits = x.contiguous().view(kind).long()
        return torch.where(bits < 0, torch.iinfo(kind).min - bits, bits)

    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(a.isnan(), b.isnan())
    return (rank(a) - rank(b)).abs().masked_fill(a.isnan(), 0)


def close(a: Tensor, b: Tensor, most: int) -> None:
    apart = ulps(a, b)
    assert int(apart.max()) <= most
    if a.dtype != torch.float32:
        assert int((apart > 0).sum()) <= max(1, SHARE * a.numel())


def llama_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    norm = LlamaRMSNorm(len(weight), eps).to(weight.dtype)
    norm.weight.data.copy_(weight)
    with torch.no_grad():
        out: Tensor = norm(x)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), WIDTHS)
@pytest.mark.parametrize("size", [1.0, 1e-3, 300.0])
def test_rms_norm(way: str, dtype: torch.dtype, rows: int, width: int, size: float) -> None:
    x, weight = random(rows, width, dtype=dtype, size=size), random(width, dtype=dtype, seed=1)
    close(rms_norm(poisoned(x), weight, 1e-5), llama_norm(x, weight, 1e-5), NORM_ULPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), WIDTHS)
def test_add_rms_norm(way: str, dtype: torch.dtype, rows: int, width: int) -> None:
    x, residual, weight = (random(*s, dtype=dtype, seed=i) for i, s in enumerate([(rows, width)] * 2 + [(width,)]))
    normed, total = add_rms_norm(poisoned(x), poisoned(residual), weight, 1e-6)
    assert torch.equal(total, residual + x)
    close(normed, llama_norm(residual + x, weight, 1e-6), NORM_ULPS[dtype])


def test_eps_counts(way: str) -> None:
    x = torch.full((2, 8), 1e-3)
    torch.testing.assert_close(rms_norm(x, torch.ones(8), 1.0), x / (1 + 1e-6) ** 0.5)
    assert torch.equal(rms_norm(torch.zeros(1, 8), torch.ones(8), 1e-6), torch.zeros(1, 8))


def test_norm_takes_leading_dimensions(way: str) -> None:
    x, weight = random(2, 5, 3, 40, dtype=torch.bfloat16), random(40, dtype=torch.bfloat16)
    close(rms_norm(x.transpose(1, 2), weight, 1e-5), llama_norm(x.transpose(1, 2), weight, 1e-5), 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [2, 20, 64, 128])
@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("inplace", [False, True])
def test_rotary_bit_for_bit(way: str, dtype: torch.dtype, dim: int, tokens: int, inplace: bool) -> None:
    q, k = (poisoned(random(h, tokens, dim, dtype=dtype, seed=h)) for h in (6, 2))
    cos, sin = (poisoned(random(tokens, dim, dtype=dtype, seed=9 + i)) for i in range(2))  # no halves alike
    expected = [x[0] for x in apply_rotary_pos_emb(q[None], k[None], cos[None], sin[None])]
    got = rotary(q, k, cos, sin, out=(q, k) if inplace else None)
    for x, y, before in zip(got, expected, (q, k)):
        assert torch.equal(x, y)
        assert (x is before) == inplace


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", [1, 3])
def test_rotary_of_a_batch(way: str, dtype: torch.dtype, batches: int) -> None:
    q, k = (random(3, 20, h, 16, dtype=dtype, seed=h).transpose(1, 2) for h in (6, 2))
    cos, sin = (random(batches, 20, 16, dtype=dtype, seed=9 + i) for i in range(2))
    for x, y in zip(rotary(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin)):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_into_a_lane(way: str, dtype: torch.dtype) -> None:
    lane = torch.full((2, 50, 16), 7.0, dtype=dtype)
    q, k, cos, sin = (random(*s, 16, dtype=dtype, seed=i) for i, s in enumerate([(4, 5), (2, 5), (5,), (5,)]))
    out = rotary(q, k, cos, sin, out=(q.clone(), lane[:, 30:35]))
    assert torch.equal(lane[:, 30:35], rotary(q, k, cos, sin)[1])
    assert out[1].data_ptr() == lane[:, 30:35].data_ptr()
    assert bool((lane[:, :30] == 7).all())
    assert bool((lane[:, 35:] == 7).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), WIDTHS)
@pytest.mark.parametrize("size", [1.0, 8.0])
def test_silu_mul(way: str, dtype: torch.dtype, rows: int, width: int, size: float) -> None:
    gate, up = random(rows, width, dtype=dtype, size=size), random(rows, width, dtype=dtype, seed=1)
    expected = torch.nn.functional.silu(gate) * up
    close(silu_mul(poisoned(gate), poisoned(up)), expected, SILU_ULPS[dtype])
    both = torch.cat([gate, up], -1)  # halves of one projection
    close(silu_mul(*both.chunk(2, -1)), expected, SILU_ULPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_at_the_ends(way: str, dtype: torch.dtype) -> None:
    gate = torch.tensor([-3e4, -200, -89, -88, -80, -1e-6, 0, 1e-6, 80, 200, 3e4, float("inf"), -float("inf"), NAN])
    got, expected = silu_mul(gate.to(dtype), torch.ones(14, dtype=dtype)), torch.nn.functional.silu(gate.to(dtype))
    torch.testing.assert_close(got, expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-35, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_even_and_keeps_nan_infinity_and_subnormals(way: str, dtype: torch.dtype) -> None:
    """Every 16-bit number times one that makes halves: rotary by a quarter turn and a product."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    q = torch.stack([every, every.roll(12345)], -1)[None]
    cos, sin = (torch.full((2**16, 2), x, dtype=dtype) for x in (1.0078125, 0.50390625))
    for x, y in zip(rotary(q, q[:, :, :2], cos, sin), apply_rotary_pos_emb(q, q, cos, sin, unsqueeze_dim=0)):
        assert int(ulps(x, y).max()) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_bits(way: str, dtype: torch.dtype) -> None:
    x, y, weight = (random(*s, dtype=dtype, seed=i) for i, s in enumerate([(300, 128), (300, 128), (128,)]))
    q, angle = x.view(300, 2, 64).transpose(0, 1), y.view(300, 2, 64)[:, 0]

    def run(threads: int) -> list[Tensor]:
        more = {"threads": threads}
        return [
            rms_norm(x, weight, 1e-5, **more),
            *add_rms_norm(x, y, weight, 1e-5, **more),
            *rotary(q, q, angle, angle, **more),
            silu_mul(x, y, **more),
        ]

    one = run(1)
    for threads in (2, 3, 8):
        assert all(torch.equal(a, b) for a, b in zip(one, run(threads)))


def test_no_rows(way: str) -> None:
    empty = torch.zeros(0, 8)
    assert rms_norm(empty, torch.ones(8), 1e-5).shape == (0, 8)
    assert silu_mul(empty, empty).shape == (0, 8)
    assert rotary(torch.zeros(2, 0, 8), torch.zeros(1, 0, 8), empty, empty)[1].shape == (1, 0, 8)


def test_gradients_and_mixed_dtypes_go_through_the_stock_operators(way: str) -> None:
    x, weight = random(3, 8, dtype=torch.bfloat16).requires_grad_(), torch.ones(8)
    out = rms_norm(x, weight, 1e-5)
    assert out.dtype == torch.float32  # as torch promotes
    out.sum().backward()
    assert x.grad is not None
    double = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(silu_mul(double, double), torch.nn.functional.silu(double) * double)
    q = torch.randn(2, 3, 8, requires_grad=True)
    for y in rotary(q, q, torch.randn(3, 8), torch.randn(3, 8)):
        assert y.requires_grad
    assert silu_mul(q, q).requires_grad


def test_bad_input(way: str) -> None:
    x, q = torch.zeros(3, 8), torch.zeros(2, 3, 8)
    calls: list[tuple[Any, ...]] = [
        (rms_norm, x, torch.ones(7), 1e-5),
        (add_rms_norm, x, torch.zeros(2, 8), torch.ones(8), 1e-5),
        (silu_mul, x, torch.zeros(3, 7)),
        (rotary, q, torch.zeros(2, 4, 8), x, x),
        (rotary, q, q, torch.zeros(2, 8), x),
        (rotary, q, q, x, torch.zeros(3, 7)),
        (rotary, q[..., :7], q[..., :7], x[..., :7], x[..., :7]),
        (rotary, q[None], q, x[None], x[None]),
        (rotary, q[None], q[None], torch.zeros(2, 3, 8), x[None]),
    ]
    for call, *args in calls:
        with pytest.raises(BadInput, match="do not fit each other"):
            call(*args)
    with pytest.raises(BadInput, match="do not fit each other"):
        rotary(q, q, x, x, out=(q, torch.zeros(1, 3, 8)))


@pytest.mark.skipif(not library.available(), reason=library.describe())
def test_the_c_side_refuses_what_it_cannot_do() -> None:
    x = torch.zeros(3, 8)
    at = ctypes.c_void_p(x.data_ptr())
    good = {"x": at, "weight": at, "out": at, "x_row": 8, "rows": 1, "width": 8, "threads": 1}
    for bad, message in (({"dtype": 3}, "mix of dtypes"), ({"rows": -1}, "size"), ({"width": 0}, "size")):
        with pytest.raises(BadInput, match=message):
            library.function("rms_norm")(cpu._RmsNormArgs(**{**good, **bad}))
