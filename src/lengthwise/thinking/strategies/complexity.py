"""Many chains, and a vote among those with the most steps: short-m@k with the sign turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking.chain import Messages
from lengthwise.thinking.steps import steps
from lengthwise.thinking.strategies._vote import same_chains, vote
from lengthwise.thinking.strategy import Solves, StrategySpec
from lengthwise.thinking.work import Solved, Work


@dataclass(frozen=True)
class Complexity(Solves):
    """`k` chains to their end; the `m` with the most steps of thinking vote.

    answer = majority{answer_i : i among the m of k with the most steps_i}; among equals the chain that ended first.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="complexity",
        summary="k chains, each to its end; the m with the most steps of thinking vote",
        formula="answer = majority of the m chains of k with the most steps; equals in the order of their end",
        parts=("solve",),
        papers=(12,),
        source="https://arxiv.org/abs/2210.00720, section 3: complexity-based consistency (there k = 50, m = 30 to 40)",
        main="k",
        simplified=(
            "the vote only, not the choice of few-shot examples by their steps; steps are those of thinking.steps "
            "(lines, ';', sentences that begin with a marker), the paper counts lines; fewer chains by default"
        ),
        test="tests/oracle/test_many_chains.py",
    )
    m: int = param(5, "chains that vote: those with the most steps")
    k: int = param(8, "chains")

    def validate(self) -> None:
        """At least one votes, and no more than there are."""
        self.require(self.m >= 1, "m must be at least 1")
        self.require(self.k >= self.m, f"k={self.k} chains are too few for m={self.m} that vote; k must not be below m")

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """All chains; the most complex vote."""
        got = await work.many(messages, self.k)
        solved = vote(got, first=self.m, by=lambda chain: -len(steps(chain.thinking)))
        solved.notes += same_chains(work, self.k)
        return solved
