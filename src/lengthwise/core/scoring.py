"""Scores what a block of queries sees, through the kernels where there are any, else piece by piece in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise import kernels
from lengthwise.core import attend
from lengthwise.core.frames import PLAIN, UNROTATED
from lengthwise.core.pieces import Cut, Piece, Reach, Slots
from lengthwise.core.seams import Part, Scores, View
from lengthwise.core.store import Lane
from lengthwise.kernels.attend.lists import SLOTS, BlockLists
from lengthwise.kernels.library import Coded

Rotate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scorer:
    """One block of queries, and how its keys are to be read.

    `rotate` is None when the model rotated queries and keys itself. `slot_positions` [n] are those from which distances
    are counted; `on_read`: keys are stored un-rotated and rotated there as they are read. `lists` narrows what
    every group of heads sees.
    """

    view: View
    rotate: Rotate | None
    slot_positions: Tensor
    on_read: bool
    lists: BlockLists | None = None
    scores: Scores | None = None

    def score(self, cut: Cut, extras: list[attend.Partial]) -> attend.Partial:
        """Attention of the block over all it sees and `extras`: out [Hq, C, D], logsumexp [Hq, C]."""
        view = self.view
        if self.lists is not None:
            return self._listed(self.lists)
        if self.scores is not None:
            return self._weighed(self.scores, cut)
        partials = list(extras)
        if kernels.backend(view.q.device) == "naive":
            for piece in cut.pieces:
                partials.append(self._piece(piece))
        else:
            for reach in cut.reaches:
                partials += self._decode(reach) if reach.runs and not self.on_read else self._reach(reach)
        self._count(cut)
        return attend.merge(partials)

    def _count(self, cut: Cut) -> None:
        view, held = self.view, self.view.kv.values
        for piece in cut.pieces:
            view.receipt.pairs += piece.pairs * view.facts.heads
            view.receipt.bytes_read += 2 * piece.count * held.shape[0] * held.shape[1] * view.q.element_size()

    def weigh(self, pieces: list[Piece], lse: Tensor) -> list[tuple[Piece, Tensor]]:
        """Every piece with its weights [Hq, C, S], for observers; `lse` [Hq, C] is over all pieces.

        With `scores`, `pieces` are all that the block sees.
        """
        view, out = self.view, []
        if self.scores is not None:
            return list(zip(pieces, self.scores.weigh(view, [self._part(p) for p in pieces]), strict=True))
        for piece in pieces:
            (k, _), q = self._keys(piece.slots, piece), self._queries(piece)
            mask = None if piece.mask is None else piece.mask.to(q.device)
            if piece.causal:
                mask = torch.ones(q.shape[1], piece.count, dtype=torch.bool, device=q.device).tril()
            out.append((piece, attend.weights(q, k, lse, scale=view.scale, mask=mask, softcap=view.softcap)))
        return out

    def _part(self, piece: Piece) -> Part:
        q = self._queries(piece)
        mask = piece.mask
        if piece.causal:
            mask = torch.ones(q.shape[1], piece.count, dtype=torch.bool).tril()
        return Part(q, self._keys(piece.slots, piece)[0], None if mask is None else mask.to(q.device))

    def _weighed(self, scores: Scores, cut: Cut) -> attend.Partial:
        """Values summed by the weights of the method that owns `score`; zeros stand in for a logsumexp."""
        view = self.view
        weights = scores.weigh(view, [self._part(p) for p in cut.pieces])
        out = view.q.new_zeros(*view.q.shape[:2], view.kv.values.shape[-1], dtype=torch.float32)
        for piece, some in zip(cut.pieces, weights, strict=True):
            v = self._keys(piece.slots, piece)[1].float()
            out += (some.unflatten(0, (v.shape[0], -1)) @ v[:, None]).flatten(0, 1)
        self._count(cut)
        return out, out.new_zeros(out.shape[:2])

    def _piece(self, piece: Piece) -> attend.Partial:
        (k, v), q = self._keys(piece.slots, piece), self._queries(piece)
        mask = None if piece.mask is None else piece.mask.to(q.device)
        return attend.partial(q, k, v, scale=self.view.scale, mask=mask, causal=piece.causal, softcap=self.view.softcap)

    def _reach(self, reach: Reach) -> list[attend.Partial]:
        """All of a frame's keys at once; the kernel itself leaves out what frame and rules do."""
        slots, view = reach.slots, self.view
        hot = self._lane(reach).cold_tokens == view.kv.values.cold_tokens == 0
        if not isinstance(slots, slice) and reach.cover is not None and hot:
            slots = reach.cover
        q, out = self._queries(reach), []
        for some, k, v in self._parts(slots, reach):
            o, lse, _ = kernels.attend(
                (q,),
                (k,),
                v,
                q_positions=view.positions,
                k_positions=self.slot_positions[some],
                frames=((reach.frame.low, reach.frame.high),),
                rules=reach.rules,
                scale=view.scale,
                softcap=view.softcap,
            )
            out.append((o, lse))
        return out

    def _listed(self, lists: BlockLists) -> attend.Partial:
        """Attention over block lists, which count all held slots; there is one frame."""
        view, n = self.view, self.view.kv.n
        whole = Reach(PLAIN[0], (), slice(0, n))
        q, (k, v) = self._queries(whole), self._keys(slice(0, n), whole)
        if q.shape[1] == 1 and lists.columns is None and lists.offsets.shape[0] in (1, k.shape[0]):
            o, lse, pairs = kernels.decode(
                q[:, 0], k, v, pages=lists.pages(), length=n, scale=view.scale, softcap=view.softcap
            )
            out, lse = o[:, None], lse[:, None]
        else:
            out, lse, pairs = kernels.attend(
                (q,),
                (k,),
                v,
                q_positions=view.positions,
                k_positions=self.slot_positions,
                lists=lists,
                scale=view.scale,
                softcap=view.softcap,
            )
        view.receipt.pairs += pairs
        read = lists.blocks.numel() * SLOTS + (0 if lists.columns is None else lists.columns.numel())
        view.receipt.bytes_read += 2 * read * k.shape[2] * k.element_size()
        return out, lse

    def _decode(self, reach: Reach) -> list[attend.Partial]:
        """One query, which sees every slot of every run."""
        q, out = self._queries(reach)[:, 0], []
        for run in reach.runs:
            for _, k, v in self._parts(run, reach):
                o, lse, _ = kernels.decode(q, k, v, length=k.shape[1], scale=self.view.scale, softcap=self.view.softcap)
                out.append((o[:, None], lse[:, None]))
        return out

    def _queries(self, part: Piece | Reach) -> Tensor:
        q = self.view.q
        return q if self.rotate is None else self.rotate(q, part.frame.query(self.view.positions))

    def _lane(self, part: Piece | Reach) -> Lane:
        return self.view.kv.keys[UNROTATED if self.on_read else part.frame.key]

    def _parts(self, slots: Slots, part: Reach) -> list[tuple[Slots, Tensor | Coded, Tensor | Coded]]:
        """The slots with their keys and values: codes as they are where kernels can read them, the rest as tensors."""
        lane, values = self._lane(part), self.view.kv.values
        edge = values.cold_tokens
        if isinstance(slots, slice) and slots.start < edge == lane.cold_tokens and not self.on_read:
            cold = slice(slots.start, min(slots.stop, edge))
            k, v = lane.coded(cold.start, cold.stop), values.coded(cold.start, cold.stop)
            if k is not None and v is not None:
                hot = slice(edge, slots.stop)
                return [(cold, k, v), *([(hot, *self._keys(hot, part))] if hot.start < hot.stop else [])]
        return [(slots, *self._keys(slots, part))]

    def _keys(self, slots: Slots, part: Piece | Reach) -> tuple[Tensor, Tensor]:
        view, lane = self.view, self._lane(part)
        if isinstance(slots, slice):
            k, v = (x.read(slots.start, slots.stop) for x in (lane, view.kv.values))
        else:
            k, v = lane.gather(slots), view.kv.values.gather(slots)
        if self.on_read and self.rotate is not None:
            k = self.rotate(k, part.frame.key.of(self.slot_positions[slots]))
        return k, v
