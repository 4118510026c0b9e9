"""Positional Integrity Encoding: a text that was read is edited, and its cache repaired (arXiv 2407.03157).

When tokens [a, b) of n are replaced by m others, the first a keys and values are right as they are. The m new tokens
are read behind them. What followed the edit stands m - (b - a) further on: its keys are turned by that much,

    k' = R(new) R(old)^-1 k = R(new - old) k,

which is exact, since rotations compose. Its values, and what its keys say, stay as they were read beside the old
tokens: that is the approximation. It costs m tokens of reading instead of n - a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.core.attach import Run
from lengthwise.core.frames import Rotation
from lengthwise.core.rope import Rope
from lengthwise.core.session import Session
from lengthwise.core.store import KV
from lengthwise.errors import BadInput, SessionError

_OFTEN = ("dynamic", "longrope")  # kinds of rotary frequencies that change while a text is read


@dataclass(frozen=True)
class Repair:
    """What an edit took, in tokens: those dropped, read anew, and moved behind the edit."""

    dropped: int
    read: int
    moved: int


@dataclass(frozen=True)
class _Tail:
    """Keys for each rotation and values [Hkv, s, D] that follow the edit, and where they stood [s]."""

    keys: Mapping[Rotation, Tensor]
    values: Tensor
    positions: Tensor


def refusals(run: Run) -> list[str]:
    """Why the caches of `run` cannot be edited; [] means they can."""
    reasons = []
    for method in run.stack.methods:
        seams = set(method.spec.seams)
        if "keep" in seams:
            reasons.append(f"{method.spec.name} evicts tokens, and what is gone cannot be moved")
        elif "format" in seams:
            reasons.append(f"{method.spec.name} codes keys, and coding them again would add up its rounding")
        elif seams & {"select", "observe", "blocks"}:
            reasons.append(f"{method.spec.name} keeps notes on the tokens it has seen, which an edit would belie")
        elif "position" in seams and any(layout.forget for layout in run.plans["full"].key_layouts.values()):
            reasons.append(f"{method.spec.name} holds the near keys of the last tokens alone, not those of the edit")
    if "sliding" in run.plans:
        reasons.append(f"{run.facts.model_type} has sliding-window layers, which hold only the last tokens")
    if run.facts.rope_type in _OFTEN:
        reasons.append(f"{run.facts.model_type} changes its rotary frequencies with the length")
    return reasons


def span(old: Tensor, new: Tensor) -> tuple[int, int, int]:
    """Where token ids old [n] and new [m] differ: (start, end in `old`, end in `new`), as short as one span can be."""
    short = min(len(old), len(new))
    same = old[:short] == new[:short]
    start = short if bool(same.all()) else int((~same).nonzero()[0])
    tail = (old[len(old) - short + start :] == new[len(new) - short + start :]).flip(0)
    end = len(tail) if bool(tail.all()) else int((~tail).nonzero()[0])
    return start, len(old) - end, len(new) - end


def replace(session: Session, ids: Tensor, start: int, stop: int, new: Tensor) -> Repair:
    """Replace tokens [start, stop) of the ids [n] that `session` has read by `new` [m], and repair its cache.

    The session goes on as one that has read ids[:start] + new + ids[stop:]. Raises SessionError when it has read
    something else than one text of n tokens, or under a stack whose caches cannot be edited; BadInput when nothing is
    left or the span is outside of the text. After an error half way, the session is unusable.
    """
    run, count = session.run, len(ids)
    if reasons := refusals(run):
        raise SessionError(f"a reading under '{run.stack}' cannot be edited: {'; '.join(reasons)}")
    session.check_active()
    session.check_whole()
    if session.pads != [0] or session.get_seq_length() != count:
        rows, seen = len(session.pads or []), session.get_seq_length()
        raise SessionError(
            f"this cache holds {rows} texts of {seen:,} tokens, not one of {count:,}: read it to its end"
        )
    if not 0 <= start <= stop <= count or count - (stop - start) + len(new) == 0:
        raise BadInput(f"tokens {start} to {stop} of {count:,} cannot be replaced by {len(new)}")
    turn, decoded = session.turn, session.last_was_decode
    tails = []
    for slot in session.layers:
        kv = slot.rows[0]
        tails.append(_cut(kv, stop))
        evicted = kv.evicted
        kv.keep(torch.arange(start))
        kv.evicted = evicted
        slot.seen = start
    session.end = start
    for _ in run.feed(torch.cat([ids[:start], new])[None], session):
        pass
    move = start + len(new) - stop
    for slot, tail in zip(session.layers, tails, strict=True):
        _append(slot.rows[0], tail, move, slot.plan.rope)
        slot.seen += count - stop
        run.account([slot])
    session.end = session.get_seq_length()
    session.turn, session.last_was_decode = turn, decoded
    return Repair(stop - start, len(new), (count - stop) if move else 0)


def _cut(kv: KV, stop: int) -> _Tail:
    keys = {rotation: lane.read(stop, kv.n).clone() for rotation, lane in kv.keys.items()}
    return _Tail(keys, kv.values.read(stop, kv.n).clone(), kv.positions[stop:].clone())


def _append(kv: KV, tail: _Tail, move: int, rope: Rope) -> None:
    """Add the tail, its keys turned from where they stood to where they stand now."""
    positions = tail.positions + move
    plain = rope.with_frequencies(rope.inv_freq, 1.0)  # a factor on cos and sin is in the keys already
    keys = dict(tail.keys)
    for rotation, k in keys.items():
        turn = rotation.of(positions) - rotation.of(tail.positions)
        keys[rotation] = plain.rotate(k, turn) if bool(turn.any()) else k
    kv.append(keys, tail.values, positions)
    kv.settle()
