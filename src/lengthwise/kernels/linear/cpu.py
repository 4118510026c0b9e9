"""The compiled product of a matrix and one vector, `csrc/linear.cpp`."""

from __future__ import annotations

import ctypes

from torch import Tensor

from lengthwise.kernels import library


class _Args(ctypes.Structure):
    """`LwLinearArgs`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "weight_row", "threads")),
        ("dtype", ctypes.c_int32),
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, threads: int | None) -> Tensor:
    """x [..., K] of one vector, contiguous: [..., N]."""
    rows, columns = weight.shape
    out = x.new_empty(*x.shape[:-1], rows)
    args = _Args(
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        out=out.data_ptr(),
        rows=rows,
        columns=columns,
        weight_row=weight.stride(0),
        threads=library.threads(threads),
        dtype=library.dtype_code(x.dtype),
    )
    library.function("linear")(args)
    return out
