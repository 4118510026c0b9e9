"""The common currency: what a run read, scored, held and took, per layer and in all."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1


@dataclass
class LayerReceipt:
    """What happened in one layer. `pairs` are query-key pairs scored, `dense_pairs` what plain attention scores.

    Bytes are of keys and values: read by attention, held in memory and on disk now, and the most ever held in memory.
    """

    layer: int
    kind: str
    queries: int = 0
    pairs: int = 0
    dense_pairs: int = 0
    bytes_read: int = 0
    held_tokens: int = 0
    held_bytes: int = 0
    disk_bytes: int = 0
    peak_bytes: int = 0
    evicted_tokens: int = 0


@dataclass
class Ledger:
    """Totals over a run. Seconds are wall clock; `cpu_seconds` counts all threads; `peak_rss` is the process's."""

    stack: str = "dense"
    model: str = ""
    tokens_read: int = 0
    tokens_written: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    cpu_seconds: float = 0.0
    whole: tuple[int, int] | None = None  # (tokens, heads) of an input of which only parts were read
    layers: list[LayerReceipt] = field(default_factory=list)
    consulted: Counter[str] = field(default_factory=Counter)
    acted: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """Query-key pairs scored, all layers."""
        return sum(layer.pairs for layer in self.layers)

    @property
    def dense_pairs(self) -> int:
        """Query-key pairs that plain causal attention would have scored on the same input."""
        if self.whole is not None:
            tokens, heads = self.whole
            return len(self.layers) * heads * (tokens * (tokens + 1) // 2)
        return sum(layer.dense_pairs for layer in self.layers)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values in memory now."""
        return sum(layer.held_bytes for layer in self.layers)

    @property
    def peak_kv_bytes(self) -> int:
        """The most bytes of keys and values held in memory at once (sum of the layers' own peaks)."""
        return sum(layer.peak_bytes for layer in self.layers)

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Add the wall and CPU seconds of the block to `phase` ('prefill' or 'decode')."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            name = f"{phase}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - wall)
            self.cpu_seconds += time.process_time() - cpu

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form; `version` changes when a field changes its meaning."""
        return {
            "version": VERSION,
            "stack": self.stack,
            "model": self.model,
            "tokens_read": self.tokens_read,
            "tokens_written": self.tokens_written,
            "prefill_seconds": round(self.prefill_seconds, 3),
            "decode_seconds": round(self.decode_seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "pairs": self.pairs,
            "dense_pairs": self.dense_pairs,
            "kv_bytes": self.kv_bytes,
            "peak_kv_bytes": self.peak_kv_bytes,
            "disk_bytes": sum(layer.disk_bytes for layer in self.layers),
            "bytes_read": sum(layer.bytes_read for layer in self.layers),
            "evicted_tokens": max((layer.evicted_tokens for layer in self.layers), default=0),
            "peak_rss": peak_rss(),
            "consulted": dict(self.consulted),
            "acted": dict(self.acted),
            "notes": list(self.notes),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def lines(self) -> list[str]:
        """For people: one fact a line."""
        share = f" ({self.pairs / self.dense_pairs:.1%} of dense)" if self.dense_pairs else ""
        disk = sum(layer.disk_bytes for layer in self.layers)
        out = [
            f"read {self.tokens_read:,} tokens in {self.prefill_seconds:.1f} s, "
            f"wrote {self.tokens_written:,} in {self.decode_seconds:.1f} s; {self.cpu_seconds:.1f} CPU-s",
            f"query-key pairs scored: {si(self.pairs)}{share}",
            f"KV cache: {si(self.peak_kv_bytes)}B at most in memory, {si(self.kv_bytes)}B at the end"
            + (f", {si(disk)}B on disk" if disk else "")
            + f"; process peak {si(peak_rss())}B",
        ]
        acted = ", ".join(f"{name} ({self.acted[name]:,})" for name in self.consulted)
        return [*out, *([f"acted: {acted}"] if acted else []), *self.notes]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def peak_rss() -> int:
    """The process's peak resident memory in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def si(number: float) -> str:
    """A number with a binary-free SI suffix: 1,234 -> '1.23 k'."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {suffix}"
    return f"{number:.3g} "
