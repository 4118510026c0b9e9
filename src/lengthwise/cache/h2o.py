"""H2O: heavy hitters of accumulated attention, and recent tokens (Zhang et al. 2023, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from lengthwise.cache._evict import Evicts, best
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import Frame
from lengthwise.core.seams import Observes, View
from lengthwise.core.spec import Spec, param


@dataclass(frozen=True)
class H2o(Evicts, Observes):
    """Before every block of tokens, each key head keeps the recent tokens and those of highest accumulated attention.

    s_n = sum_m sum_h p_h,m,n over all queries m so far and the query heads h of the key head; half of `budget` is for
    recent tokens, half for heavy hitters.
    """

    budget: int = param(1024, "tokens kept in every head before a block is read")
    recent: int | None = param(None, "of them the most recent ones; none: half")

    spec: ClassVar[Spec] = Spec(
        name="h2o",
        family="cache",
        summary="before every step, each head keeps recent tokens and those of highest accumulated attention",
        formula="keep the last r and top_(budget-r) of s_n = sum over queries m of softmax(q_m . k / sqrt(d))_n",
        seams=("keep", "observe"),
        source="arXiv 2306.14048, algorithm 1; equal shares as in its experiments",
        exact_when="the input is no longer than `budget`",
        refuses="methods that move keys, give them several positions, or select by position",
        simplified="while reading it drops a block of budget / 4 tokens at a time (published: one); "
        "heads that share keys add their attention",
        bounded=True,
        neutral={"budget": 1 << 20},
        test="tests/oracle/test_evict.py",
    )

    @property
    def lately(self) -> int:
        """Recent tokens that stay."""
        return self.budget // 2 if self.recent is None else self.recent

    def validate(self) -> None:
        """Sizes that fit each other."""
        self.require(self.budget >= 1, "budget must be at least 1")
        self.require(0 <= self.lately <= self.budget, "recent must be at most budget")

    def observe(self, view: View, frame: Frame, slots: Tensor, weights: Tensor) -> None:
        """Add up what every token draws, in each key head."""
        heads = view.facts.kv_heads
        score = view.state.get("score", torch.zeros(heads, 0))
        score = pad(score, (0, view.kv.n - score.shape[1]))
        score.index_add_(1, slots, weights.sum(1).unflatten(0, (heads, -1)).sum(1).cpu())
        view.state["score"] = score

    def keep(self, view: View) -> Tensor | None:
        """Heavy hitters and recent tokens."""
        n = view.kv.n
        if n <= self.budget:
            return None
        score: Tensor = view.state["score"]
        recent = torch.arange(n - self.lately, n).expand(len(score), -1)
        slots = torch.cat([best(score[:, : n - self.lately], self.budget - self.lately), recent], 1)
        view.state["score"] = score.gather(1, slots)
        return slots

    def queries_at_once(self) -> int:
        """Blocks that are small beside the budget."""
        return max(1, self.budget // 4)

    def tokens_held(self, length: int, model: ModelFacts) -> int:
        """The budget, and a block on its way."""
        return min(length, self.budget + self.queries_at_once())
