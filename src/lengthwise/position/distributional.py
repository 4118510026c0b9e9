"""Per dimension, the scaling that disturbs the distribution of rotary angles least (arXiv 2410.01490)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Spec, param
from lengthwise.position._scaling import Scaled, frequencies


@dataclass(frozen=True)
class Distributional(Scaled):
    """Chooses for every frequency whether it stays or is divided by `factor`, by the angles that a model has seen.

    The angles n*theta_i mod 2 pi of all positions n < L make a histogram over `bins` equal parts of the circle. Read at
    s*L positions, a frequency gives another histogram if it stays, and yet another if it is divided by s. The choice
    whose histogram is nearer to that of training (Kullback-Leibler divergence) is taken. No model is needed for it.
    """

    bins: int = param(360, "parts of the circle in which angles are counted")

    spec: ClassVar[Spec] = Spec(
        name="distributional",
        family="position",
        summary="per dimension, interpolate or leave: whichever disturbs the distribution of rotary angles less",
        formula="theta_i' = theta_i if D(P(L, theta_i) || P(sL, theta_i)) <= D(P(L, theta_i) || P(sL, theta_i/s)) "
        "else theta_i/s; P(l, theta): histogram of n*theta mod 2 pi over the positions n < l",
        seams=("position",),
        papers=(209,),
        source="arXiv 2410.01490, section 3; bins, smoothing and divergence of the released code (DPRoPE)",
        exact_when="factor=1",
        refuses="models that already scale their rotary frequencies",
        simplified="angles are counted in float64 where the released code uses float32; "
        "no fine-tuning, which the paper adds",
        neutral={"factor": 1.0},
        test="tests/oracle/test_position_distributional.py",
    )

    def validate(self) -> None:
        """A factor of at least 1, and a circle that has parts."""
        super().validate()
        self.require(2 <= self.bins <= 1 << 16, "bins must be between 2 and 65,536")

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """Frequencies as they are or divided by the factor."""
        stays, divided = disturbance(facts.rope_theta, facts.rotary_dim, facts.window, self.factor, self.bins)
        divide = torch.tensor([b < a for a, b in zip(stays, divided, strict=True)], device=inv_freq.device)
        return torch.where(divide, inv_freq / self.factor, inv_freq), 1.0


@functools.lru_cache(maxsize=16)
def disturbance(
    base: float, dim: int, window: int, factor: float, bins: int = 360
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How far every frequency's angles at `factor` times the window are from those of training: [dim / 2] nats, twice.

    First if the frequency stays, then if it is divided by the factor. `base`, `dim` and `window` are the model's
    rotary base, rotary dimensions and trained window in tokens.
    """
    stays, divided = [], []
    for theta in frequencies(base, dim).tolist():
        trained = _histogram(theta, window, bins)
        stays.append(_divergence(trained, _histogram(theta, int(window * factor), bins)))
        divided.append(_divergence(trained, _histogram(theta / factor, int(window * factor), bins)))
    return tuple(stays), tuple(divided)


def _histogram(theta: float, length: int, bins: int) -> Tensor:
    """Shares [bins] of the angles of positions 0..length-1; empty parts get a trace, as published."""
    turns = torch.arange(length, dtype=torch.float64) * (theta / (2 * torch.pi))
    counts = torch.bincount(((turns % 1) * bins).long().clamp(max=bins - 1), minlength=bins)
    return (counts + torch.finfo(torch.float16).tiny) / length


def _divergence(p: Tensor, q: Tensor) -> float:
    """Sum of p ln(p/q)."""
    return float((p * (p / q).log()).sum())
