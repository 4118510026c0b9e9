"""YaRN: NTK-by-parts interpolation and attention temperature (Peng et al. 2023, arXiv 2309.00071)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Spec, param
from lengthwise.position._scaling import Scaled


@dataclass(frozen=True)
class Yarn(Scaled):
    """Fast frequencies stay, slow ones are divided by `factor`, those between are blended; logits are sharpened."""

    beta_fast: float = param(32.0, "dimensions that turn more often than this in the window stay as they are")
    beta_slow: float = param(1.0, "dimensions that turn less often than this in the window are fully interpolated")

    spec: ClassVar[Spec] = Spec(
        name="yarn",
        family="position",
        summary="frequencies interpolated by band, logits sharpened by 0.1 ln s + 1",
        formula="theta_i' = (1-r_i) theta_i + r_i theta_i/s, r_i = clamp((i-lo)/(hi-lo), 0, 1); q, k *= 0.1 ln s + 1; "
        "lo, hi = the dimensions that turn beta_fast, beta_slow times in the window",
        seams=("position",),
        papers=(178,),
        source="arXiv 2309.00071, equations 13-16, with the ramp over dimensions of the released code",
        exact_when="factor=1",
        refuses="models that already scale their rotary frequencies",
        simplified="no fine-tuning, which the paper adds",
        neutral={"factor": 1.0},
        test="tests/oracle/test_position.py",
    )

    def validate(self) -> None:
        """A factor of at least 1, and betas in order."""
        super().validate()
        self.require(self.beta_fast > self.beta_slow > 0, "beta_fast must be larger than beta_slow, both positive")

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """Frequencies blended by band, and the temperature on cos and sin."""
        dim = facts.rotary_dim

        def turning(times: float) -> float:
            return dim * math.log(facts.window / (times * 2 * math.pi)) / (2 * math.log(facts.rope_theta))

        low = max(math.floor(turning(self.beta_fast)), 0)
        high = min(math.ceil(turning(self.beta_slow)), dim - 1)
        ramp = (torch.arange(dim // 2, dtype=torch.float32, device=inv_freq.device) - low) / max(high - low, 0.001)
        ramp = ramp.clamp(0, 1)
        temperature = 0.1 * math.log(self.factor) + 1.0
        return inv_freq * (1 - ramp) + inv_freq / self.factor * ramp, temperature
