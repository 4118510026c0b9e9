"""What the methods that change rotary frequencies share: plain frequencies, their checks, and the log-n factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Positions
from lengthwise.core.spec import Method, param


@dataclass(frozen=True)
class Rescaled(Positions):
    """A method that changes the rotary frequencies of models with plain RoPE."""

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Frequencies can be scaled once: a model that already scales its own is refused."""
        if model is None or model.rope_type == "default":
            return []
        return [f"{model.model_type} already scales its rotary frequencies (rope_type '{model.rope_type}')"]


@dataclass(frozen=True)
class Scaled(Rescaled):
    """A method that stretches the trained window by a factor, on models with plain RoPE."""

    factor: float = param(4.0, "how many windows long the input is")

    def validate(self) -> None:
        """The factor stretches: at least 1."""
        self.require(self.factor >= 1, "factor must be at least 1")


def frequencies(base: float, dim: int) -> Tensor:
    """Plain RoPE inverse frequencies base^(-2i/dim), i = 0..dim/2-1, [dim / 2] float32."""
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def logn(facts: ModelFacts, positions: Tensor) -> Tensor:
    """The factor max(1, ln(m+1) / ln L) on queries at `positions` [C], which holds attention entropy at length: [C]."""
    return ((positions + 1).float().log() / math.log(facts.window)).clamp(min=1.0)
