"""Keys of low norm are kept: they draw attention (Devoto et al. 2024, arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.cache._evict import Evicts, best, reading_ended
from lengthwise.core.frames import NATIVE
from lengthwise.core.seams import View
from lengthwise.core.spec import Spec, param


@dataclass(frozen=True)
class Knorm(Evicts):
    """When the reading ends, every key head keeps the `budget` tokens whose keys have the lowest norm |k_n|.

    No attention is computed. The first `skip` layers keep everything, since there norm and attention hardly correlate.
    """

    budget: int = param(1024, "tokens kept in every head when the reading ends")
    skip: int = param(2, "first full-attention layers, which keep everything")

    spec: ClassVar[Spec] = Spec(
        name="knorm",
        family="cache",
        summary="when the reading ends, each head keeps the keys of lowest norm",
        formula="keep the `budget` tokens n of lowest ||k_n||_2, in each key head",
        seams=("keep",),
        source="arXiv 2406.11430, sections 3 and 4 (the first two layers are left whole)",
        exact_when="no more than `budget` tokens are read",
        refuses="methods that move keys, give them several positions, or select by position",
        simplified="compresses once, when the reading ends; recent tokens have no privilege, as published",
        neutral={"budget": 1 << 20},
        test="tests/oracle/test_evict.py",
    )

    def validate(self) -> None:
        """Sizes that make sense."""
        self.require(self.budget >= 1 and self.skip >= 0, "budget must be at least 1 and skip at least 0")

    def keep(self, view: View) -> Tensor | None:
        """The lowest norms, before the first token that is written."""
        above = sum(kind == "full" for kind in view.facts.layer_kinds[: view.layer])
        if not reading_ended(view) or above < self.skip or view.kv.n <= self.budget:
            return None
        return best(-view.kv.keys[NATIVE].read(0, view.kv.n).float().norm(dim=-1), self.budget)
