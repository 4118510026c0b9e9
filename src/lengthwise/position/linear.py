"""Linear position interpolation (Chen et al. 2023, arXiv 2306.15595)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Positions
from lengthwise.core.spec import Method, Spec, param
from lengthwise.position._scaling import refuse_scaled


@dataclass(frozen=True)
class Linear(Positions):
    """Squeezes all positions by `factor`, so that factor x window tokens span the trained distances."""

    factor: float = param(4.0, "how many windows long the input is")

    spec: ClassVar[Spec] = Spec(
        name="linear",
        family="position",
        summary="linear interpolation: every position divided by the factor",
        formula="theta_i' = theta_i / s",
        seams=("position",),
        papers=(178,),
        source="arXiv 2306.15595; compared in Giraffe, arXiv 2308.10882",
        exact_when="factor=1",
        refuses="models that already scale their rotary frequencies",
        neutral={"factor": 1.0},
        test="tests/oracle/test_position.py",
    )

    def validate(self) -> None:
        """The factor stretches: at least 1."""
        self.require(self.factor >= 1, "factor must be at least 1")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Plain RoPE only."""
        return refuse_scaled(model)

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """All frequencies divided by the factor."""
        return inv_freq / self.factor, 1.0
