"""The compiled mass of key blocks, `csrc/mass.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.attend.lists import SLOTS
from lengthwise.kernels.mass.request import Request

MAX_DIM = 256


class _Args(ctypes.Structure):
    """`LwMassArgs`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("q", library.Lane),
        ("k", library.Lane),
        *((name, ctypes.c_void_p) for name in ("q_positions", "k_positions", "out")),
        *((name, ctypes.c_int64) for name in ("kv_heads", "rows", "slots", "dim", "pairs")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("threads", ctypes.c_int64),
    )


def block_mass(request: Request, threads: int | None = None) -> tuple[Tensor, int]:
    """Softmax of the folded queries over the keys, summed over blocks: [Hkv, C * group, B] float32, and pairs."""
    r, (q, q_positions) = request, request.folded()
    (heads, rows, dim), slots = q.shape, r.k.shape[1]
    if dim > MAX_DIM:
        raise BadInput(f"the kernel takes head dimensions up to {MAX_DIM}, not {dim}")
    out, k_positions = torch.empty(heads, rows, -(-slots // SLOTS)), r.k_positions.contiguous()
    args = _Args(
        q=library.lane(q),
        k=library.lane(r.k),
        q_positions=q_positions.data_ptr(),
        k_positions=k_positions.data_ptr(),
        out=out.data_ptr(),
        kv_heads=heads,
        rows=rows,
        slots=slots,
        dim=dim,
        scale=r.scale,
        softcap=r.softcap or 0.0,
        threads=library.threads(threads),
    )
    library.function("block_mass")(args)
    return out, args.pairs
