"""What a decode step asks for, checked once for every backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels.library import Coded

BLOCK = 64  # slots of a page
Lane = Tensor | Coded


@dataclass(frozen=True)
class Request:
    """The arguments of `decode`, with `pages` [G, P] int32 and `seen` [G, n] bool, or None.

    The ids of pages are checked where they are read.
    """

    q: Tensor
    k: Lane
    v: Lane
    pages: Tensor | None
    length: int
    scale: float
    softcap: float | None
    seen: Tensor | None

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.q.shape[0]

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.k.shape[0]

    @property
    def value_dim(self) -> int:
        """Channels of a value."""
        return self.v.shape[2]

    def __post_init__(self) -> None:
        if self.q.ndim != 2 or len(self.k.shape) != 3 or len(self.v.shape) != 3:
            raise BadInput("decode reads a query [Hq, D], keys [Hkv, S, D] and values [Hkv, S, Dv]")
        kv_heads, slots, dim = self.k.shape
        if self.q.shape[1] != dim or kv_heads == 0 or self.heads == 0 or self.heads % kv_heads:
            raise BadInput(f"a query {list(self.q.shape)} does not fit keys {list(self.k.shape)}")
        if self.v.shape[:2] != self.k.shape[:2]:
            raise BadInput(f"values {list(self.v.shape)} need the heads and slots of keys {list(self.k.shape)}")
        if not 0 <= self.length <= slots:
            raise BadInput(f"length must be from 0 to the {slots} slots there are, not {self.length}")
        if self.softcap is not None and not self.softcap > 0:
            raise BadInput(f"softcap must be above 0, not {self.softcap}")
        if self.pages is not None:
            self._check_groups("pages", self.pages, torch.int32)
        if self.seen is not None:
            self._check_groups("seen", self.seen, torch.bool)
            if self.seen.shape[1] < self.length:
                raise BadInput(f"seen covers {self.seen.shape[1]} slots of {self.length}")

    def _check_groups(self, name: str, x: Tensor, dtype: torch.dtype) -> None:
        if x.dtype != dtype or x.ndim != 2 or len(x) not in (1, self.kv_heads):
            kind = str(dtype).removeprefix("torch.")
            raise BadInput(f"{name} must be {kind} with 1 row or one for each of {self.kv_heads} KV heads")
