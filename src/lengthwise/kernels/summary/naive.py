"""Block summaries and the choice of blocks from their definitions: the oracle, and the path without a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.kernels.attend.lists import SLOTS, BlockLists
from lengthwise.kernels.summary.request import Request
from lengthwise.kernels.summary.summaries import Summary


def summarize(k: Tensor, length: int, start_block: int, out: Summary) -> None:
    """Write mean, minimum and maximum over the keys of every block from start_block on."""
    for i, a in enumerate(range(start_block * SLOTS, length, SLOTS)):
        keys = k[:, a : min(a + SLOTS, length)]
        out.mean[:, i], out.low[:, i], out.high[:, i] = keys.float().mean(1), keys.amin(1), keys.amax(1)


def scores(request: Request) -> Tensor:
    """How well each block fits each list and query block: [G, QB, B] float32; a NaN counts as -inf."""
    r = request
    groups = r.q.shape[0] // r.summary.mean.shape[0]
    q = r.q.float()
    mean, low, high = (x.float().repeat_interleave(groups, 0) for x in r.summary)
    rows = []
    for a in range(0, r.q.shape[1], r.query_block):
        block = q[:, a : a + r.query_block]
        if r.kind == "mean":
            each = block @ mean.transpose(1, 2)
        else:
            each = block.clamp(min=0) @ high.transpose(1, 2) + block.clamp(max=0) @ low.transpose(1, 2)
        each = each.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
        rows.append(each.amax(1).unflatten(0, (r.lists, -1)).amax(1))  # over queries, then over the list's heads
    return torch.stack(rows, 1)


def top_blocks(request: Request) -> BlockLists:
    """The lists: always-seen blocks at both ends, and the best of those between."""
    r = request
    best, block = scores(r), torch.arange(r.blocks, device=r.q.device)
    limits = r.limits.to(block.device)[:, None]
    inside = block < limits
    always = inside & ((block < r.sinks) | (block >= limits - r.local))
    rank = best.sort(dim=-1, descending=True, stable=True).indices
    candidate = (inside & ~always).expand_as(best).gather(-1, rank)
    picked = torch.zeros_like(candidate).scatter(-1, rank, candidate & (candidate.cumsum(-1) <= r.count))
    return BlockLists.of((picked | always).cpu(), r.query_block)
