"""Many chains whose votes weigh as much as the model's middle layers agree with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking.answers import votes
from lengthwise.thinking.chain import Messages
from lengthwise.thinking.strategies._vote import same_chains, vote
from lengthwise.thinking.strategy import Limits, Solves, StrategySpec
from lengthwise.thinking.work import Solved, Work, Written

ASKED = "\nThe answer is"  # after a text in which the answer does not stand word for word


@dataclass(frozen=True)
class InternalConsistency(Solves):
    """`k` chains vote; a chain weighs the share of the layers below the last that already say its answer.

    With L layers, candidates A (the answers of all chains) and p_l read off after layer l where chain i answers:
    y_l = argmax_{a in A} log p_l(a); weight_i = |{l < L : y_l = answer_i}| / (L - 1); answer = argmax_a sum weight_i.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="internal-consistency",
        summary="k chains vote, each weighed by the share of middle layers that already hold its answer",
        formula="weight_i = sum_{l<L} [argmax_a log p_l(a) = answer_i] / (L - 1); answer = argmax_a sum_i weight_i",
        parts=("solve",),
        papers=(168,),
        source="https://arxiv.org/abs/2405.18711, section 2.3 (internal consistency) and section 4 (weighted vote)",
        main="k",
        needs=("layers", "prefix"),
        simplified=(
            "the candidates are the answers that the chains gave, compared by the log-probability of all their tokens; "
            "the layers' predictions are not calibrated by medians over a data set, since there is one problem"
        ),
        test="tests/oracle/test_many_chains.py",
    )
    k: int = param(8, "chains, all of which vote")

    def validate(self) -> None:
        """There is a chain."""
        self.require(self.k >= 1, "k must be at least 1")

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """All chains; when they disagree, what the layers say of each."""
        got = await work.many(messages, self.k)
        candidates = _candidates(got)
        if len(candidates) < 2:  # nothing to weigh
            solved = vote(got)
            solved.notes.append("all answers are the same: the layers were not asked")
        else:
            weights = [await _weight(work, messages, chain, candidates) for chain in got]
            if any(w for w, chain in zip(weights, got) if chain.answer):
                solved = vote(got, weights=weights)
            else:
                solved = vote(got)
                solved.notes.append("no middle layer holds any answer: plain majority")
        solved.notes += same_chains(work, self.k)
        return solved


def agreement(layered: Sequence[Sequence[float]], own: int) -> float:
    """Share of the layers below the last whose likeliest candidate is `own`; `layered` is [layers][candidates]."""
    below = [max(range(len(row)), key=row.__getitem__) for row in layered[:-1]]
    return sum(best == own for best in below) / len(below) if below else 1.0


def _candidates(chains: Sequence[Written]) -> list[str]:
    for chain in chains:
        chain.weight = 1.0
    return list(votes(chains))


async def _weight(work: Work, messages: Messages, written: Written, candidates: Sequence[str]) -> float:
    """The agreement of the layers with one chain, read off just before its answer."""
    if not written.answer:
        return 0.0
    own = [c.casefold() for c in candidates].index(written.answer.casefold())
    before, found, _ = written.text.rpartition(written.answer)
    if not found:
        before = written.text + ASKED
    if work.sampler.tags is not None and written.reason not in ("never closed", "not thinking"):
        limits = work.part(Limits)
        asked = limits.elicitation() if limits is not None and written.reason == "budget" else ""
        before = written.thinking + work.sampler.tags.close + asked + before
    before, blank = before.rstrip(" "), " " if before.endswith(" ") or not found else ""
    chain = await work.sampler.chain(messages, think=written.reason != "not thinking")
    try:
        await chain.put(before)
        return agreement(await chain.layered([blank + c for c in candidates]), own)
    finally:
        work.spent.prompt_tokens += chain.read + work.sampler.count(before)  # the chain is read a second time
        await chain.close()
