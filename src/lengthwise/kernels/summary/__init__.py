"""Summaries of key blocks, and the choice of the blocks that fit queries best."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.attend.lists import SLOTS, BlockLists
from lengthwise.kernels.summary import cpu, naive
from lengthwise.kernels.summary.representatives import representatives
from lengthwise.kernels.summary.request import Kind, Request, Share
from lengthwise.kernels.summary.summaries import Summary, blank

__all__ = ["Summary", "representatives", "summarize", "top_blocks"]


def summarize(
    k: Tensor, *, length: int, start_block: int = 0, out: Summary | None = None, threads: int | None = None
) -> Summary:
    """Mean and bounds of the blocks of 64 keys from `start_block` on, of the first `length` slots of k [Hkv, S, D].

    Returns a Summary of ceil(length / 64) - start_block blocks: a new one, or `out`, written in place (parts of larger
    buffers, say: head and block strides are free). Bounds as in Quest (arXiv 2406.10774, section 3.3). Raises BadInput
    for sizes that do not fit.
    """
    fresh = blank(k, length, start_block)
    if out is None:
        out = fresh
    elif any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(out, fresh, strict=True)):
        raise BadInput(f"out must hold {fresh.mean.shape[1]} blocks in float32, and twice in {k.dtype}")
    if library.backend(k.device) == "cpu":
        cpu.summarize(k, length, start_block, out, threads)
    else:
        naive.summarize(k, length, start_block, out)
    return out


def top_blocks(
    q: Tensor,
    summary: Summary,
    *,
    count: int,
    limits: Tensor,
    kind: Kind = "mean",
    share: Share = "group",
    always: tuple[int, int] = (1, 1),
    query_block: int = SLOTS,
    threads: int | None = None,
) -> BlockLists:
    """The block lists of `attend` for queries q [Hq, C, D]: ascending ids, G = Hkv (share=group) or Hq (share=head).

    Query block i may see key blocks 0..limits[i] - 1 (`limits` int64 [QB]). Of these the first always[0] and the last
    always[1] are taken, and of the others the `count` with the highest score, the lower id first among equals:

    mean: max over queries and heads of q . mean_k.
    bounds: max over queries and heads of sum_d max(q_d low_d, q_d high_d), no less than any q . k of the block (Quest,
        arXiv 2406.10774, equation 1 and algorithm 1).

    The maximum is over the queries of the block and, for share=group, over the heads of the group: a block that one
    query needs is found, which a mean of the queries would drown. A score that is not a number counts as -inf.
    Raises BadInput for sizes that do not fit.
    """
    request = Request(q, summary, count, limits, kind, share, *always, query_block)
    if q.shape[1] == 0:
        return BlockLists.of(torch.zeros(request.lists, 0, request.blocks, dtype=torch.bool), query_block)
    if library.backend(q.device) == "cpu":
        return cpu.top_blocks(request, threads)
    return naive.top_blocks(request)
