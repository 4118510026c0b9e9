"""Attention over block lists by the compiled kernel (`csrc/attend.cpp`)."""

from __future__ import annotations

import ctypes

import torch

from lengthwise.core.frames import FAR
from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.attend.request import Request, Result
from lengthwise.kernels.library import Lane

MAX_FRAMES, MAX_RULES, MAX_DIM = 4, 8, 256
_POINTERS = ("q_positions", "k_positions", "offsets", "blocks", "column_offsets", "columns", "out", "lse")
_SIZES = ("heads", "kv_heads", "rows", "slots", "dim", "value_dim")
_LISTS = ("groups", "query_block", "listed", "columned")


class _Args(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_int64),
        ("q", Lane * MAX_FRAMES),
        ("k", Lane * MAX_FRAMES),
        ("v", Lane),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("low", ctypes.c_int64 * MAX_FRAMES),
        ("high", ctypes.c_int64 * MAX_FRAMES),
        ("window", ctypes.c_int64 * MAX_RULES),
        ("sinks", ctypes.c_int64 * MAX_RULES),
        *((name, ctypes.c_int64) for name in (*_SIZES, *_LISTS, "pairs")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("frames", "rules", "threads", "out_dtype")),
    )


def attend(request: Request, threads: int | None = None) -> Result:
    """As `lengthwise.kernels.attend`, on the CPU with the chosen instruction set."""
    r, dim = request, request.q[0].shape[2]
    if len(r.frames) > MAX_FRAMES or len(r.rules) > MAX_RULES or max(dim, r.value_dim) > MAX_DIM:
        raise BadInput(f"the kernel takes {MAX_FRAMES} frames, {MAX_RULES} rules and head dimensions up to {MAX_DIM}")
    out, lse = torch.empty(r.heads, r.rows, r.value_dim, dtype=r.q[0].dtype), torch.empty(r.heads, r.rows)
    q_positions, k_positions = r.q_positions.contiguous(), r.k_positions.contiguous()
    args = _Args(
        q=tuple(library.lane(x) for x in r.q),
        k=tuple(library.lane(x) for x in r.k),
        v=library.lane(r.v),
        q_positions=q_positions.data_ptr(),
        k_positions=k_positions.data_ptr(),
        out=out.data_ptr(),
        lse=lse.data_ptr(),
        low=tuple(max(low, 0) for low, _ in r.frames),
        high=tuple(min(high, FAR) for _, high in r.frames),
        window=tuple(min(window, FAR) for window, _ in r.rules),
        sinks=tuple(min(sinks, FAR) for _, sinks in r.rules),
        heads=r.heads,
        kv_heads=r.kv_heads,
        rows=r.rows,
        slots=r.slots,
        dim=dim,
        value_dim=r.value_dim,
        scale=r.scale,
        softcap=r.softcap or 0.0,
        frames=len(r.frames),
        rules=len(r.rules),
        threads=library.threads(threads),
        out_dtype=library.dtype_code(out.dtype),
    )
    if r.lists is not None:
        offsets, blocks = r.lists.offsets.contiguous(), r.lists.blocks.contiguous()
        args.offsets, args.blocks = offsets.data_ptr(), blocks.data_ptr()
        args.groups, args.query_block, args.listed = len(offsets), r.lists.query_block, len(blocks)
        if r.lists.columns is not None and r.lists.column_offsets is not None:
            columns, column_offsets = r.lists.columns.contiguous(), r.lists.column_offsets.contiguous()
            args.columns, args.column_offsets = columns.data_ptr(), column_offsets.data_ptr()
            args.columned = len(columns)
    library.function("attend")(args)
    return out, lse, int(args.pairs)
