"""The compiled summaries and choice of blocks, `csrc/summary.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lengthwise.kernels import library
from lengthwise.kernels.attend.lists import BlockLists
from lengthwise.kernels.summary.request import Request
from lengthwise.kernels.summary.summaries import Summary


class _SummaryArgs(ctypes.Structure):
    """`LwSummaryArgs`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        *((name, library.Lane) for name in ("k", "mean", "low", "high")),
        *((name, ctypes.c_int64) for name in ("heads", "dim", "length", "start_block", "threads")),
    )


class _TopBlocksArgs(ctypes.Structure):
    """`LwTopBlocksArgs`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        *((name, library.Lane) for name in ("q", "first", "second")),
        *((name, ctypes.c_void_p) for name in ("limits", "offsets", "chosen")),
        *((name, ctypes.c_int64) for name in ("lists", "heads", "kv_heads", "queries", "query_block", "blocks", "dim")),
        *((name, ctypes.c_int64) for name in ("count", "sinks", "local", "threads")),
    )


def summarize(k: Tensor, length: int, start_block: int, out: Summary, threads: int | None = None) -> None:
    """Write the summaries of every block from start_block on."""
    args = _SummaryArgs(
        k=library.lane(k),
        mean=library.lane(out.mean),
        low=library.lane(out.low),
        high=library.lane(out.high),
        heads=k.shape[0],
        dim=k.shape[2],
        length=length,
        start_block=start_block,
        threads=library.threads(threads),
    )
    library.function("summary")(args)


def top_blocks(request: Request, threads: int | None = None) -> BlockLists:
    """The lists: always-seen blocks at both ends, and the best of those between."""
    r = request
    limits = r.limits.cpu().contiguous()
    sizes = limits.clamp(max=r.sinks + r.local + r.count)
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    offsets = (ends + torch.arange(r.lists)[:, None] * ends[-1]).contiguous()
    chosen = torch.empty(int(offsets[-1, -1]), dtype=torch.int32)
    first, second = (r.summary.mean, None) if r.kind == "mean" else (r.summary.high, r.summary.low)
    args = _TopBlocksArgs(
        q=library.lane(r.q),
        first=library.lane(first),
        limits=limits.data_ptr(),
        offsets=offsets.data_ptr(),
        chosen=chosen.data_ptr(),
        lists=r.lists,
        heads=r.q.shape[0],
        kv_heads=r.summary.mean.shape[0],
        queries=r.q.shape[1],
        query_block=r.query_block,
        blocks=r.blocks,
        dim=r.q.shape[2],
        count=r.count,
        sinks=r.sinks,
        local=r.local,
        threads=library.threads(threads),
    )
    if second is not None:
        args.second = library.lane(second)
    library.function("top_blocks")(args)
    return BlockLists(offsets, chosen, r.query_block)
