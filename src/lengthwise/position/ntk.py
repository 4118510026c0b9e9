"""NTK-aware interpolation: a larger base instead of squeezed positions (bloc97 2023; in YaRN, arXiv 2309.00071)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Spec, param
from lengthwise.position._scaling import Scaled, frequencies


@dataclass(frozen=True)
class Ntk(Scaled):
    """Leaves the fastest frequency as it is and divides the slowest by `factor`, in a geometric series.

    With `length` the base comes from the critical dimension instead (see `base_multiplier`), as LongLLaDA sets it.
    """

    length: int | None = param(None, "tokens to read, from which the base is set instead of from the factor")

    spec: ClassVar[Spec] = Spec(
        name="ntk",
        family="position",
        summary="NTK-aware interpolation: a larger rotary base, fixed",
        formula="b' = b * s^(d/(d-2)), theta_i' = b'^(-2i/d); with length t: "
        "b' = b * max(1, ceil((t/2pi)^(d/c) / b)), c = 2 ceil(d/2 * log_b(L/2pi))",
        seams=("position",),
        papers=(178, 191),
        source="arXiv 2309.00071, section 3.1; compared in Giraffe, arXiv 2308.10882; the rule for a length: "
        "LongLLaDA, arXiv 2506.14429, section 4 (after arXiv 2310.05209)",
        exact_when="factor=1",
        refuses="models that already scale their rotary frequencies",
        simplified="LongLLaDA applies its rule to masked diffusion models, which do not run here",
        neutral={"factor": 1.0},
        test="tests/oracle/test_position.py",
    )

    def validate(self) -> None:
        """A factor of at least 1; a length of at least 1."""
        super().validate()
        self.require(self.length is None or self.length >= 1, "length must be at least 1")

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """Frequencies of the larger base."""
        dim = facts.rotary_dim
        if self.length is not None:
            times: float = base_multiplier(facts.rope_theta, dim, facts.window, self.length)
        else:
            times = self.factor ** (dim / (dim - 2))
        return frequencies(facts.rope_theta * times, dim), 1.0


def base_multiplier(base: float, dim: int, window: int, length: int) -> int:
    """By how much the base must grow so that `length` tokens stay within trained angles (LongLLaDA's lambda).

    Dimensions below the critical one, c = 2 ceil(dim/2 * log_base(window / 2 pi)), have turned at least once in the
    trained `window` and have seen every angle. The new base makes the critical dimension turn once in `length` tokens:
    (length / 2 pi)^(dim / c) / base, rounded up as published. `base` is the rotary base, `dim` the rotary dimensions;
    1 when the window is long enough, or so short that no dimension turns in it.
    """
    critical = 2 * math.ceil(dim / 2 * math.log(window / (2 * math.pi), base))
    if critical <= 0:
        return 1
    times: float = (length / (2 * math.pi)) ** (dim / critical) / base
    return max(1, math.ceil(times))
