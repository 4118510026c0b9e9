"""Attention over block lists by torch's `flex_attention`: for CUDA, where it compiles to one kernel.

Each position frame is one call over a `BlockMask` of its own; the results merge exactly (`core.attend.merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask

from lengthwise.core import attend as partials
from lengthwise.core.frames import FAR
from lengthwise.kernels.attend import naive
from lengthwise.kernels.attend.lists import SLOTS, BlockLists
from lengthwise.kernels.attend.naive import Result
from lengthwise.kernels.library import Coded

_TILE = 128  # queries of a block where no lists say otherwise


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
    """As `lengthwise.kernels.attend`. Codes are decoded first; a NaN among the values counts as 0."""
    if lists is not None and lists.columns is not None:  # a BlockMask has no single slots
        return naive.attend(q, k, v, q_positions=q_positions, k_positions=k_positions, lists=lists, frames=frames,
                            rules=rules, scale=scale, softcap=softcap)  # fmt: skip
    (heads, rows, _), slots, device = q[0].shape, v.shape[1], q[0].device
    blocks = -(-slots // SLOTS)
    tile = lists.query_block if lists is not None else _TILE
    if rows == 0 or slots == 0:
        return q[0].new_zeros(heads, rows, v.shape[2]), torch.full((heads, rows), float("-inf"), device=device), 0
    allowed = torch.ones(1, -(-rows // tile), blocks, dtype=torch.bool) if lists is None else lists.mask(blocks)
    allowed = allowed.to(device)
    # 0 * NaN is NaN: what nobody sees must not reach the sum
    values = _plain(v, q[0]).nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf"))
    found, pairs = [], 0
    for (low, high), query, key in zip(frames, q, k, strict=True):
        seen = pairs_of_blocks(q_positions, k_positions, (low, high), rules, tile).to(device)
        count = int((seen * allowed).sum()) * (heads // len(allowed))
        if count == 0:
            continue
        pairs += count
        mask = block_mask(q_positions, k_positions, allowed, seen, (low, high), rules, heads, tile)
        found.append(_call(query, _plain(key, q[0]), values, mask, scale, softcap))
    if not found:
        return q[0].new_zeros(heads, rows, v.shape[2]), torch.full((heads, rows), float("-inf"), device=device), 0
    out, lse = partials.merge(found)
    return out.to(q[0].dtype), lse, pairs


def pairs_of_blocks(
    q_positions: Tensor, k_positions: Tensor, frame: tuple[int, int], rules: Sequence[tuple[int, int]], tile: int
) -> Tensor:
    """How many (query, key) pairs one head sees in each block of `tile` queries and 64 keys: int64 [QB, KB].

    Positions ascend, so the queries that see a key are a range.
    """
    n, low = k_positions, max(frame[0], 0)
    high = torch.full_like(n, frame[1])
    for window, sinks in rules:
        high = torch.where(n < sinks, high, high.clamp(max=window))
    first, stop = torch.searchsorted(q_positions, n + low), torch.searchsorted(q_positions, n + high)
    counts = []
    for a in range(0, len(q_positions), tile):
        b = min(a + tile, len(q_positions))
        inside = (stop.clamp(a, b) - first.clamp(a, b)).clamp(min=0)
        counts.append(torch.nn.functional.pad(inside, (0, -len(n) % SLOTS)).view(-1, SLOTS).sum(-1))
    return torch.stack(counts)


def block_mask(
    q_positions: Tensor,
    k_positions: Tensor,
    allowed: Tensor,
    seen: Tensor,
    frame: tuple[int, int],
    rules: Sequence[tuple[int, int]],
    heads: int,
    tile: int,
) -> BlockMask:
    """The mask of one frame, from the lists `allowed` [G, QB, KB] and the pairs `seen` [QB, KB] of every block."""
    rows, slots = len(q_positions), len(k_positions)
    device, spread = allowed.device, heads // len(allowed)
    m, n = q_positions.to(device), k_positions.to(device)
    whole = seen == tile * SLOTS
    some, full = ((allowed & kind).repeat_interleave(spread, 0) for kind in ((seen > 0) & ~whole, whole))
    # bounds as tensors: another number must not compile again
    low, high = torch.tensor([max(frame[0], 0), frame[1]], device=device)
    bounds = [tuple(torch.tensor(rule, device=device)) for rule in rules]

    def sees(batch: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        distance = m[row] - n[slot]
        mask: Tensor = (distance >= low) & (distance < high) & allowed[head // spread, row // tile, slot // SLOTS]
        for window, sinks in bounds:
            mask = mask & ((distance < window) | (n[slot] < sinks))
        return mask

    return BlockMask.from_kv_blocks(
        *_ordered(some), *_ordered(full), BLOCK_SIZE=(tile, SLOTS), mask_mod=sees, seq_lengths=(rows, slots)
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
