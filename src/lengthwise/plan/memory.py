"""What a stack holds at most, in memory and on disk, and how far its positions reach: from its layer plans alone.

The plans are those that a run would use, made on a model without weights, so nothing about a stack is said twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from lengthwise.core.arena import Disk, Lru
from lengthwise.core.attach import CHUNK
from lengthwise.core.facts import LayerKind, ModelFacts
from lengthwise.core.plan import LayerPlan
from lengthwise.core.seams import Blocks, Keeps, Look, Probe, Prompts, Selects
from lengthwise.core.session import BLOCK
from lengthwise.core.stack import Stack
from lengthwise.core.store import _SLACK, Layout

RUNTIME = 450_000_000  # the interpreter, torch and transformers, before any weight
NAIVE_ROWS = 256  # query rows whose float32 scores are alive at once where there is no fused kernel
ANSWER = 256  # tokens of the window that a prompt method leaves to the question and the answer
SIMULATED = 1 << 20  # tokens for which a prompt method's segments are counted one by one
DECODED = 14  # bytes alive for each number while integers are decoded: float32 thrice, and the codes


@dataclass(frozen=True)
class Held:
    """Bytes at the peak: `kv` on the model's device, `host` in RAM beside a GPU, `disk`; and the tokens that stay."""

    tokens: int
    kv: int
    host: int
    disk: int
    bits: float


def passes(stack: Stack, facts: ModelFacts, length: int) -> list[tuple[int, int]]:
    """The forward passes over a text of `length` tokens, as (tokens, times); the last one is what is answered from.

    One of the whole text, unless the stack has a prompt method: that reads segments first, and then what it chose.
    """
    method = next((m for m in stack.methods if isinstance(m, Prompts)), None)
    if method is None:
        return [(length, 1)]
    limit = max(1, facts.window - ANSWER) if facts.window else length
    if (known := method.passes(length, limit)) is not None:
        return known
    counted = min(length, SIMULATED)
    sizes = Counter(b - a for a, b in method.segments(counted, limit))
    choice = method.choose(counted, limit, cast(Look, lambda a, b: Probe(torch.zeros(1), torch.zeros(1))))
    times = length / counted
    read = [(size, math.ceil(count * times)) for size, count in sorted(sizes.items())]
    return [*read, (sum(b - a for a, b in choice.spans), 1)]


def held(stack: Stack, plans: Mapping[LayerKind, LayerPlan], facts: ModelFacts, length: int) -> Held:
    """What the stack holds after `length` tokens of one sequence, as allocated."""
    tokens = stack.tokens_held(length, facts)
    block = _block(stack, facts)
    kv = host = disk = 0
    bits = 8.0 * facts.dtype_bytes
    for kind, plan in plans.items():
        layers = sum(k == kind for k in facts.layer_kinds)
        if kind == "sliding":
            window = facts.sliding_window or length
            room = int(1.5 * (2 * window + block))
            kv += layers * facts.kv_bytes_per_token * min(length, room)
            continue
        for layout in [*plan.key_layouts.values(), plan.layout]:
            near, ram, far = _lane(layout, facts, tokens, block)
            kv += layers * near
            host += layers * ram
            disk += layers * far
        if plan.layout.cold:
            bits = 8 * _coded(plan.layout, facts) / (facts.kv_heads * facts.head_dim)
    if facts.device == "cpu":
        kv, host = kv + host, 0
    return Held(tokens=tokens, kv=kv, host=host, disk=disk, bits=bits)


def keys_seen(stack: Stack, facts: ModelFacts, length: int) -> tuple[int, bool]:
    """(keys that a query sees at most, whether that is known): methods that select may see fewer than they hold."""
    seen = stack.tokens_held(length, facts)
    known = True
    for method in stack.methods:
        if not isinstance(method, Selects | Blocks):
            continue
        said = method.tokens_seen(length, facts)
        known = known and (said is not None or method.spec.bounded)
        seen = seen if said is None else min(seen, said)
    return seen, known


