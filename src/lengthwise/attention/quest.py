"""Quest: a decoded token reads only the pages of keys whose bounds promise it the largest scores (arXiv 2406.10774)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.attention import _blocks
from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Blocks, View
from lengthwise.core.spec import Spec, param
from lengthwise.kernels.attend.lists import SLOTS, BlockLists


@dataclass(frozen=True)
class Quest(Blocks):
    """Prefill is dense. A decoded token sees, in every KV group, the pages of 64 keys that can score highest.

        u_P = max over heads of sum_d max(q_d min_d(P), q_d max_d(P));  pages = the budget / 64 of largest u_P

    No key of a page scores above u_P. The page that is being written is one of them. The first layers stay dense.
    """

    budget: int = param(2048, "keys that a decoded token reads, in whole pages of 64")
    dense_layers: int = param(2, "first layers that read all keys")

    spec: ClassVar[Spec] = Spec(
        name="quest",
        family="attention",
        summary="a decoded token reads only the pages of keys whose channel bounds promise the largest scores",
        formula="pages = top-(budget/64) of u_P = sum_d max(q_d min_d(P), q_d max_d(P)), for decoded tokens",
        seams=("blocks",),
        source="arXiv 2406.10774, equation 1 and algorithm 1; budget and dense layers of the released evaluation",
        exact_when="the input is no longer than the budget; prefill always is",
        refuses="methods that drop, move or code keys, or give them several positions",
        simplified="pages of 64 keys instead of 16; heads of a KV group share their pages",
        neutral={"budget": 1 << 30},
        test="tests/oracle/test_quest.py",
    )

    def validate(self) -> None:
        """At least the page that is being written."""
        self.require(self.budget >= SLOTS, f"budget must be at least a page of {SLOTS} keys")
        self.require(self.dense_layers >= 0, "dense_layers must be at least 0")

    def lists(self, view: View) -> BlockLists | None:
        """The pages of one decoded token; None for prefill, the first layers, and while the budget holds all keys."""
        if len(view.positions) > 1 or view.layer < self.dense_layers or view.kv.n <= self.budget:
            return None
        return _blocks.best_by_bounds(view, self.budget // SLOTS - 1, 0, 1)

    def tokens_seen(self, length: int, facts: ModelFacts) -> int:
        """A prefill sees everything."""
        return length
