"""Truncated basis: no rotation too slow to turn within the window (Pal et al. 2023, arXiv 2308.10882)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Spec, param
from lengthwise.position._scaling import Rescaled


@dataclass(frozen=True)
class Truncated(Rescaled):
    """Frequencies that turn at least once in `length` tokens stay; slower ones share one small value, or stand still.

    A model has seen every angle of a frequency that turns in its window, and no other, so only those can be trusted
    beyond it. The two edges and the value between them, as released: b = 2 pi / length, a = b / 8, rho = b / 16.
    """

    length: int | None = param(None, "tokens in which a frequency must turn once to stay; none: the trained window")

    spec: ClassVar[Spec] = Spec(
        name="truncated",
        family="position",
        summary="truncated basis: only frequencies that turn within the window, the others fixed or at zero",
        formula="theta_i' = theta_i if theta_i >= b, rho if a <= theta_i < b, 0 if theta_i < a; "
        "b = 2 pi / length, a = b / 8, rho = b / 16",
        seams=("position",),
        papers=(178,),
        source="Giraffe, arXiv 2308.10882 (truncated basis); edges of the released code",
        exact_when="every frequency turns within the length",
        refuses="models that already scale their rotary frequencies",
        simplified="no fine-tuning, which the paper adds and which the method needs: distances get lost without it",
        neutral={"length": 1 << 40},
        test="tests/oracle/test_position_giraffe.py",
    )

    def validate(self) -> None:
        """A length of at least 1."""
        self.require(self.length is None or self.length >= 1, "length must be at least 1")

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """Frequencies kept, fixed, or zero."""
        b = 2 * math.pi / (self.length or facts.window)
        slow = torch.where(inv_freq < b / 8, torch.zeros_like(inv_freq), torch.full_like(inv_freq, b / 16))
        return torch.where(inv_freq < b, slow, inv_freq), 1.0
