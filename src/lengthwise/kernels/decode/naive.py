"""Decode attention from its definition: the oracle, and the path without a compiled kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels.decode.request import BLOCK, Lane, Request


def decode(request: Request) -> tuple[Tensor, Tensor, int]:
    """Softmax attention of one query position in float32, head by head: out [Hq, Dv], lse [Hq], pairs."""
    r = request
    out = torch.zeros(r.heads, r.value_dim, device=r.q.device)
    lse = torch.full((r.heads,), float("-inf"), device=r.q.device)
    pairs = 0
    for head in range(r.heads):
        lane = head // (r.heads // r.kv_heads)
        slots = _slots(r, lane).to(r.q.device)
        pairs += len(slots)
        if len(slots) == 0:
            continue
        scores = _rows(r.k, lane, slots) @ r.q[head].float() * r.scale
        if r.softcap is not None:
            scores = r.softcap * torch.tanh(scores / r.softcap)
        lse[head] = torch.logsumexp(scores, 0)
        out[head] = torch.softmax(scores, 0) @ _rows(r.v, lane, slots)
    return out, lse, pairs


def _slots(r: Request, lane: int) -> Tensor:
    """The slots [n] that the queries of a KV head see."""
    if r.pages is None:
        slots = torch.arange(r.length)
    else:
        pages, blocks = r.pages[lane % len(r.pages)].cpu().long(), -(-r.length // BLOCK)
        if bool(((pages < -1) | (pages >= blocks)).any()):
            raise BadInput(f"pages name a block outside the {blocks} that {r.length} slots fill")
        slots = (pages[pages >= 0, None] * BLOCK + torch.arange(BLOCK)).flatten()
        slots = slots[slots < r.length]
    return slots if r.seen is None else slots[r.seen[lane % len(r.seen)].cpu()[slots]]


def _rows(lane: Lane, head: int, slots: Tensor) -> Tensor:
    """Slots of one head as float32 [n, D], decoded if they are codes."""
    if isinstance(lane, Tensor):
        return lane[head, slots].float()
    low, step = lane.low[head, slots].float(), lane.step[head, slots].float()
    groups = lane.codes[head, slots].float().unflatten(-1, (low.shape[-1], -1))
    values: Tensor = groups * step[..., None] + low[..., None]
    return values.flatten(-2)
