"""The attention step of one block of queries, of one sequence, in one layer: evict, add, select, score, observe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lengthwise.core.frames import UNROTATED, Visible
from lengthwise.core.pieces import Cut, cut
from lengthwise.core.plan import LayerPlan
from lengthwise.core.scoring import Scorer
from lengthwise.core.seams import View
from lengthwise.kernels import BlockLists

if TYPE_CHECKING:
    from lengthwise.core.session import LayerSlot, Session


@dataclass(frozen=True)
class Block:
    """Queries [Hq, C, D], keys and values [Hkv, C, D] of one row in one layer; `start` is the first position."""

    slot: LayerSlot
    row: int
    q: Tensor
    k: Tensor
    v: Tensor
    start: int


def attend(session: Session, block: Block, scale: float, softcap: float | None) -> Tensor:
    """Attention of the block's queries over what the stack lets them see: [Hq, C, D] in the queries' dtype."""
    assert session.pads is not None
    plan, row, q = block.slot.plan, block.row, block.q
    kv, pad, count = block.slot.rows[row], session.pads[row], block.q.shape[1]
    receipt = session.run.ledger.layers[block.slot.index]
    tokens = session.positions(block.start, block.start + count)
    rope = session.run.rope_at(session.end - pad) if plan.rotates_on_read else plan.rope
    if plan.position is not None:
        factor = plan.position.query_factor(session.run.facts, tokens, block.slot.index)
        q = q if factor is None else q * factor.to(q)[:, None]
    view = View(block.slot.index, session.run.facts, kv, q, tokens, scale, rope, receipt, softcap)
    view.raw = plan.raw
    view.ends_pass = block.start + count == session.end - pad
    if session.surprise.values:
        view.surprise = session.surprise.values[row][kv.positions]
        view.ages = session.turn - session.surprise.turns[row][kv.positions]
    _evict(session, plan, view, row)
    view.positions = session.positions(kv.n, kv.n + count) if plan.in_cache else tokens
    rotate = rope.rotate if plan.raw else None
    keys = {
        r: block.k if r == UNROTATED or rotate is None else rotate(block.k, r.of(view.positions))
        for r in plan.key_layouts
    }
    kv.append(keys, block.v, tokens)
    slot_positions = session.positions(0, kv.n) if plan.in_cache else kv.positions
    seen = _cut(session, plan, view, row, slot_positions)
    extras = []
    view.added = [] if session.watch is not None and plan.kind == "full" else None
    for method in plan.selects:
        view.state = session.states[view.layer, row, method.spec.name]
        found = method.extras(view)
        session.run.ledger.acted[method.spec.name] += bool(found)
        extras += found
    scorer = Scorer(view, rotate, slot_positions, plan.rotates_on_read, _lists(session, plan, view, row), plan.scores)
    if plan.scores is not None:
        session.run.ledger.consulted[plan.scores.spec.name] += 1
        session.run.ledger.acted[plan.scores.spec.name] += 1
        view.state = session.states[view.layer, row, plan.scores.spec.name]
    out, lse = scorer.score(seen, extras)
    _observe(session, plan, scorer, row, seen, lse)
    kv.settle()
    receipt.queries += count
    receipt.dense_pairs += q.shape[0] * (count * block.start + count * (count + 1) // 2)
    return out.to(q.dtype)


def _evict(session: Session, plan: LayerPlan, view: View, row: int) -> None:
    kv = view.kv
    if plan.kind == "sliding":
        window = plan.rules[0][0]
        if kv.n > 2 * window:
            kv.keep(torch.arange(kv.n - window, kv.n))
        return
    if plan.keeps is None:
        return
    view.state = session.states[view.layer, row, plan.keeps.spec.name]
    slots = plan.keeps.keep(view)
    session.run.ledger.consulted[plan.keeps.spec.name] += 1
    if slots is not None and slots.shape[-1] < kv.n:
        kv.keep(slots)
        if plan.in_cache:
            kv.rotate_again(plan.rope.rotate)
        session.run.ledger.acted[plan.keeps.spec.name] += 1


def _cut(session: Session, plan: LayerPlan, view: View, row: int, slot_positions: Tensor) -> Cut:
    key = (plan.kind, row, view.start, view.stop, view.kv.n)
    if not plan.per_layer and key in session.memo:
        return session.memo[key]
    visible = Visible(rules=plan.rules)
    for method in plan.selects:
        view.state = session.states[view.layer, row, method.spec.name]
        visible = visible & method.visible(view)
    seen = cut(plan.frames, visible, view.positions, slot_positions)
    session.run.count(plan, seen.pieces, dense_pairs=int((view.positions + 1).sum()))
    session.memo[key] = seen
    return seen


def _lists(session: Session, plan: LayerPlan, view: View, row: int) -> BlockLists | None:
    if plan.blocks is None:
        return None
    name = plan.blocks.spec.name
    view.state = session.states[view.layer, row, name]
    lists = plan.blocks.lists(view)
    session.run.ledger.consulted[name] += 1
    session.run.ledger.acted[name] += lists is not None
    return lists


def _observe(session: Session, plan: LayerPlan, scorer: Scorer, row: int, seen: Cut, lse: Tensor) -> None:
    wanting, view, pieces = [], scorer.view, seen.pieces
    for observer in plan.observes:
        view.state = session.states[view.layer, row, observer.spec.name]
        session.run.ledger.consulted[observer.spec.name] += 1
        if observer.watching(view):
            wanting.append(observer)
    watch = None if view.added is None else session.watch
    if not wanting and watch is None:
        return
    if watch is None and plan.scores is None:
        pieces = [p for p in pieces if any(o.wants(p.frame) for o in wanting)]
    for piece, weights in scorer.weigh(pieces, lse):
        slots = piece.indices()
        for observer in [o for o in wanting if o.wants(piece.frame)]:
            view.state = session.states[view.layer, row, observer.spec.name]
            observer.observe(view, piece.frame, slots, weights)
        if watch is not None:
            places = view.kv.head_positions[:, slots] if view.kv.heads_differ else view.kv.positions[slots]
            watch.add(row, places, weights)
    if watch is not None:
        for places, logits in view.added or ():
            watch.add(row, places, torch.exp(logits - lse[..., None]))
