"""`--stack auto`: the documented rule by which a stack is chosen, and why."""

from __future__ import annotations

from lengthwise.core.facts import ModelFacts
from lengthwise.core.ledger import si


def choose(facts: ModelFacts, tokens: int, memory: int) -> tuple[str, str]:
    """(stack, reason) for an input of `tokens` in all, answer included, and `memory` bytes for keys and values.

    1. It fits the trained window and memory: dense.
    2. It fits the window, not memory: int8; and when that does not fit either, int8 + offload.
    3. It is longer than the window: xl3m, which reads any length in segments and needs memory for a few of them.
    """
    need = tokens * facts.kv_bytes_per_token * len(facts.layer_kinds)
    if tokens > facts.window:
        times = tokens / facts.window
        return "xl3m", (
            f"{tokens:,} tokens are {times:.1f} times the model's window of {facts.window:,}: "
            "segments are read with the question, and the most relevant ones together"
        )
    fits = f"{tokens:,} tokens fit the model's window of {facts.window:,}"
    if need <= memory:
        return "dense", f"{fits}, and their {si(need)}B of keys and values fit memory"
    if need * 0.6 <= memory:
        return "int8", f"{fits}; their {si(need)}B of keys and values fit memory ({si(memory)}B) only in 8 bits"
    return "int8 + offload", f"{fits}; their {si(need)}B of keys and values do not fit memory ({si(memory)}B)"
