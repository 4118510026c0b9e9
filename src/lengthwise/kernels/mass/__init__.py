"""Which share of a query's softmax lies in each block of keys: what a choice of blocks is judged by."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.mass import cpu, naive

__all__ = ["block_mass"]


def block_mass(
    q: Tensor,
    k: Tensor,
    *,
    q_positions: Tensor,
    k_positions: Tensor,
    scale: float,
    softcap: float | None = None,
    threads: int | None = None,
) -> tuple[Tensor, int]:
    """The softmax weight of every query summed over each block of 64 slots: [Hq, C, ceil(S / 64)] float32, and pairs.

    q [Hq, C, D], k [Hkv, S, D] as they were rotated; `q_positions` [C] and `k_positions` [S] (int64) ascend, and a
    query sees the keys that do not stand after it. Rows sum to 1; a query that sees nothing has a row of 0. Raises
    BadInput for sizes or dtypes that do not fit.
    """
    (heads, rows, dim), (kv_heads, slots, key_dim) = q.shape, k.shape
    if dim != key_dim or kv_heads == 0 or heads == 0 or heads % kv_heads or q.dtype != k.dtype:
        raise BadInput(f"queries {list(q.shape)} in {q.dtype} do not fit keys {list(k.shape)} in {k.dtype}")
    for name, positions, count in (("q", q_positions, rows), ("k", k_positions, slots)):
        if positions.dtype != torch.int64 or tuple(positions.shape) != (count,) or bool((positions.diff() < 0).any()):
            raise BadInput(f"{name}_positions must be int64 [{count}] and ascend")
    # the queries of a group stand one behind the other, so that they share every key that is read
    group = heads // kv_heads
    folded = q.view(kv_heads, group, rows, dim).transpose(1, 2).reshape(kv_heads, rows * group, dim)
    positions = q_positions.repeat_interleave(group)
    run = cpu.block_mass if library.backend(q.device) == "cpu" else naive.block_mass
    mass, pairs = run(folded, k, positions, k_positions, scale, softcap, threads)
    return mass.view(kv_heads, rows, group, -1).transpose(1, 2).reshape(heads, rows, -1), pairs
