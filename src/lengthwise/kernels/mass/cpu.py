"""The compiled mass of key blocks, `csrc/mass.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.attend.lists import SLOTS

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


def block_mass(
    q: Tensor,
    k: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    scale: float,
    softcap: float | None,
    threads: int | None = None,
) -> tuple[Tensor, int]:
    """Softmax of q [Hkv, M, D] over k [Hkv, S, D], summed over blocks: [Hkv, M, B] float32, and pairs scored."""
    (heads, rows, dim), slots = q.shape, k.shape[1]
    if dim > MAX_DIM:
        raise BadInput(f"the kernel takes head dimensions up to {MAX_DIM}, not {dim}")
    out = torch.empty(heads, rows, -(-slots // SLOTS))
    positions = q_positions.contiguous(), k_positions.contiguous()
    args = _Args(
        q=library.lane(q),
        k=library.lane(k),
        q_positions=positions[0].data_ptr(),
        k_positions=positions[1].data_ptr(),
        out=out.data_ptr(),
        kv_heads=heads,
        rows=rows,
        slots=slots,
        dim=dim,
        scale=scale,
        softcap=softcap or 0.0,
        threads=library.threads(threads),
    )
    library.function("block_mass")(args)
    return out, args.pairs
