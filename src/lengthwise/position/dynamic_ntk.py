"""Dynamic NTK: the base grows with the sequence (emozilla 2023; in YaRN, arXiv 2309.00071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Spec, param
from lengthwise.position._scaling import Scaled, frequencies


@dataclass(frozen=True)
class DynamicNtk(Scaled):
    """NTK-aware scaling whose factor follows the length, so inputs within the window are untouched.

    Keys are stored un-rotated and rotated for the present base as they are read, so all keys always share one base
    (caches of rotated keys mix bases). Every forward pass uses the base of its own end; `length` fixes it instead.
    """

    factor: float = param(1.0, "how much stronger than the length alone the base grows")
    length: int | None = param(None, "total tokens to scale for, if known; none: the tokens so far")

    spec: ClassVar[Spec] = Spec(
        name="dynamic-ntk",
        family="position",
        summary="NTK-aware interpolation that follows the length; exact within the window",
        formula="b' = b * (s*l/L - (s-1))^(d/(d-2)), l = max(length so far, L)",
        seams=("position",),
        papers=(178,),
        source="arXiv 2309.00071, section 3.3; rope_type 'dynamic' of transformers",
        exact_when="the input fits the trained window",
        refuses="models that already scale their rotary frequencies",
        neutral={},
        test="tests/oracle/test_position.py",
    )

    def follows_length(self) -> bool:
        """The base moves unless the length is fixed."""
        return self.length is None

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """Frequencies of the base for `length` tokens."""
        dim, s = facts.rotary_dim, self.factor
        span = max(self.length or length, facts.window)
        if span == facts.window:
            return inv_freq, 1.0
        base = facts.rope_theta * (s * span / facts.window - (s - 1)) ** (dim / (dim - 2))
        return frequencies(base, dim), 1.0
