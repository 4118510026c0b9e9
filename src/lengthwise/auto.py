"""`--stack auto`: the rules by which a stack is chosen, and why. docs/which.md has the figures behind them."""

from __future__ import annotations

import math
from typing import Literal

from lengthwise.core.facts import ModelFacts
from lengthwise.core.grammar import parse
from lengthwise.core.ledger import si
from lengthwise.core.stack import refusals

Need = Literal["facts", "whole"]
STRETCH = 16  # windows up to which stretched positions were measured to hold
EIGHT_BITS = 0.6  # bytes of keys and values in 8 bits, with their scales and the uncoded rest, of those in 16


def choose(facts: ModelFacts, tokens: int, memory: int, need: Need = "facts") -> tuple[str, str]:
    """(stack, reason) for an input of `tokens` in all, answer included, and `memory` bytes for keys and values.

    `need`: "facts" are few passages of the text; "whole" is its order, or more of it than fits the window at once. The
    first rule that fits, and that the model does not refuse, decides:

    1. It fits the trained window and memory: dense.
    2. It fits the window, not memory: int8; and when that does not fit either, int8 + offload.
    3. Longer, and facts are asked for: xl3m, at any length, for one question or several.
    4. Longer, the whole is needed, 16 windows at most: yarn with block-sparse attention; yarn + int8 when memory takes
       only that. A model that scales its rotary positions itself: self-extend in the place of yarn.
    5. Longer still, or not enough memory for that: lm-infinite, which reads on and sees half a window at a time.
    """
    size = tokens * facts.kv_bytes_per_token * len(facts.layer_kinds)
    if tokens <= facts.window or not facts.window:
        return _within(facts, tokens, size, memory)
    times = tokens / facts.window
    long = f"{tokens:,} tokens are {times:.1f} times the model's window of {facts.window:,}"
    if need == "facts":
        return "xl3m", f"{long}: segments are read with the question, and the most relevant ones together"
    if times <= STRETCH:
        factor, (group, window) = float(math.ceil(times)), grouping(facts, tokens)
        yarn, grouped = f"yarn:factor={factor}", f"self-extend:group={group},window={window}"
        whole = f"{long}, and the whole is needed"
        if size <= memory:
            for stack in (f"{yarn} + block-sparse", yarn, grouped):
                if _runs(stack, facts):
                    return stack, f"{whole}: positions are stretched over it, and everything is kept"
        if size * EIGHT_BITS <= memory:
            for stack in (f"{yarn} + int8", f"{grouped} + int8"):
                if _runs(stack, facts):
                    return stack, f"{whole}: positions are stretched over it, and everything is kept, in 8 bits"
    near = f"lm-infinite:sinks=10,window={max(1, facts.window // 2)}"
    reason = "nothing keeps so much of it here" if times > STRETCH else "memory does not take all of it"
    if _runs(near, facts):
        return near, f"{long}, and {reason}: it is read to its end, but the model sees half a window at a time"
    return "xl3m", f"{long}, and {facts.model_type} takes no method that reads them in one: only facts can be found"


def grouping(facts: ModelFacts, tokens: int) -> tuple[int, int]:
    """(group, window) of self-extend that reach `tokens`: half a window is exact, the group is a power of two."""
    window = 1 << max(1, facts.window.bit_length() - 2)
    group = 2
    while (facts.window - window) * group + window < tokens:
        group *= 2
    return group, window


def _within(facts: ModelFacts, tokens: int, size: int, memory: int) -> tuple[str, str]:
    window = f"the model's window of {facts.window:,}" if facts.window else "a model that names no window"
    fits = f"{tokens:,} tokens fit {window}"
    if size <= memory:
        return "dense", f"{fits}, and their {si(size)}B of keys and values fit memory"
    if size * EIGHT_BITS <= memory:
        return "int8", f"{fits}; their {si(size)}B of keys and values fit memory ({si(memory)}B) only in 8 bits"
    return "int8 + offload", f"{fits}; their {si(size)}B of keys and values do not fit memory ({si(memory)}B)"


def _runs(stack: str, facts: ModelFacts) -> bool:
    return not refusals(parse(stack), facts)
