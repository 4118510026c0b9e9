"""Many chains at once; when the first few have thought to the end, the others are stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking.chain import Messages
from lengthwise.thinking.strategies._vote import same_chains, vote
from lengthwise.thinking.strategy import Solves, StrategySpec
from lengthwise.thinking.work import Solved, Work


@dataclass(frozen=True)
class ShortMAtK(Solves):
    """`k` chains begin; the first `m` to end their thinking vote, the other k - m are cancelled in mid-thought.

    answer = majority{answer_i : i among the m shortest of k}; a tie goes to the answer of the shorter chain.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="short-m@k",
        summary="k chains at once; the first m to end their thinking vote, the others are cancelled",
        formula="answer = majority of the m chains of k whose thinking ends first; a tie goes to the shortest",
        parts=("solve",),
        papers=(7,),
        source="https://arxiv.org/abs/2505.17813, section 4: short-m@k; m = 3 and m = 1, k up to 20",
        main="k",
        simplified=(
            "first is first in time: over an endpoint whose chains do not advance at one pace it need not be the "
            "shortest in tokens; the answers of the m are written out one beside another"
        ),
        test="tests/oracle/test_many_chains.py",
    )
    m: int = param(3, "chains that vote: the first to end their thinking")
    k: int = param(8, "chains that begin")

    def validate(self) -> None:
        """At least one votes, and no more than there are."""
        self.require(self.m >= 1, "m must be at least 1")
        self.require(self.k >= self.m, f"k={self.k} chains are too few for m={self.m} that vote; k must not be below m")

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """The first m, then their vote."""
        got = await work.many(messages, self.k, self.m)
        solved = vote(got, by=lambda chain: chain.thinking_tokens)
        solved.notes += same_chains(work, self.k)
        if all(chain.reason == "not thinking" for chain in got):
            solved.notes.append("no chain thought: short-m@k had no lengths to compare and took the first chains")
        return solved
