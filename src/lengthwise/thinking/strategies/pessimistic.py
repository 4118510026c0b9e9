"""Many chains, each verified many times; the answer that is surely good beats the one that is perhaps better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking import verify
from lengthwise.thinking.chain import Messages, Sampler
from lengthwise.thinking.strategies._vote import best, same_chains, vote
from lengthwise.thinking.strategy import Solves, Strategy, StrategySpec
from lengthwise.thinking.work import Solved, Work


@dataclass(frozen=True)
class Pessimistic(Solves):
    """N = `k` chains, M = `checks` verdicts on each; every answer is an arm whose mean verdict is uncertain.

    answer = argmax_a r(a) - alpha * ln(N M) / (N_a M + 1), with N_a the chains that end with a and r(a) the mean of
    their N_a M verdicts. alpha = 0 trusts the verifier alone; a large alpha is majority.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="pessimistic",
        summary="k chains, each verified several times; the answer with the best mean verdict less its uncertainty",
        formula="answer = argmax_a r(a) - alpha * ln(N*M) / (N_a*M + 1); r(a) = mean of the N_a*M verdicts on a",
        parts=("solve",),
        papers=(100,),
        source="https://arxiv.org/abs/2504.10337, section 3.2: Pessimistic Verification; alpha = 0.1",
        main="k",
        simplified=(
            "the verifier is not trained by reinforcement: the sampler's own model judges, or a function, called "
            "once for each chain, for its judgement does not vary; N*M counts the verdicts that could be read"
        ),
        test="tests/oracle/test_verification.py",
    )
    k: int = param(8, "chains (N)")
    checks: int = param(4, "verifications of each chain by 'self' (M)")
    alpha: float = param(0.1, "how much uncertainty counts against an answer; 0: not at all")
    verifier: str = param(verify.SELF, "who judges: 'self' (the same model) or module:function (question, steps)")

    def validate(self) -> None:
        """There are chains and verifications, and uncertainty is no merit."""
        self.require(min(self.k, self.checks) >= 1, "k and checks must be at least 1")
        self.require(self.alpha >= 0, "alpha must not be below 0")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """The verifier must be there."""
        return verify.reasons(self.verifier, self.spec.name)

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """All chains, all verdicts, the answer with the best lower bound."""
        got = [chain for chain in await work.many(messages, self.k) if chain.answer]
        judged = await verify.judge(
            work, messages, [verify.solution(c) for c in got], self.verifier, checks=self.checks
        )
        verdicts: dict[str, list[float]] = {}
        missing = 0
        for chain, judgements in zip(got, judged):
            said = [score for j in judgements if (score := j.score()) is not None]
            missing += len(judgements) - len(said)
            verdicts.setdefault(chain.answer.casefold(), []).extend(said)
        if not any(verdicts.values()):
            return best(got, [None] * len(got))  # plain majority, with a note
        bounds = lower_bounds(verdicts, self.alpha)
        winner = max(bounds, key=bounds.__getitem__, default="")
        solved = vote(got, weights=[float(c.answer.casefold() == winner) for c in got])
        solved.confidence = sum(verdicts[winner]) / len(verdicts[winner]) if verdicts.get(winner) else 0.0
        if missing:
            solved.notes.append(
                f"{missing} of {sum(map(len, judged))} verifications hold no verdict: they do not count"
            )
        solved.notes += same_chains(work, self.k)
        return solved


def lower_bounds(verdicts: dict[str, list[float]], alpha: float) -> dict[str, float]:
    """Answer -> r - alpha * ln(all verdicts) / (its verdicts + 1); r is 0 where an answer has no verdict."""
    total = max(sum(map(len, verdicts.values())), 1)
    return {
        answer: (sum(said) / len(said) if said else 0.0) - alpha * math.log(total) / (len(said) + 1)
        for answer, said in verdicts.items()
    }
