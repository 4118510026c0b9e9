"""Attention over block lists by the compiled kernel (`csrc/attend.cpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lengthwise.core.frames import FAR
from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.attend.lists import BlockLists
from lengthwise.kernels.attend.naive import Result
from lengthwise.kernels.library import Coded, Lane

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


def attend(
    q: Sequence[Tensor],
    k: Sequence[Tensor | Coded],
    v: Tensor | Coded,
    *,
    q_positions: Tensor,
    k_positions: Tensor,
    lists: BlockLists | None = None,
    frames: Sequence[tuple[int, int]] = ((0, FAR),),
    rules: Sequence[tuple[int, int]] = (),
    scale: float,
    softcap: float | None = None,
    threads: int | None = None,
) -> Result:
    """As `lengthwise.kernels.attend`, on the CPU with the chosen instruction set."""
    args = _Args()
    if len(frames) > MAX_FRAMES or len(rules) > MAX_RULES or max(q[0].shape[2], v.shape[2]) > MAX_DIM:
        raise BadInput(f"the kernel takes {MAX_FRAMES} frames, {MAX_RULES} rules and head dimensions up to {MAX_DIM}")
    args.q[: len(q)] = [library.lane(x) for x in q]
    args.k[: len(k)] = [library.lane(x) for x in k]
    args.v = library.lane(v)
    heads, rows, dim = q[0].shape
    kv_heads, slots, value_dim = v.shape
    out = torch.empty(heads, rows, value_dim, dtype=q[0].dtype)
    lse = torch.empty(heads, rows)
    positions = q_positions.contiguous(), k_positions.contiguous()
    args.q_positions, args.k_positions = (x.data_ptr() for x in positions)
    args.out, args.lse = out.data_ptr(), lse.data_ptr()
    if lists is not None:
        offsets, blocks = lists.offsets.contiguous(), lists.blocks.contiguous()
        args.offsets, args.blocks = offsets.data_ptr(), blocks.data_ptr()
        args.groups, args.query_block, args.listed = len(offsets), lists.query_block, len(blocks)
        if lists.columns is not None and lists.column_offsets is not None:
            columns, column_offsets = lists.columns.contiguous(), lists.column_offsets.contiguous()
            args.columns, args.column_offsets = columns.data_ptr(), column_offsets.data_ptr()
            args.columned = len(columns)
    for i, (low, high) in enumerate(frames):
        args.low[i], args.high[i] = max(low, 0), min(high, FAR)
    for i, (window, sinks) in enumerate(rules):
        args.window[i], args.sinks[i] = min(window, FAR), min(sinks, FAR)
    args.heads, args.kv_heads, args.rows, args.slots = heads, kv_heads, rows, slots
    args.dim, args.value_dim = dim, value_dim
    args.scale, args.softcap = scale, softcap or 0.0
    args.frames, args.rules, args.threads = len(frames), len(rules), library.threads(threads)
    args.out_dtype = library.dtype_code(q[0].dtype)
    library.function("attend")(args)
    return out, lse, int(args.pairs)
