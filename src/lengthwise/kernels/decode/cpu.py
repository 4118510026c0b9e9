"""The compiled decode kernel, `csrc/decode.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lengthwise.kernels import library
from lengthwise.kernels.decode.request import Request


class _Args(ctypes.Structure):
    """`LwDecodeArgs`."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("q", ctypes.c_void_p),
        ("k", library.Lane),
        ("v", library.Lane),
        ("pages", ctypes.c_void_p),
        ("page_count", ctypes.c_int64),
        ("page_group", ctypes.c_int64),
        ("seen", ctypes.c_void_p),
        ("seen_group", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "dim", "value_dim", "length")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("out", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("pairs", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


def decode(request: Request, threads: int | None = None) -> tuple[Tensor, Tensor, int]:
    """Attention of one query position: out [Hq, Dv] float32, lse [Hq] float32, pairs."""
    r = request
    q = r.q.float().contiguous()
    out, lse = torch.empty(r.heads, r.value_dim), torch.empty(r.heads)
    args = _Args(
        q=q.data_ptr(),
        k=library.lane(r.k),
        v=library.lane(r.v),
        page_count=-1,
        heads=r.heads,
        kv_heads=r.kv_heads,
        dim=r.q.shape[1],
        value_dim=r.value_dim,
        length=r.length,
        scale=r.scale,
        softcap=r.softcap or 0.0,
        out=out.data_ptr(),
        lse=lse.data_ptr(),
        threads=library.threads(threads),
    )
    if r.pages is not None:
        pages = r.pages.cpu().contiguous()
        args.pages, args.page_count = pages.data_ptr(), pages.shape[1]
        args.page_group = pages.shape[1] if len(pages) > 1 else 0
    if r.seen is not None:
        seen = r.seen.cpu().contiguous()
        args.seen, args.seen_group = seen.data_ptr(), seen.shape[1] if len(seen) > 1 else 0
    library.function("decode")(args)
    return out, lse, args.pairs
