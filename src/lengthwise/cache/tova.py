"""TOVA: at every step drop the token that the last query attends to least (Oren et al. 2024, arXiv 2401.06104)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.cache._evict import Evicts, best, last_weights, remember
from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import View
from lengthwise.core.spec import Spec, param


@dataclass(frozen=True)
class Tova(Evicts):
    """Before every block of tokens, a layer keeps the `budget` tokens of highest mean_h p_h,n.

    p_h is the softmax of the last query over all that is held, averaged over all query heads: heads keep the same
    tokens, layers their own. Neither first nor recent tokens have a privilege.
    """

    budget: int = param(1024, "tokens kept in every layer before a block is read")

    spec: ClassVar[Spec] = Spec(
        name="tova",
        family="cache",
        summary="before every step, each layer keeps the tokens that the last query attends to most",
        formula="keep top_budget of mean_h softmax(q_h,last . k_h / sqrt(d))_n",
        seams=("keep",),
        source="arXiv 2401.06104, section 3",
        exact_when="the input is no longer than `budget`",
        refuses="methods that move keys, give them several positions, or select by position",
        simplified="while reading it drops a block of budget / 4 tokens at a time (published: one; the released code: "
        "once after the prompt)",
        bounded=True,
        neutral={"budget": 1 << 20},
        test="tests/oracle/test_evict.py",
    )

    def validate(self) -> None:
        """A budget."""
        self.require(self.budget >= 1, "budget must be at least 1")

    def keep(self, view: View) -> Tensor | None:
        """The tokens that the query before this block looked at most."""
        slots = best(last_weights(view)[:, 0].mean(0), self.budget) if view.kv.n > self.budget else None
        remember(view, 1)
        return slots

    def queries_at_once(self) -> int:
        """Blocks that are small beside the budget."""
        return max(1, self.budget // 4)

    def tokens_held(self, length: int, model: ModelFacts) -> int:
        """The budget, and a block on its way."""
        return min(length, self.budget + self.queries_at_once())
