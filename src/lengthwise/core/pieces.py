"""What a block of queries sees, cut into sets of keys in one frame: pieces for torch, whole reaches for a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lengthwise.core.frames import Frame, Visible

Slots = slice | Tensor  # a range (zero-copy) or ascending indices [S], on the CPU
RUNS = 4  # ranges that one query reads apart rather than gather


@dataclass(frozen=True)
class Piece:
    """A set of held slots that a block of queries scores in one frame.

    `mask` [C, S] is None when every query sees every key; `causal`: the keys are the block's own, so the mask is the
    lower triangle.
    """

    frame: Frame
    slots: Slots
    count: int
    mask: Tensor | None = None
    causal: bool = False
    pairs: int = 0

    def indices(self) -> Tensor:
        """The slots as indices [S]."""
        return torch.arange(self.slots.start, self.slots.stop) if isinstance(self.slots, slice) else self.slots


@dataclass(frozen=True)
class Reach:
    """All slots that a block sees in one frame: what one call of a kernel reads.

    `slots` are those that some query sees; `cover`, if any, is a range around them from which frame and `rules` alone
    leave the others out; `runs` are the ranges that make up `slots`, when one query sees them all and they are few.
    """

    frame: Frame
    rules: tuple[tuple[int, int], ...]
    slots: Slots
    cover: slice | None = None
    runs: tuple[slice, ...] = ()


@dataclass(frozen=True)
class Cut:
    """What a block may see, as pieces and as reaches: the same pairs twice."""

    pieces: list[Piece]
    reaches: list[Reach]


def cut(frames: tuple[Frame, ...], visible: Visible, positions: Tensor, slot_positions: Tensor) -> Cut:
    """Split what a block may see: per frame, the keys all queries see, and those that need a mask."""
    out = Cut([], [])
    for frame in frames:
        _cut_frame(out, frame, visible, positions, slot_positions)
    return out


def _cut_frame(out: Cut, frame: Frame, visible: Visible, q: Tensor, slot_positions: Tensor) -> None:
    first, last, rows = int(q[0]), int(q[-1]), len(q)
    k = slot_positions if visible.slots is None else slot_positions[visible.slots]
    # positions ascend, so a frame's keys are a range of the candidates
    start = int(torch.searchsorted(k, first - frame.high, right=True)) if frame.high <= last else 0
    stop = int(torch.searchsorted(k, last - frame.low, right=True))
    if frame.chunk is not None:
        low, high = frame.keys(first)
        start, stop = max(start, int(torch.searchsorted(k, low))), min(stop, int(torch.searchsorted(k, high)))
    if start >= stop:
        return
    k = k[start:stop]
    some = torch.ones(len(k), dtype=torch.bool)
    every = (first - k >= frame.low) & (last - k < frame.high)
    for window, sinks in visible.rules:
        some &= (first - k < window) | (k < sinks)
        every &= (last - k < window) | (k < sinks)
    if bool(some.any()):
        slots = _slots(some.nonzero()[:, 0], start, visible.slots)
        cover = slice(start, stop) if visible.slots is None else None
        out.reaches.append(Reach(frame, visible.rules, slots, cover, _runs(slots) if rows == 1 else ()))
    for wanted, masked in ((some & every, False), (some & ~every, True)):
        picked = wanted.nonzero()[:, 0]
        if len(picked) == 0:
            continue
        slots = _slots(picked, start, visible.slots)
        if not masked:
            out.pieces.append(Piece(frame, slots, len(picked), pairs=rows * len(picked)))
            continue
        distance = q[:, None] - k[picked][None]
        mask = (distance >= max(0, frame.low)) & (distance < frame.high)
        for window, sinks in visible.rules:
            mask &= (distance < window) | (k[picked] < sinks)[None]
        causal = len(picked) == rows and bool((mask == torch.ones_like(mask).tril()).all())
        out.pieces.append(Piece(frame, slots, len(picked), None if causal else mask, causal, int(mask.sum())))


def _slots(picked: Tensor, start: int, candidates: Tensor | None) -> Slots:
    slots = picked + start if candidates is None else candidates[picked + start]
    first, last = int(slots[0]), int(slots[-1])
    return slice(first, last + 1) if last - first + 1 == len(slots) else slots


def _runs(slots: Slots) -> tuple[slice, ...]:
    if isinstance(slots, slice):
        return (slots,)
    breaks = (slots.diff() != 1).nonzero()[:, 0] + 1
    if len(breaks) >= RUNS:
        return ()
    edges = [0, *breaks.tolist(), len(slots)]
    return tuple(slice(int(slots[a]), int(slots[b - 1]) + 1) for a, b in pairwise(edges))
