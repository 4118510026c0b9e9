"""ReRoPE: distances beyond a window are clipped to it (Su 2023, kexue.fm 9708)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import UNROTATED, Frame, at
from lengthwise.core.seams import Positions
from lengthwise.core.spec import Method, Spec, param
from lengthwise.position._scaling import logn


@dataclass(frozen=True)
class Rerope(Positions):
    """Every key stays visible; beyond `window` all keys stand at the same distance."""

    window: int = param(512, "distances below this are exact; larger ones count as this")
    logn: bool = param(False, "multiply queries beyond the trained window by ln(m+1)/ln(L)")

    spec: ClassVar[Spec] = Spec(
        name="rerope",
        family="position",
        summary="all keys visible, distances clipped at a window",
        formula="rel(m,n) = min(m-n, w); with logn: q_m *= max(1, ln(m+1)/ln L)",
        seams=("position",),
        source="kexue.fm/archives/9708; window of the released code",
        exact_when="the input is no longer than the window parameter",
        refuses="a window parameter beyond the trained window",
        neutral={"window": 1 << 20},
        test="tests/oracle/test_position.py",
    )

    def validate(self) -> None:
        """A window of at least 1."""
        self.require(self.window >= 1, "window must be at least 1")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """No untrained distances, unless nothing is ever clipped."""
        if model is not None and model.window < self.window < 1 << 20:
            return [f"window={self.window} asks for distances beyond the trained window of {model.window}"]
        return []

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """Near: as it is. Far: query at the window, key at 0."""
        return Frame(high=self.window), Frame(low=self.window, query=at(self.window), key=UNROTATED)

    def query_factor(self, facts: ModelFacts, positions: Tensor, layer: int) -> Tensor | None:
        """The log-n factor [C], if asked for."""
        return logn(facts, positions) if self.logn else None
