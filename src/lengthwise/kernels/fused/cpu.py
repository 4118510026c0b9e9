"""The compiled element-wise kernels, `csrc/fused.cpp`."""

from __future__ import annotations

import ctypes

from torch import Tensor

from lengthwise.kernels import library


class _RmsNormArgs(ctypes.Structure):
    """`LwRmsNormArgs`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "residual", "weight", "out", "total")),
        *((name, ctypes.c_int64) for name in ("x_row", "residual_row", "rows", "width", "threads")),
        ("dtype", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


class _RotaryArgs(ctypes.Structure):
    """`LwRotaryArgs`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        *((name, library.Lane) for name in ("q", "k", "q_out", "k_out")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
        *((name, ctypes.c_int64) for name in ("cos_row", "sin_row", "q_heads", "k_heads", "tokens", "dim", "threads")),
    )


class _SiluMulArgs(ctypes.Structure):
    """`LwSiluMulArgs`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("gate", "up", "out")),
        *((name, ctypes.c_int64) for name in ("gate_row", "up_row", "rows", "width", "threads")),
        ("dtype", ctypes.c_int32),
    )


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, threads: int | None) -> list[Tensor]:
    """[normed x], or [normed x + residual, x + residual]."""
    rows, weight = _rows(x), weight.contiguous()
    made = [x.new_empty(x.shape)] if residual is None else [x.new_empty(x.shape), x.new_empty(x.shape)]
    args = _RmsNormArgs(
        x=rows.data_ptr(),
        weight=weight.data_ptr(),
        out=made[0].data_ptr(),
        x_row=rows.stride(0),
        rows=rows.shape[0],
        width=rows.shape[1],
        threads=library.threads(threads),
        dtype=library.dtype_code(x.dtype),
        eps=eps,
    )
    if residual is not None:
        residual = _rows(residual)
        args.residual, args.residual_row, args.total = residual.data_ptr(), residual.stride(0), made[1].data_ptr()
    library.function("rms_norm")(args)
    return made


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, out: tuple[Tensor, Tensor], threads: int | None) -> None:
    """Rotate q [Hq, C, D] and k [Hkv, C, D] into `out`."""
    cos, sin = _rows(cos), _rows(sin)
    args = _RotaryArgs(
        q=library.lane(q),
        k=library.lane(k),
        q_out=library.lane(out[0]),
        k_out=library.lane(out[1]),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        cos_row=cos.stride(0),
        sin_row=sin.stride(0),
        q_heads=q.shape[0],
        k_heads=k.shape[0],
        tokens=q.shape[1],
        dim=q.shape[2],
        threads=library.threads(threads),
    )
    library.function("rotary")(args)


def silu_mul(gate: Tensor, up: Tensor, threads: int | None) -> Tensor:
    """silu(gate) * up."""
    out = gate.new_empty(gate.shape)
    gate, up = _rows(gate), _rows(up)
    args = _SiluMulArgs(
        gate=gate.data_ptr(),
        up=up.data_ptr(),
        out=out.data_ptr(),
        gate_row=gate.stride(0),
        up_row=up.stride(0),
        rows=gate.shape[0],
        width=gate.shape[1],
        threads=library.threads(threads),
        dtype=library.dtype_code(gate.dtype),
    )
    library.function("silu_mul")(args)
    return out


def _rows(x: Tensor) -> Tensor:
    """x [..., n] as [rows, n], contiguous in n."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()
