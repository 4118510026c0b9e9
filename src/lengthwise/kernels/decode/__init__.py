"""Attention of one query position over a lane, or over pages of it."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.kernels import library
from lengthwise.kernels.decode import cpu, naive
from lengthwise.kernels.decode.request import Lane, Request

__all__ = ["decode"]


def decode(
    q: Tensor,
    k: Lane,
    v: Lane,
    *,
    pages: Tensor | None = None,
    length: int,
    scale: float,
    softcap: float | None = None,
    seen: Tensor | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Attention of one query position: out [Hq, Dv] and lse [Hq] (natural logarithm) in float32, and pairs scored.

    q [Hq, D]; k [Hkv, S, D] and v [Hkv, S, Dv], tensors or `Coded`, head and token strides free. `length` slots are
    filled. `pages` int32 [G, P], G 1 or Hkv: the blocks of 64 slots to read, each at most once, -1 pads; the last one
    is cut at `length`; None: every slot. `seen` bool [n] or [G, n], n >= length: False hides a slot. Hidden slots are
    not read. A query that sees nothing gets out 0 and lse -inf.

    Keys are split into units that threads share (flash-decoding, Dao et al. 2023); the split does not depend on the
    number of threads, so neither do the bits of the result. Where a gradient is wanted, plain operators run. Raises
    BadInput for arguments that do not fit.
    """
    if seen is not None and seen.ndim == 1:
        seen = seen[None]
    request = Request(q, k, v, pages, length, scale, softcap, seen)
    recorded = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (q, k, v))
    if not recorded and library.backend(q.device) == "cpu":
        return cpu.decode(request, threads)
    return naive.decode(request)
