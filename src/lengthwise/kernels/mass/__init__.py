"""Which share of a query's softmax lies in each block of keys: what a choice of blocks is judged by."""

from __future__ import annotations

from torch import Tensor

from lengthwise.kernels import library
from lengthwise.kernels.mass import cpu, naive
from lengthwise.kernels.mass.request import Request

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
    request = Request(q, k, q_positions, k_positions, scale, softcap)
    compiled = library.backend(q.device) == "cpu"
    mass, pairs = cpu.block_mass(request, threads) if compiled else naive.block_mass(request)
    return mass.unflatten(1, (-1, request.group)).transpose(1, 2).flatten(0, 1), pairs