def workspace(stack: Stack, plan: LayerPlan, config: Any, facts: ModelFacts, length: int) -> int:
    """Bytes alive beside weights and cache while a chunk goes through: an estimate, meant to be a little high."""
    config = config.get_text_config(decoder=True)
    wide, block = facts.dtype_bytes, min(_block(stack, facts), length)
    columns = min(_columns(stack, facts), length)
    query, key = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    intermediate = int(getattr(config, "intermediate_size", None) or 4 * facts.hidden)
    between = columns * wide * (6 * facts.hidden + max(3 * intermediate, 2 * query + 2 * key))
    partials = len(plan.frames) * block * query * (8 + 4 * wide)
    groups = max(1, facts.heads // facts.kv_heads)
    masks = block * min(2 * block, length) * (11 + groups * (1 + wide)) * len(plan.frames)
    seen, known = keys_seen(stack, facts, length)
    if not known:
        seen = min(seen, (plan.layout.hot or 0) + 4 * BLOCK)
    read = 0
    if plan.layout.cold:
        read = seen * key * (2 * wide + (DECODED if plan.layout.codec is not None else wide))
    if plan.rotates_on_read:
        read += seen * key * (12 + wide)
    scores = 16 * facts.heads * block * min(seen, length) if plan.observes else 0
    if facts.device != "cpu" or getattr(config, "attn_logit_softcapping", None):
        scores += 3 * 4 * facts.heads * min(NAIVE_ROWS, length) * seen
    return int(between + partials + masks + read + scores + 4 * config.vocab_size)


def reaches(plan: LayerPlan, stack: Stack, facts: ModelFacts, length: int) -> int:
    """The longest input, `length` at most, in which no distance is larger than the trained ones."""
    if not facts.window or not facts.rotary_dim or _stretch(plan, stack, facts, length) <= facts.window:
        return length
    good, bad = 1, length
    while bad - good > 1:
        middle = (good + bad) // 2
        if _stretch(plan, stack, facts, middle) <= facts.window:
            good = middle
        else:
            bad = middle
    return good


def _stretch(plan: LayerPlan, stack: Stack, facts: ModelFacts, length: int) -> float:
    """The largest distance, plus one, that the last query of `length` tokens sees, in units of trained distances."""
    if plan.in_cache:
        length = min(length, stack.tokens_held(length, facts))
    last, farthest = length - 1, 0
    for frame in plan.frames:
        if frame.low <= last:
            key = max(0, last - frame.high + 1)
            farthest = max(
                farthest, int(frame.query(torch.tensor([last]))[0]) - int(frame.key.of(torch.tensor([key]))[0])
            )
    factor = 1.0
    if plan.position is not None and facts.rope_theta:
        exponents = torch.arange(0, facts.rotary_dim, 2, dtype=torch.float32) / facts.rotary_dim
        plain = facts.rope_theta**-exponents
        changed = plan.position.frequencies(facts, plain, length)
        factor = float(plain[-1] / changed[0][-1]) if changed is not None else 1.0
    return (farthest + (len(plan.frames) == 1)) / factor - 0.5  # half a token of rounding


def _columns(stack: Stack, facts: ModelFacts) -> int:
    """Tokens of one forward pass, as `Run.feed` cuts them."""
    bounds = [m.tokens_held(1 << 40, facts) // 4 for m in stack.methods if isinstance(m, Keeps)]
    return max(1, min([CHUNK, *bounds]))


def _block(stack: Stack, facts: ModelFacts) -> int:
    """Tokens that are added and scored at once, as `Run.block` and `Run.feed` cut them."""
    return min([BLOCK, _columns(stack, facts), *(m.queries_at_once() or BLOCK for m in stack.methods)])


def _coded(layout: Layout, facts: ModelFacts) -> int:
    """Bytes of one token of one lane in its cold form."""
    if layout.codec is None:
        return facts.kv_heads * facts.head_dim * facts.dtype_bytes
    parts = layout.codec.encode(torch.zeros(1, facts.kv_heads, facts.head_dim))
    return sum(p.numel() * p.element_size() for p in parts)


def _lane(layout: Layout, facts: ModelFacts, tokens: int, block: int) -> tuple[int, int, int]:
    """Bytes of one lane of one layer: (on the device, in RAM behind it, on disk)."""
    plain = facts.kv_heads * facts.head_dim * facts.dtype_bytes
    if layout.hot is None:
        return tokens * plain, 0, 0
    near = min(tokens, _room(layout.hot + _SLACK + block, block, facts)) * plain
    cold = max(0, tokens - layout.hot)
    if layout.forget or not cold:
        return near, 0, 0
    coded = _coded(layout, facts)
    if layout.arena is None:  # coded only: it stays on the device
        return near + _room(cold, block, facts) * coded, 0, 0
    arena = layout.arena()
    pages = min(cold, arena.page * arena.pages) * coded if isinstance(arena, Lru) else 0
    inner = arena.inner if isinstance(arena, Lru) else arena
    if isinstance(inner, Disk):
        return near, pages, cold * coded
    return near, cold * coded + pages, 0


def _room(tokens: int, block: int, facts: ModelFacts) -> int:
    """Tokens for which there is room after a tensor grew to `tokens`, a block at a time: it never moves on a CPU."""
    if facts.device == "cpu":
        return tokens
    if tokens > block << 16:
        return int(1.5 * tokens)
    room = 0
    for end in range(block, tokens + block, block):
        if min(end, tokens) > room:
            room = max(min(end, tokens), int(1.5 * room))
    return room
