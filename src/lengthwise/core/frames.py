"""Position frames: where a key stands, seen from a query, when one distance rule does not serve all distances.

A frame covers the distances d = m - n in [low, high) of a query at position m and a key at position n. In it the
query is rotated at `query(m)` and the key at `key.of(n)`, so RoPE sees the distance query(m) - key.of(n).
The plain model has one frame: [0, inf), both rotated where they stand. A frame may also be bound to chunks: it then
covers the keys whose chunk lies a given number of chunks before the query's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FAR = 1 << 62


@dataclass(frozen=True)
class Rotation:
    """Position at which a stored key is rotated: n // group, or 0 for every key when `group` is None (un-rotated).

    `wrap`: positions start anew at every multiple of it.
    """

    group: int | None = 1
    wrap: int | None = None

    def of(self, positions: Tensor) -> Tensor:
        """Positions [n] -> positions [n] at which the keys are rotated."""
        if self.group is None:
            return positions * 0
        if self.wrap is not None:
            positions = positions % self.wrap
        return positions if self.group == 1 else positions // self.group


NATIVE = Rotation()
UNROTATED = Rotation(None)


def stay(positions: Tensor) -> Tensor:
    """The query stands where it stands."""
    return positions


def at(position: int) -> Callable[[Tensor], Tensor]:
    """Every query stands at `position`."""
    return lambda positions: positions * 0 + position


def upto(position: int) -> Callable[[Tensor], Tensor]:
    """A query stands where it stands, but never beyond `position`."""
    return lambda positions: positions.clamp(max=position)


@dataclass(frozen=True)
class Frame:
    """One distance rule: distances in [low, high) in tokens, the query's position, the key's rotation.

    With `chunk`, only keys whose chunk of so many tokens lies back[0] to back[1] - 1 chunks before the query's; the
    method must then end blocks of queries where chunks end (`Method.cuts`).
    """

    low: int = 0
    high: int = FAR
    query: Callable[[Tensor], Tensor] = stay
    key: Rotation = NATIVE
    chunk: int | None = None
    back: tuple[int, int] = (0, FAR)

    def keys(self, first: int) -> tuple[int, int]:
        """Positions [start, stop) of the keys that a block of queries at `first` and on sees here, chunks alone."""
        if self.chunk is None:
            return 0, FAR
        now = first // self.chunk
        return max(0, now - self.back[1] + 1) * self.chunk, max(0, now - self.back[0] + 1) * self.chunk


PLAIN = (Frame(),)


@dataclass(frozen=True)
class Visible:
    """Which held keys the queries of a block may see, beside causality.

    `slots` [m] (ascending, on the CPU; None: all) are the held slots that may be seen at all. Each rule
    (window, sinks) narrows that: a query at m sees a key at n when m - n < window or n < sinks. All rules must hold.
    """

    slots: Tensor | None = None
    rules: tuple[tuple[int, int], ...] = ()

    def __and__(self, other: Visible) -> Visible:
        """What both let through."""
        if self.slots is None or other.slots is None:
            slots = other.slots if self.slots is None else self.slots
        else:
            slots = self.slots[torch.isin(self.slots, other.slots, assume_unique=True)]
        return Visible(slots, self.rules + other.rules)


EVERYTHING = Visible()
