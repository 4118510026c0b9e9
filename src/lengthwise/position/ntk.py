"""NTK-aware interpolation: a larger base instead of squeezed positions (bloc97 2023; in YaRN, arXiv 2309.00071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Spec
from lengthwise.position._scaling import Scaled, frequencies


@dataclass(frozen=True)
class Ntk(Scaled):
    """Leaves the fastest frequency as it is and divides the slowest by `factor`, in a geometric series."""

    spec: ClassVar[Spec] = Spec(
        name="ntk",
        family="position",
        summary="NTK-aware interpolation: a larger rotary base, fixed",
        formula="b' = b * s^(d/(d-2)), theta_i' = b'^(-2i/d)",
        seams=("position",),
        papers=(178,),
        source="arXiv 2309.00071, section 3.1; compared in Giraffe, arXiv 2308.10882",
        exact_when="factor=1",
        refuses="models that already scale their rotary frequencies",
        neutral={"factor": 1.0},
        test="tests/oracle/test_position.py",
    )

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """Frequencies of the larger base."""
        dim = facts.rotary_dim
        return frequencies(facts.rope_theta * self.factor ** (dim / (dim - 2)), dim), 1.0
