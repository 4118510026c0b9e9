"""Adjusted base frequency, and logits that grow with the position (arXiv 2309.16039 and 2401.07004)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Method, Spec, param
from lengthwise.position._scaling import Rescaled, frequencies, logn


@dataclass(frozen=True)
class Abf(Rescaled):
    """A larger rotary base, as models that are trained on for longer texts get it.

    Llama 2 Long changes the base alone. Entropy-aware ABF (`logn=true`) also multiplies the logits of queries beyond
    the trained window by ln(m+1)/ln L, so that attention does not flatten as there is more to look at; the first two
    layers, whose attention is flat anyway, are left out.
    """

    base: float | None = param(500_000.0, "the new base; none: the model's")
    logn: bool = param(False, "multiply queries beyond the trained window by ln(m+1)/ln(L)")
    exempt: int = param(2, "first layers whose queries are not multiplied")

    spec: ClassVar[Spec] = Spec(
        name="abf",
        family="position",
        summary="adjusted base frequency: a larger rotary base, logits scaled by position if asked for",
        formula="theta_i' = base^(-2i/d); with logn: q_m *= max(1, ln(m+1)/ln L) in layers from exempt on",
        seams=("position",),
        papers=(266, 194),
        source="Llama 2 Long, arXiv 2309.16039, section 4.1 (base 500,000); Entropy-ABF, arXiv 2401.07004, with the "
        "base, the factor and the two layers of the released code",
        exact_when="base=none",
        refuses="models that already scale their rotary frequencies, or whose base is not below the new one",
        simplified="no training on longer texts, which both papers add; the range of positions "
        "in which the factor applies follows the model's window, where the released code has 4,096",
        neutral={"base": None},
        test="tests/oracle/test_position_abf.py",
    )

    def validate(self) -> None:
        """A base, with which the factor goes."""
        self.require(self.base is None or self.base > 1, "base must be above 1")
        self.require(self.base is not None or not self.logn, "logn goes with a base: give both or neither")
        self.require(self.exempt >= 0, "exempt must be at least 0")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The base must grow, or nothing would happen."""
        reasons = super().check(model, others)
        if not reasons and model is not None and self.base is not None and self.base <= model.rope_theta:
            reasons.append(f"base={self.base:g} is not above the base of {model.model_type}, {model.rope_theta:g}")
        return reasons

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float] | None:
        """Frequencies of the new base."""
        return None if self.base is None else (frequencies(self.base, facts.rotary_dim), 1.0)

    def query_factor(self, facts: ModelFacts, positions: Tensor, layer: int) -> Tensor | None:
        """The log-n factor [C], if asked for."""
        return logn(facts, positions) if self.logn and layer >= self.exempt else None
