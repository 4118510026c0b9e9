"""Many chains, a verdict on every step of each, and the answer of the chain that holds best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking import verify
from lengthwise.thinking.chain import Messages, Sampler
from lengthwise.thinking.strategies._vote import best, same_chains
from lengthwise.thinking.strategy import Solves, Strategy, StrategySpec
from lengthwise.thinking.work import Solved, Work


@dataclass(frozen=True)
class BestOfN(Solves):
    """`k` chains to their end, `checks` verifications of each; the best scored one answers.

    score_i = mean over checks of the verdict on chain i (of the whole, else `score` over its steps);
    answer = answer of argmax_i score_i, or with `weighted` argmax_a sum_{i: answer_i = a} score_i.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="best-of-n",
        summary="k chains; a verifier judges the steps of each, and the best one answers",
        formula="score_i = mean_checks verdict(steps_i); answer = answer of argmax_i score_i; equals vote",
        parts=("solve",),
        papers=(103,),
        source=(
            "https://arxiv.org/abs/2504.16828, section 4 (best-of-n, n up to 32); a score is the mean over parallel "
            "verifications, as in https://github.com/mukhal/ThinkPRM"
        ),
        main="k",
        simplified=(
            "no verifier is trained: the sampler's own model judges in words, or a Python function; a verdict in words "
            "counts 0 or 1, the paper takes the probability of 'yes'"
        ),
        test="tests/oracle/test_verification.py",
    )
    k: int = param(8, "chains")
    verifier: str = param(verify.SELF, "who judges: 'self' (the same model) or module:function (question, steps)")
    checks: int = param(1, "verifications of each chain by 'self'; their mean counts")
    score: verify.Score = param("min", "how verdicts on steps become one, where there is none on the whole")
    weighted: bool = param(False, "whether all chains vote, each by its score")

    def validate(self) -> None:
        """There are chains, and verifications of them."""
        self.require(min(self.k, self.checks) >= 1, "k and checks must be at least 1")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """The verifier must be there."""
        return verify.reasons(self.verifier, self.spec.name)

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """All chains, their verification, the best."""
        got = [chain for chain in await work.many(messages, self.k) if chain.answer]
        judged = await verify.judge(
            work, messages, [verify.solution(c) for c in got], self.verifier, checks=self.checks
        )
        solved = best(got, [verify.mean_score(j, self.score) for j in judged], weighted=self.weighted)
        solved.notes += same_chains(work, self.k)
        return solved
