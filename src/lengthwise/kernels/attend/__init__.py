"""Exact attention of queries over lists of key blocks, in position frames: (out, logsumexp, pairs scored)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lengthwise.core.frames import FAR
from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.attend import cpu, flex, naive
from lengthwise.kernels.attend.lists import SLOTS, BlockLists
from lengthwise.kernels.attend.naive import Result
from lengthwise.kernels.library import Coded

__all__ = ["SLOTS", "BlockLists", "Coded", "Result", "attend"]


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
    """Softmax attention over what lists, frames and rules let every query see.

    `q` holds the queries [Hq, C, D] rotated for each of F frames, `k` the keys [Hkv, S, D] likewise (head and token
    strides free), `v` [Hkv, S, Dv]; keys and values may be `Coded`. `q_positions` [C] and `k_positions` [S] (int64)
    ascend. A key at distance d = m - n >= 0 is scored in the frame whose (low, high) has low <= d < high; frames do not
    overlap. It is seen when every rule (window, sinks) has d < window or n < sinks. `lists`: the key blocks of every
    block of queries; None: all.

    Returns out [Hq, C, Dv] in q's dtype, logsumexp [Hq, C] float32 (natural, scale included) and the number of (query
    head, key) pairs scored; a query that sees nothing gets out 0 and -inf. Raises BadInput for shapes, dtypes, ids or
    frames that do not fit.
    """
    _check(q, k, v, q_positions, k_positions, lists, frames, scale, softcap)
    run = {"naive": naive.attend, "cpu": cpu.attend, "flex": flex.attend}[library.backend(q[0].device)]
    return run(
        q,
        k,
        v,
        q_positions=q_positions,
        k_positions=k_positions,
        lists=lists,
        frames=frames,
        rules=rules,
        scale=scale,
        softcap=softcap,
        threads=threads,
    )


def _check(
    q: Sequence[Tensor],
    k: Sequence[Tensor | Coded],
    v: Tensor | Coded,
    q_positions: Tensor,
    k_positions: Tensor,
    lists: BlockLists | None,
    frames: Sequence[tuple[int, int]],
    scale: float,
    softcap: float | None,
) -> None:
    """Everything that shapes alone can tell; ids of blocks are checked where they are read."""
    if not len(q) == len(k) == len(frames) or not frames:
        raise BadInput(f"attend needs queries and keys for every frame, not {len(q)}, {len(k)} and {len(frames)}")
    heads, rows, dim = q[0].shape
    kv_heads, slots = v.shape[:2]
    if any(x.shape != q[0].shape for x in q) or any(tuple(x.shape) != (kv_heads, slots, dim) for x in k):
        shapes = [tuple(x.shape) for x in (*q, *k, v)]
        raise BadInput(f"attend needs q [Hq, C, D], k [Hkv, S, D] and v [Hkv, S, Dv], not {shapes}")
    if heads == 0 or kv_heads == 0 or heads % kv_heads:
        raise BadInput(f"{heads} query heads do not divide into {kv_heads} key heads")
    for name, positions, count in (("q", q_positions, rows), ("k", k_positions, slots)):
        if positions.dtype != torch.int64 or tuple(positions.shape) != (count,):
            raise BadInput(f"{name}_positions must be int64 [{count}]")
        if bool((positions.diff() < 0).any()):
            raise BadInput(f"{name}_positions must ascend")
    ordered = sorted((max(low, 0), high) for low, high in frames)
    if any(a[1] > b[0] for a, b in pairwise(ordered)):
        raise BadInput(f"frames must not overlap: {list(frames)}")
    if not (math.isfinite(scale) and scale > 0) or (softcap is not None and not softcap > 0):
        raise BadInput(f"scale and softcap must be positive, not {scale} and {softcap}")
    if lists is not None:
        groups, blocks = lists.offsets.shape[0], lists.offsets.shape[1] - 1
        if groups not in (1, kv_heads, heads) or blocks != -(-rows // lists.query_block):
            raise BadInput(f"lists of {groups} heads, {blocks} query blocks do not fit {heads} heads, {rows} queries")
