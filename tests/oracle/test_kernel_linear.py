"""A matrix times one vector: the compiled kernel against a loop in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lengthwise
import tiny
from lengthwise.errors import BadInput
from lengthwise.kernels import library, linear
from lengthwise.kernels.linear import cpu

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ISAS = [isa for isa in ("portable", "avx2", "avx512", "avx512bf16", "neon") if isa in library.available()]
SIZES = [(1, 1), (5, 3), (64, 48), (33, 65), (7, 5000), (300, 576)]


def tensors(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows * 10_000 + columns)
    x, weight, bias = (torch.randn(*s, generator=g) for s in ((columns,), (rows, columns), (rows,)))
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LENGTHWISE_KERNELS", "cpu")
    monkeypatch.setenv("LENGTHWISE_ISA", request.param)
    return str(request.param)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_every_row(rows: int, columns: int, dtype: torch.dtype, isa: str) -> None:
    x, weight, bias = tensors(rows, columns, dtype)
    wide = torch.full((rows, columns + 9), float("nan"), dtype=dtype)  # what lies between two rows is not read
    wide[:, :columns] = weight
    expected = torch.tensor(
        [sum(float(a) * float(b) for a, b in zip(row, x, strict=True)) for row in weight[:20]], dtype=torch.float64
    )
    for given in (weight, wide[:, :columns]):
        for add in (None, bias):
            got = linear(x[None, None], given, add)
            assert got.shape == (1, 1, rows)
            assert got.dtype == dtype
            wanted = expected if add is None else expected + add[:20].double()
            size = weight[:20].double().norm(dim=1) * x.double().norm() + 1
            assert ((got[0, 0, :20].double() - wanted).abs() < ROUNDING[dtype] * size).all()
            assert torch.allclose(got[0, 0].float(), nn.functional.linear(x, given, add).float(), rtol=0.05, atol=0.5)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_threads_do_not_change_a_bit(dtype: torch.dtype, isa: str) -> None:
    x, weight, bias = tensors(700, 333, dtype)
    alone = linear(x, weight, bias, threads=1)
    assert all(torch.equal(alone, linear(x, weight, bias, threads=n)) for n in (2, 3, 8))


def test_infinity_and_nan_stay(isa: str) -> None:
    x, weight, _ = tensors(5, 40, torch.bfloat16)
    weight[1, 7], weight[2, 39] = float("inf"), float("nan")
    got = linear(x, weight)
    assert got[1].isinf()
    assert got[2].isnan()
    assert got[[0, 3, 4]].isfinite().all()


def test_several_rows_gradients_and_mixed_dtypes_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "linear", lambda *_: pytest.fail("went through the kernel"))
    x, weight, bias = tensors(6, 8, torch.float32)
    assert linear(x.repeat(2, 1), weight, bias).shape == (2, 6)
    linear(x, weight.requires_grad_(), bias).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    with pytest.raises(BadInput, match="linear got"):
        linear(x[:-1], weight, bias)


def test_a_decoding_step_uses_it_and_a_plain_pass_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if not library.available():
        pytest.skip("no compiled kernels")
    calls, real = [], cpu.linear
    monkeypatch.setattr(cpu, "linear", lambda *a: calls.append(a[1].shape) or real(*a))
    model = tiny.model("qwen2")  # has biases
    with torch.no_grad(), lengthwise.stack("dense").on(model) as run:
        cache = run.prefill(tiny.tokens(20))
        assert not calls
        model(tiny.tokens(1), past_key_values=cache)
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        assert len(calls) == len(linears)  # the head's too
        calls.clear()
        model(tiny.tokens(1))
        assert not calls
    assert not any("forward" in vars(m) for m in model.modules())
