"""A look from the early layers: how the last query of an input scores every token, without running the rest.

The input goes through the layers below the one that is asked; there, keys are gathered and the pass ends. What a
forward pass through r of L layers costs is r / L of a whole one, and its keys and values are r / L of the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from lengthwise.core.attach import CHUNK, Run
from lengthwise.core.frames import Visible
from lengthwise.core.pieces import cut
from lengthwise.core.session import LayerSlot, Session


class _Enough(Exception):
    """The keys of the layer have been gathered: the rest of the forward pass is not wanted."""


class _Early(Session):
    """A session whose forward passes end at the attention of `layer`, with that layer's keys and the last query."""

    def __init__(self, run: Run, expected: int, layer: int) -> None:
        super().__init__(run, expected)
        self.layer = layer
        self.keys: list[Tensor] = []
        self.query: Tensor | None = None

    def attend(self, slot: LayerSlot, q: Tensor, scale: float, softcap: float | None) -> Tensor:
        """The attention of a layer below; at the layer itself, gather its keys and stop."""
        if slot.index < self.layer:
            return super().attend(slot, q, scale, softcap)
        assert slot.new is not None
        self.keys.append(slot.new[0][0])
        self.query, slot.new = q[0, :, -1:], None
        slot.seen += q.shape[2]
        self.finish()
        raise _Enough


@torch.no_grad()
def early_scores(
    run: Run, ids: Tensor, layer: int, *, chunk: int = CHUNK, step: Callable[[int], None] | None = None
) -> Tensor:
    """Inner products of the last query of `ids` [n] with every key in `layer`, summed over heads: [n] float32.

    Queries and keys are rotated as the stack's position method has them at their distances. Neither the scale nor
    the softmax of attention is applied; a key that the position method does not show has -inf. `step` hears the
    tokens read after every chunk.
    """
    session = _Early(run, len(ids), layer)
    while (done := session.get_seq_length()) < len(ids):
        if step is not None:
            step(done)
        with suppress(_Enough):
            for _ in run.feed(ids[None], session, chunk=chunk):
                pass
    run.ledger.tokens_read += len(ids)
    keys, query = torch.cat(session.keys, 1), session.query
    assert query is not None
    plan = session.layers[layer].plan
    rope = run.rope_at(len(ids)) if plan.rotates_on_read else plan.rope
    last, positions = torch.tensor([len(ids) - 1]), torch.arange(len(ids))
    out = torch.full((len(ids),), float("-inf"))
    for piece in cut(plan.frames, Visible(), last, positions).pieces:
        where = piece.indices()
        k, q = keys[:, where.to(keys.device)], query
        if plan.raw:
            k, q = rope.rotate(k, piece.frame.key.of(where)), rope.rotate(q, piece.frame.query(last))
        grouped = q.float().reshape(k.shape[0], -1, q.shape[-1])  # the query heads of every key head
        out[where] = torch.einsum("hgd,hsd->s", grouped, k.float()).cpu()
    receipt = run.ledger.layers[layer]
    receipt.pairs += run.facts.heads * len(ids)
    receipt.peak_bytes = max(receipt.peak_bytes, keys.nbytes)
    return out
