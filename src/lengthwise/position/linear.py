"""Linear position interpolation (Chen et al. 2023, arXiv 2306.15595)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Spec
from lengthwise.position._scaling import Scaled


@dataclass(frozen=True)
class Linear(Scaled):
    """Squeezes all positions by `factor`, so that factor x window tokens span the trained distances."""

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

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """All frequencies divided by the factor."""
        return inv_freq / self.factor, 1.0
