"""Attention over block lists by torch's `flex_attention`: for CUDA, where it compiles to one kernel.

Each position frame is one call over a `BlockMask` of its own; the results merge exactly (`core.attend.merge`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask

from lengthwise.core import attend as partials
from lengthwise.kernels.attend import naive
from lengthwise.kernels.attend.lists import SLOTS
from lengthwise.kernels.attend.request import Request, Result
from lengthwise.kernels.library import Coded

_TILE = 128  # queries of a block where no lists say otherwise


def attend(request: Request) -> Result:
    """As `lengthwise.kernels.attend`. Codes are decoded first; a NaN among the values counts as 0."""
    r = request
    if r.lists is not None and r.lists.columns is not None:  # a BlockMask has no single slots
        return naive.attend(r)
    like, blocks = r.q[0], -(-r.slots // SLOTS)
    if r.rows == 0 or r.slots == 0:
        return _nothing(r)
    tile = r.lists.query_block if r.lists is not None else _TILE
    allowed = torch.ones(1, -(-r.rows // tile), blocks, dtype=torch.bool) if r.lists is None else r.lists.mask(blocks)
    allowed = allowed.to(like.device)
    # 0 * NaN is NaN: what nobody sees must not reach the sum
    values = _plain(r.v, like).nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf"))
    found, pairs = [], 0
    for frame, query, key in zip(r.frames, r.q, r.k, strict=True):
        seen = pairs_of_blocks(r, frame, tile).to(like.device)
        count = int((seen * allowed).sum()) * (r.heads // len(allowed))
        if count == 0:
            continue
        pairs += count
        mask = block_mask(r, frame, allowed, seen, tile)
        found.append(_call(query, _plain(key, like), values, mask, r.scale, r.softcap))
    if not found:
        return _nothing(r)
    out, lse = partials.merge(found)
    return out.to(like.dtype), lse, pairs


def _nothing(r: Request) -> Result:
    """What queries get that see no key."""
    q = r.q[0]
    return q.new_zeros(*q.shape[:2], r.value_dim), torch.full(q.shape[:2], float("-inf"), device=q.device), 0


def pairs_of_blocks(r: Request, frame: tuple[int, int], tile: int) -> Tensor:
    """How many (query, key) pairs one head sees in each block of `tile` queries and 64 keys: int64 [QB, KB].

    Positions ascend, so the queries that see a key are a range.
    """
    m, n, low = r.q_positions, r.k_positions, max(frame[0], 0)
    high = torch.full_like(n, frame[1])
    for window, sinks in r.rules:
        high = torch.where(n < sinks, high, high.clamp(max=window))
    first, stop = torch.searchsorted(m, n + low), torch.searchsorted(m, n + high)
    counts = []
    for a in range(0, len(m), tile):
        b = min(a + tile, len(m))
        inside = (stop.clamp(a, b) - first.clamp(a, b)).clamp(min=0)
        counts.append(torch.nn.functional.pad(inside, (0, -len(n) % SLOTS)).view(-1, SLOTS).sum(-1))
    return torch.stack(counts)


def block_mask(r: Request, frame: tuple[int, int], allowed: Tensor, seen: Tensor, tile: int) -> BlockMask:
    """The mask of one frame, from the lists `allowed` [G, QB, KB] and the pairs `seen` [QB, KB] of every block."""
    device, spread = allowed.device, r.heads // len(allowed)
    m, n = r.q_positions.to(device), r.k_positions.to(device)
    whole = seen == tile * SLOTS
    some, full = ((allowed & kind).repeat_interleave(spread, 0) for kind in ((seen > 0) & ~whole, whole))
    # bounds as tensors: another number must not compile again
    low, high = torch.tensor([max(frame[0], 0), frame[1]], device=device)
    bounds = [tuple(torch.tensor(rule, device=device)) for rule in r.rules]

    def sees(batch: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        distance = m[row] - n[slot]
        mask: Tensor = (distance >= low) & (distance < high) & allowed[head // spread, row // tile, slot // SLOTS]
        for window, sinks in bounds:
            mask = mask & ((distance < window) | (n[slot] < sinks))
        return mask

    return BlockMask.from_kv_blocks(
        *_ordered(some), *_ordered(full), BLOCK_SIZE=(tile, SLOTS), mask_mod=sees, seq_lengths=(r.rows, r.slots)
    )


def _ordered(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [1, H, QB] and ids [1, H, QB, KB], those of the mask first, as a BlockMask wants them."""
    ids = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return mask.sum(-1).to(torch.int32)[None], ids.to(torch.int32)[None]


@cache
def _function(device: str) -> Callable[..., Any]:
    function: Callable[..., Any] = torch_flex.flex_attention
    return torch.compile(function) if device == "cuda" else function


def _call(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float, softcap: float | None) -> partials.Partial:
    run, lanes = _function(q.device.type), (q[None], k[None], v[None])
    options: dict[str, Any] = {"block_mask": mask, "scale": scale, "enable_gqa": q.shape[0] != k.shape[0]}
    if softcap is not None:
        options["score_mod"] = _capping(torch.tensor(softcap, device=q.device))
    if hasattr(torch_flex, "AuxRequest"):  # torch 2.9 and later
        out, aux = run(*lanes, **options, return_aux=torch_flex.AuxRequest(lse=True))
        lse = aux.lse
    else:
        out, lse = run(*lanes, **options, return_lse=True)
    blind = lse[0].isinf()
    return out[0].masked_fill(blind[..., None], 0.0), lse[0].float()


def _capping(cap: Tensor) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _plain(x: Tensor | Coded, like: Tensor) -> Tensor:
    return x.decode().to(like.dtype) if isinstance(x, Coded) else x
