"""Power basis: slow frequencies are slowed down more than fast ones (Pal et al. 2023, arXiv 2308.10882)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Spec, param
from lengthwise.position._scaling import Rescaled


@dataclass(frozen=True)
class Power(Rescaled):
    """Every frequency is multiplied by a power that falls from 1 for the fastest to (2/d)^k for the slowest."""

    power: float = param(0.5, "how strongly slow frequencies are slowed down; 0: not at all")

    spec: ClassVar[Spec] = Spec(
        name="power",
        family="position",
        summary="power basis: slow frequencies slowed down, fast ones left",
        formula="theta_i' = theta_i * (1 - 2i/d)^k",
        seams=("position",),
        papers=(178,),
        source="Giraffe, arXiv 2308.10882 (power basis); formula and power 0.5 of the released code and its results",
        exact_when="power=0",
        refuses="models that already scale their rotary frequencies",
        simplified="no fine-tuning, which the paper adds",
        neutral={"power": 0.0},
        test="tests/oracle/test_position_giraffe.py",
    )

    def validate(self) -> None:
        """Nothing is sped up."""
        self.require(self.power >= 0, "power must be at least 0")

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """Frequencies times (1 - 2i/d)^k."""
        count = len(inv_freq)
        left = 1 - torch.arange(count, dtype=torch.float32, device=inv_freq.device) / count
        return inv_freq * left**self.power, 1.0
