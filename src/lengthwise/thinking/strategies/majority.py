"""Self-consistency: many chains, and the answer that most of them end with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking.chain import Messages
from lengthwise.thinking.strategies._vote import same_chains, vote
from lengthwise.thinking.strategy import Solves, StrategySpec
from lengthwise.thinking.work import Solved, Work


@dataclass(frozen=True)
class Majority(Solves):
    """`k` chains, all to their end: answer = argmax_a |{i : answer_i = a}|; a tie goes to the chain that ended first.

    The measure of all strategies of many chains, and the most that they can cost.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="majority",
        summary="k chains, each to its end; the answer that most of them give (self-consistency, majority@k)",
        formula="answer = argmax_a sum_i [answer_i = a]; a tie goes to the chain that ended its thinking first",
        parts=("solve",),
        source="https://arxiv.org/abs/2203.11171 (self-consistency; 40 paths there), the measure in 2505.17813",
        main="k",
        test="tests/oracle/test_many_chains.py",
    )
    k: int = param(8, "chains, all of which vote")

    def validate(self) -> None:
        """There is a chain."""
        self.require(self.k >= 1, "k must be at least 1")

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """All chains, then their vote."""
        solved = vote(await work.many(messages, self.k))
        solved.notes += same_chains(work, self.k)
        return solved
