"""A block of queries as pieces: sets of keys in one frame, cut, scored and weighed exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.core import attend
from lengthwise.core.frames import UNROTATED, Frame, Visible
from lengthwise.core.seams import View


@dataclass(frozen=True)
class Piece:
    """A set of held slots that a block of queries scores in one frame.

    `slots` is a range (zero-copy) or indices [S]; `mask` [C, S] is None when every query sees every key;
    `causal`: the keys are the block's own, so the mask is the lower triangle.
    """

    frame: Frame
    slots: slice | Tensor
    count: int
    mask: Tensor | None = None
    causal: bool = False
    pairs: int = 0

    def indices(self) -> Tensor:
        """The slots as indices [S]."""
        return torch.arange(self.slots.start, self.slots.stop) if isinstance(self.slots, slice) else self.slots


def cut(frames: tuple[Frame, ...], visible: Visible, positions: Tensor, slot_positions: Tensor) -> list[Piece]:
    """Split what a block may see into pieces: per frame, the keys all queries see, and those that need a mask."""
    return [piece for frame in frames for piece in _cut_frame(frame, visible, positions, slot_positions)]


def _cut_frame(frame: Frame, visible: Visible, q: Tensor, slot_positions: Tensor) -> list[Piece]:
    first, last, rows = int(q[0]), int(q[-1]), len(q)
    k = slot_positions if visible.slots is None else slot_positions[visible.slots]
    # positions ascend, so a frame's keys are a range of the candidates
    start = int(torch.searchsorted(k, first - frame.high, right=True)) if frame.high <= last else 0
    stop = int(torch.searchsorted(k, last - frame.low, right=True))
    if start >= stop:
        return []
    k = k[start:stop]
    some = torch.ones(len(k), dtype=torch.bool)
    every = (first - k >= frame.low) & (last - k < frame.high)
    for window, sinks in visible.rules:
        some &= (first - k < window) | (k < sinks)
        every &= (last - k < window) | (k < sinks)
    partly = some & ~every
    pieces = []
    for wanted, masked in ((every, False), (partly, True)):
        picked = wanted.nonzero()[:, 0]
        if len(picked) == 0:
            continue
        slots = _slots(picked, start, visible.slots)
        if not masked:
            pieces.append(Piece(frame, slots, len(picked), pairs=rows * len(picked)))
            continue
        distance = q[:, None] - k[picked][None]
        mask = (distance >= max(0, frame.low)) & (distance < frame.high)
        for window, sinks in visible.rules:
            mask &= (distance < window) | (k[picked] < sinks)[None]
        causal = len(picked) == rows and bool((mask == torch.ones_like(mask).tril()).all())
        pieces.append(Piece(frame, slots, len(picked), None if causal else mask, causal, int(mask.sum())))
    return pieces


def _slots(picked: Tensor, start: int, candidates: Tensor | None) -> slice | Tensor:
    slots = picked + start if candidates is None else candidates[picked + start]
    first, last = int(slots[0]), int(slots[-1])
    return slice(first, last + 1) if last - first + 1 == len(slots) else slots


Rotate = Callable[[Tensor, Tensor], Tensor]


def score(
    view: View,
    pieces: list[Piece],
    rotate: Rotate | None,
    softcap: float | None,
    extras: list[attend.Partial],
    key_positions: Tensor | None = None,
) -> attend.Partial:
    """Attention of the block over all pieces and `extras`: out [Hq, C, D], logsumexp [Hq, C].

    `rotate` is None when the model rotated queries and keys itself. `key_positions` [n] of the held slots are given
    when keys are stored un-rotated and rotated as they are read.
    """
    partials = list(extras)
    for piece in pieces:
        q, k, v, mask = _operands(view, piece, rotate, key_positions)
        partials.append(attend.partial(q, k, v, scale=view.scale, mask=mask, causal=piece.causal, softcap=softcap))
        view.receipt.pairs += piece.pairs * view.facts.heads
        view.receipt.bytes_read += (k.numel() + v.numel()) * k.element_size()
    return attend.merge(partials)


def weigh(
    view: View,
    pieces: list[Piece],
    rotate: Rotate | None,
    softcap: float | None,
    lse: Tensor,
    key_positions: Tensor | None = None,
) -> list[tuple[Piece, Tensor]]:
    """Every piece with its softmax weights [Hq, C, S], for observers."""
    out = []
    for piece in pieces:
        q, k, _, mask = _operands(view, piece, rotate, key_positions)
        if piece.causal:
            mask = torch.ones(q.shape[1], piece.count, dtype=torch.bool, device=q.device).tril()
        out.append((piece, attend.weights(q, k, lse, scale=view.scale, mask=mask, softcap=softcap)))
    return out


def _operands(
    view: View, piece: Piece, rotate: Rotate | None, key_positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    lane = view.kv.keys[UNROTATED if key_positions is not None else piece.frame.key]
    if isinstance(piece.slots, slice):
        k, v = (x.read(piece.slots.start, piece.slots.stop) for x in (lane, view.kv.values))
    else:
        k, v = lane.gather(piece.slots), view.kv.values.gather(piece.slots)
    q = view.q
    if rotate is not None:
        q = rotate(q, piece.frame.query(view.positions))
        if key_positions is not None:
            k = rotate(k, piece.frame.key.of(key_positions[piece.slots]))
    return q, k, v, None if piece.mask is None else piece.mask.to(q.device)
