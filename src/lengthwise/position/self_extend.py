"""Self-Extend: grouped positions beyond a neighbour window (Jin et al. 2024, arXiv 2401.01325)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import PLAIN, Frame, Rotation
from lengthwise.core.seams import Positions
from lengthwise.core.spec import Method, Spec, param


@dataclass(frozen=True)
class SelfExtend(Positions):
    """Near keys stand where they stand; far keys share positions in groups, so no distance exceeds the trained ones.

    Reaches (L - window) * group + window tokens on a model trained at L.
    """

    group: int = param(8, "tokens that share a far position")
    window: int = param(1024, "distances below this are exact")

    spec: ClassVar[Spec] = Spec(
        name="self-extend",
        family="position",
        summary="exact positions nearby, grouped (floor) positions far away",
        formula="rel(m,n) = m-n if m-n < w else floor(m/G) - floor(n/G) + w - floor(w/G)",
        seams=("position",),
        source="arXiv 2401.01325; defaults of the released function",
        exact_when="the input is no longer than the window parameter, or group=1",
        refuses="a window parameter that leaves no room within the trained window",
        neutral={"group": 1},
        test="tests/oracle/test_position.py",
    )

    def validate(self) -> None:
        """Positive sizes; the group divides the window, so that the frames meet."""
        self.require(self.group >= 1 and self.window >= 1, "group and window must be at least 1")
        self.require(self.window % self.group == 0, "the group must divide the window, so that near and far meet")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The neighbour window must be smaller than the trained one."""
        if model is not None and self.group > 1 and self.window >= model.window:
            return [f"window={self.window} leaves no far positions in the trained window of {model.window}"]
        return []

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """Near: as it is. Far: both sides grouped, the query shifted so that the frames meet at the window."""
        if self.group == 1:
            return PLAIN
        return Frame(high=self.window), Frame(low=self.window, query=self._far, key=Rotation(self.group))

    def _far(self, positions: Tensor) -> Tensor:
        return positions // self.group + self.window - self.window // self.group
