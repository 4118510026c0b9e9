"""Exact attention of queries over lists of key blocks, in position frames: (out, logsumexp, pairs scored)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lengthwise.core.frames import FAR
from lengthwise.kernels import library
from lengthwise.kernels.attend import cpu, flex, naive
from lengthwise.kernels.attend.lists import SLOTS, BlockLists
from lengthwise.kernels.attend.request import Request, Result
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
    request = Request(q, k, v, q_positions, k_positions, lists, frames, rules, scale, softcap)
    backend = library.backend(q[0].device)
    if backend == "cpu":
        return cpu.attend(request, threads)
    return flex.attend(request) if backend == "flex" else naive.attend(request)
