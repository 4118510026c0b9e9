"""One cache that several workers read and write at once, each with the blocks in an order of its own.

A block is a stretch of tokens whose keys are rotated from position 0 of the block. In a worker's view, block b begins
at the sum o_b of the lengths before it; a query at position m of the view is rotated once for every block, at m - o_b:

    (R(m) q) . (R(o_b + n) k)  =  (R(m - o_b) q) . (R(n) k)

so no key is ever rotated again because a block before it has grown. Attention over the view is the merge of one
partial for each block. Source: Hogwild! Inference (arXiv 2504.06261), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lengthwise import kernels
from lengthwise.core.attach import Run
from lengthwise.core.attend import merge
from lengthwise.core.frames import NATIVE
from lengthwise.core.rope import Rope
from lengthwise.core.session import LayerSlot, Session
from lengthwise.core.stack import Stack
from lengthwise.core.store import KV, Layout
from lengthwise.errors import SessionError, StackRefused

FOLLOWS_LENGTH = ("dynamic", "longrope")  # rotary embeddings whose angles change with the length


@dataclass
class Block:
    """Tokens in a row that views may hold: ids [n], and keys and values of every layer."""

    ids: list[int] = field(default_factory=list)
    layers: dict[int, KV] = field(default_factory=dict)

    def length(self, layer: int) -> int:
        """Tokens that a layer holds; in the middle of a pass, layers differ."""
        return self.layers[layer].n if layer in self.layers else 0

    def append(self, layer: int, rope: Rope, k: Tensor, v: Tensor) -> None:
        """Un-rotated keys and values [Hkv, n, D] of new tokens."""
        if layer not in self.layers:
            self.layers[layer] = KV({NATIVE: Layout()}, Layout(), k.shape[0], k.shape[2], k.dtype, k.device)
        kv = self.layers[layer]
        positions = torch.arange(kv.n, kv.n + k.shape[1])
        kv.append({NATIVE: rope.rotate(k, positions)}, v, positions)

    def take(self, other: Block, rope: Rope) -> None:
        """Move all tokens of `other` to the end of this block: the one case in which keys are rotated again."""
        turn = rope.with_frequencies(rope.inv_freq, 1.0)  # keys have the scale of the angles already
        for layer, kv in other.layers.items():
            mine, count = self.layers[layer], kv.n
            keys, values = kv.keys[NATIVE].read(0, count), kv.values.read(0, count)
            shift = torch.full((count,), mine.n)
            mine.append({NATIVE: turn.rotate(keys, shift)}, values, torch.arange(mine.n, mine.n + count))
        self.ids += other.ids
        other.ids, other.layers = [], {}


class SharedCache(Session):
    """The cache of all workers. `read` is one forward pass; `passes` and `pairs` (query-key) count."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.layers = [_Slot(self, i, run.plans[kind]) for i, kind in enumerate(run.facts.layer_kinds)]
        self.rope = run.ropes["full"]
        self.passes, self.pairs = 0, 0
        self._rows: list[tuple[Sequence[Block], int]] = []

    @torch.no_grad()
    def read(self, rows: Sequence[tuple[Sequence[Block], Sequence[int]]]) -> Tensor:
        """One pass: for each (view, ids) the ids are added to the last block of the view. Logits [W, V] of their last.

        Every row sees what the others add in the same pass, if their blocks are in its view. No two rows may add to
        one block.
        """
        width = max(len(new) for _, new in rows)
        device = next(self.run.model.parameters()).device
        ids = torch.tensor([[new[0]] * (width - len(new)) + list(new) for _, new in rows], device=device)
        self._rows = [(view, len(new)) for view, new in rows]
        hidden = self.run.anatomy.decoder(input_ids=ids, past_key_values=self, use_cache=True)[0]
        for view, new in rows:
            view[-1].ids += new
        self.passes += 1
        return self.run.logits(hidden[:, -1])

    def begin(self, mask: Tensor | None, batch: int, tokens: int) -> None:
        """Before a forward pass."""
        self.check_active()
        self.check_whole()
        if batch != len(self._rows):
            raise SessionError("a shared cache is written by `read` alone")
        self.broken = True

    def attend(self, slot: LayerSlot, q: Tensor, scale: float, softcap: float | None) -> Tensor:
        """The attention step of one layer: q [W, Hq, C, D] -> [W, C, Hq, D]; columns of padding get zeros."""
        assert slot.new is not None
        k, v = slot.new
        slot.new = None
        columns = q.shape[2]
        for row, (view, count) in enumerate(self._rows):
            skip = columns - count
            view[-1].append(slot.index, self.rope, k[row, :, skip:], v[row, :, skip:])
        out = torch.zeros(q.shape[0], columns, q.shape[1], v.shape[3], dtype=q.dtype, device=q.device)
        for row, (view, count) in enumerate(self._rows):
            new = self._view(slot.index, view, q[row, :, columns - count :], scale, softcap)
            out[row, columns - count :] = new.transpose(0, 1)
        return out

    def _view(self, layer: int, view: Sequence[Block], q: Tensor, scale: float, softcap: float | None) -> Tensor:
        """Queries [Hq, C, D], the last ones of the view, over all of its blocks: [Hq, C, D]."""
        count, total = q.shape[1], sum(block.length(layer) for block in view)
        positions, offset, partials = torch.arange(total - count, total), 0, []
        for block in view:
            if n := block.length(layer):
                kv, here = block.layers[layer], positions - offset
                out, lse, pairs = kernels.attend(
                    [self.rope.rotate(q, here)],
                    [kv.keys[NATIVE].read(0, n)],
                    kv.values.read(0, n),
                    q_positions=here,
                    k_positions=kv.positions,
                    scale=scale,
                    softcap=softcap,
                )
                partials.append((out, lse))
                self.pairs += pairs
                offset += n
        self.run.ledger.layers[layer].queries += count
        return merge(partials)[0].to(q.dtype)


class _Slot(LayerSlot):
    """A layer of a shared cache: blocks hold what it is given."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Take the new keys and values [W, Hkv, C, D] of all workers."""
        self.session.check_active()
        self.is_initialized = True
        self.new = (key_states, value_states)
        return self, self


def attach(model: Any) -> Run:
    """A run under which queries and keys arrive un-rotated, to be entered with `with`.

    Raises StackRefused for models whose keys cannot be moved by rotation.
    """
    run = Run(Stack([]), model)
    reasons = []
    if "sliding" in run.facts.layer_kinds:
        reasons.append("sliding-window layers would not see the blocks of other workers")
    if run.facts.rope_type in FOLLOWS_LENGTH:
        reasons.append(f"{run.facts.rope_type} rotary embeddings change with the length, so keys cannot stay rotated")
    if reasons:
        raise StackRefused("a cache that workers share", reasons)
    run.plans = {kind: replace(plan, raw=True) for kind, plan in run.plans.items()}
    return run
