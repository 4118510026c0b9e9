"""What an attention over block lists asks for, checked once for every backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels.attend.lists import BlockLists
from lengthwise.kernels.library import Coded

Result = tuple[Tensor, Tensor, int]


@dataclass(frozen=True)
class Request:
    """The arguments of `attend`. Ids of blocks are checked where they are read: all else, shapes alone can tell."""

    q: Sequence[Tensor]
    k: Sequence[Tensor | Coded]
    v: Tensor | Coded
    q_positions: Tensor
    k_positions: Tensor
    lists: BlockLists | None
    frames: Sequence[tuple[int, int]]
    rules: Sequence[tuple[int, int]]
    scale: float
    softcap: float | None

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.q[0].shape[0]

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.v.shape[0]

    @property
    def rows(self) -> int:
        """Queries."""
        return self.q[0].shape[1]

    @property
    def slots(self) -> int:
        """Keys."""
        return self.v.shape[1]

    @property
    def value_dim(self) -> int:
        """Channels of a value."""
        return self.v.shape[2]

    def __post_init__(self) -> None:
        q, k = self.q, self.k
        if not len(q) == len(k) == len(self.frames) or not self.frames:
            counts = f"{len(q)}, {len(k)} and {len(self.frames)}"
            raise BadInput(f"attend needs queries and keys for every frame, not {counts}")
        flat = any(len(x.shape) != 3 for x in (*q, *k, self.v))
        keys = (*self.v.shape[:2], q[0].shape[-1])
        if flat or any(x.shape != q[0].shape for x in q) or any(tuple(x.shape) != keys for x in k):
            shapes = [tuple(x.shape) for x in (*q, *k, self.v)]
            raise BadInput(f"attend needs q [Hq, C, D], k [Hkv, S, D] and v [Hkv, S, Dv], not {shapes}")
        if self.heads == 0 or self.kv_heads == 0 or self.heads % self.kv_heads:
            raise BadInput(f"{self.heads} query heads do not divide into {self.kv_heads} key heads")
        ascending("q", self.q_positions, self.rows)
        ascending("k", self.k_positions, self.slots)
        ordered = sorted((max(low, 0), high) for low, high in self.frames)
        if any(a[1] > b[0] for a, b in pairwise(ordered)):
            raise BadInput(f"frames must not overlap: {list(self.frames)}")
        if not (math.isfinite(self.scale) and self.scale > 0) or (self.softcap is not None and not self.softcap > 0):
            raise BadInput(f"scale and softcap must be positive, not {self.scale} and {self.softcap}")
        if self.lists is not None:
            self._check_lists(self.lists)

    def _check_lists(self, lists: BlockLists) -> None:
        groups, blocks = lists.offsets.shape[0], lists.offsets.shape[1] - 1
        if groups not in (1, self.kv_heads, self.heads) or blocks != -(-self.rows // lists.query_block):
            raise BadInput(
                f"lists of {groups} heads, {blocks} query blocks do not fit {self.heads} heads, {self.rows} queries"
            )


def ascending(name: str, positions: Tensor, count: int) -> None:
    """Raise BadInput unless positions are int64 [count] and ascend."""
    if positions.dtype != torch.int64 or tuple(positions.shape) != (count,):
        raise BadInput(f"{name}_positions must be int64 [{count}]")
    if bool((positions.diff() < 0).any()):
        raise BadInput(f"{name}_positions must ascend")
