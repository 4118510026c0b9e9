"""Dual chunk attention: distances within, between neighbouring and between distant chunks (arXiv 2402.17463)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import FAR, Frame, Rotation
from lengthwise.core.seams import Positions
from lengthwise.core.spec import Method, Spec, param
from lengthwise.position._cuts import one_block_each

PLAIN = 1 << 20  # a window from which on nothing is remapped in practice: the neutral setting


@dataclass(frozen=True)
class DualChunk(Positions):
    """Positions start anew in every chunk of c = window - local tokens, so no distance goes beyond `window`.

    A key stands at n mod c. A query stands at m mod c for keys of its own chunk; at m mod c + c, `window` at most, for
    those of the chunk before, so that the nearest distances stay exact across the border; and at min(2c - 1, window)
    for all earlier ones. Defaults are those of the Qwen2.5-1M models, whose logits also grow with the length, as
    YaRN's do (`sharpen`). The released code of dual chunk attention has window = 3/4 L, local = L/8, sharpen=false.
    """

    window: int | None = param(None, "largest distance that a query sees, in tokens; none: the trained window")
    local: int | None = param(None, "tokens across a border whose distances stay exact; none: 1/32 of the window")
    sharpen: bool = param(True, "multiply the logits of queries beyond the trained window by (0.1 ln((m+1)/L) + 1)^2")

    spec: ClassVar[Spec] = Spec(
        name="dual-chunk",
        family="position",
        summary="positions anew in every chunk: exact within and across a border, all distances in the window",
        formula="c = w - local; rel(m,n) = q - n mod c, q = m mod c (same chunk), min(m mod c + c, w) (next chunk), "
        "min(2c-1, w) (later chunks); with sharpen: q_m *= max(1, 0.1 ln((m+1)/L) + 1)^2",
        seams=("position",),
        papers=(177,),
        source="dual chunk attention, arXiv 2402.17463, section 3, and its released code; as used, with the scaling of "
        "logits, by Qwen2.5-1M, arXiv 2501.15383, section 4.1; window and local of its released configuration",
        exact_when="the input is no longer than the window parameter",
        refuses="a window beyond the trained one; methods that score whole forward passes",
        simplified="logits are scaled by the position of each query, where the published prefill scales all of a "
        "prompt by its length: so chunks of a prefill change nothing; the sparse attention of Qwen2.5-1M is left out",
        neutral={"window": PLAIN},
        test="tests/oracle/test_position_dual_chunk.py",
    )

    def validate(self) -> None:
        """A chunk is at least as long as what stays exact across its border."""
        self.require(self.window is None or self.window >= 2, "window must be at least 2")
        self.require(self.local is None or self.local >= 0, "local must be at least 0")
        if self.window is not None and self.local is not None:
            self.require(2 * self.local <= self.window, "local must be at most half the window")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """No untrained distances; no method that must see whole passes."""
        reasons = one_block_each(self, others)
        if model is not None and self.window is not None and model.window < self.window < PLAIN:
            reasons.append(f"window={self.window} asks for distances beyond the trained window of {model.window}")
        if model is not None and self.window is None and 2 * (self.local or 0) > model.window:
            reasons.append(f"local={self.local} is more than half the trained window of {model.window}")
        return reasons

    def sizes(self, facts: ModelFacts) -> tuple[int, int]:
        """(window, chunk) in tokens."""
        window = self.window or facts.window
        return window, window - (window // 32 if self.local is None else self.local)

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """The own chunk, the chunk before, and all earlier ones."""
        window, chunk = self.sizes(facts)
        key = Rotation(wrap=chunk)

        def within(positions: Tensor) -> Tensor:
            return positions % chunk

        def across(positions: Tensor) -> Tensor:
            return (positions % chunk + chunk).clamp(max=window)

        def beyond(positions: Tensor) -> Tensor:
            return positions * 0 + min(2 * chunk - 1, window)

        return (
            Frame(query=within, key=key, chunk=chunk, back=(0, 1)),
            Frame(query=across, key=key, chunk=chunk, back=(1, 2)),
            Frame(query=beyond, key=key, chunk=chunk, back=(2, FAR)),
        )

    def query_factor(self, facts: ModelFacts, positions: Tensor, layer: int) -> Tensor | None:
        """YaRN's factor at the length that a query has read, on queries and keys at once: [C]."""
        if not self.sharpen:
            return None
        return (0.1 * ((positions + 1) / facts.window).log() + 1).clamp(min=1.0) ** 2

    def cuts(self, facts: ModelFacts, start: int, stop: int) -> Sequence[int]:
        """The borders of chunks."""
        chunk = self.sizes(facts)[1]
        return range((start // chunk + 1) * chunk, stop, chunk)
