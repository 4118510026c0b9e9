"""What the sink-and-window methods share: eviction of the middle, and the bound that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.core.seams import Keeps, Positions, Selects, View

SLACK = 64  # tokens the cache may overrun before it evicts: one move instead of one for each decoded token
BLOCK = 1024


@dataclass(frozen=True)
class Windowed(Positions, Selects, Keeps):
    """A method that owns positions, sees sinks and a window, and keeps no more."""

    @staticmethod
    def bound(window: int, sinks: int, length: int) -> int:
        """Most tokens ever held: what is kept, the slack, and the largest block on its way."""
        return min(length, sinks + window + SLACK + BLOCK)


def keep_window(view: View, window: int, sinks: int) -> Tensor | None:
    """Slots to keep before a block is added: the first `sinks`, and the window of the block's first query."""
    n = view.kv.n
    if n <= sinks + window + SLACK:
        return None
    return torch.cat([torch.arange(sinks), torch.arange(n - window + 1, n)])
