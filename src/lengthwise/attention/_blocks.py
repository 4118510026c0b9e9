"""What the methods that choose blocks share: where they stand, what is always seen, and how far a sum must reach."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise import kernels
from lengthwise.core.frames import NATIVE
from lengthwise.core.seams import View
from lengthwise.kernels.attend.lists import SLOTS


def blocks_of(tokens: int) -> int:
    """How many blocks hold `tokens` tokens."""
    return -(-tokens // SLOTS)


def queries(view: View) -> Tensor:
    """The view's queries [Hq, C, D], rotated where they stand."""
    return view.rope.rotate(view.q, view.positions) if view.raw else view.q


def keys(view: View) -> Tensor:
    """All held keys [Hkv, n, D], rotated where they stand."""
    return view.kv.keys[NATIVE].read(0, view.kv.n)


def limits(view: View) -> Tensor:
    """Blocks up to the last query of every 64: int64 [QB]."""
    n, count = view.kv.n, len(view.positions)
    return torch.arange(n - count + 2 * SLOTS - 1, n + 2 * SLOTS - 1, SLOTS).clamp(max=n + SLOTS - 1) // SLOTS


def both_ends(stop: Tensor, sinks: int, local: int) -> Tensor:
    """The first `sinks` and the last `local` of the blocks before `stop` [QB]: bool [QB, B]."""
    block = torch.arange(int(stop.max()))
    return ((block < sinks) | (block >= stop[:, None] - local)) & (block < stop[:, None])


def reaching(weights: Tensor, share: float, always: Tensor) -> Tensor:
    """The fewest of the greatest weights [..., B] that sum to `share` of all, `always` [..., B] among them: bool."""
    always = always.expand_as(weights)
    order = torch.where(always, float("inf"), weights).sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(-1, order)
    before = ranked.cumsum(-1) - ranked
    chosen = before < share * weights.sum(-1, keepdim=True)
    return torch.zeros_like(always).scatter(-1, order, chosen) | always


def summary(view: View) -> kernels.Summary:
    """Means and bounds of all blocks of keys; only those that have grown since the last call are computed."""
    n = view.kv.n
    whole: Tensor = view.state.get("whole", torch.zeros((), dtype=torch.long))
    start, blocks = int(whole), blocks_of(n)
    room: list[Tensor] = [view.state[name] for name in ("mean", "low", "high") if name in view.state]
    if not room or room[0].shape[1] < blocks:
        like = kernels.summarize(keys(view)[:, :0], length=0)
        grown = [x.new_empty(x.shape[0], max(64, 2 * blocks), x.shape[2]) for x in like]
        for new, old in zip(grown, room, strict=False):
            new[:, :start] = old[:, :start]
        room = grown
        view.state |= dict(zip(("mean", "low", "high"), room, strict=True))
    out = kernels.Summary(*(x[:, start:blocks] for x in room))
    kernels.summarize(keys(view), length=n, start_block=start, out=out)
    view.state["whole"] = torch.tensor(n // SLOTS)
    return kernels.Summary(*(x[:, :blocks] for x in room))


def best_by_bounds(view: View, top: int, sinks: int, local: int) -> kernels.BlockLists:
    """For every 64 queries of a KV group: the ends, and `top` blocks by the most that a key within bounds can score.

    The pairs scored for it, two channels' bounds for each block and query head, are counted.
    """
    stop = limits(view)
    view.receipt.pairs += 2 * view.q.shape[0] * view.q.shape[1] * blocks_of(view.kv.n)
    always = (sinks, local)
    return kernels.top_blocks(queries(view), summary(view), count=top, limits=stop, kind="bounds", always=always)
