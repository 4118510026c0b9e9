"""Early exit: the thinking ends as soon as a trial answer is written with confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lengthwise.core.spec import param
from lengthwise.thinking.strategy import End, Put, StrategySpec, Watches

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Tags
    from lengthwise.thinking.work import State, Work

BOXED = "\n**Final Answer**\n\\boxed{"


@dataclass(frozen=True)
class EarlyExit(Watches):
    """At each of `words` (and every `pace` tokens) a fork of the chain answers greedily; sure enough, thinking ends.

    Confidence is the geometric mean of the probabilities of the trial's tokens, exp(mean log p). The trial is written
    inside the section after 'Final Answer', in a box ("boxed", as published), or after closing it ("closed"). Its
    tokens are counted as other tokens, and as waiting: the chain stands still meanwhile.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="early-exit",
        summary="tries an answer on the way and stops thinking when it is written with confidence",
        formula="end when exp(mean_i log p(a_i | thinking so far)) >= threshold",
        parts=("watch",),
        source="DEER (https://arxiv.org/abs/2504.15895), sec. 3 and released code",
        main="threshold",
        needs=("prefix", "logprobs"),
        needs_tags=True,
        simplified="all tokens of the trial count, the released code leaves out the first; the chain waits for its "
        "trials (no branch-parallel decoding)",
        test="tests/oracle/test_one_chain.py",
    )
    threshold: float = param(0.95, "confidence at which the thinking ends, 0 to 1")
    words: str = param("Wait", "words at which an answer is tried, between slashes, or none")
    pace: int | None = param(None, "an answer is also tried every so many tokens of thinking")
    trial: Literal["boxed", "closed"] = param("boxed", "boxed: in a box inside the section; closed: after closing it")
    trials: int = param(10, "most trials of one chain")
    most: int = param(20, "most tokens of a trial")

    def validate(self) -> None:
        """There is a place to look at, and something to compare with."""
        self.require(0 < self.threshold <= 1, "threshold is a probability, above 0 and at most 1")
        self.require(self.pace is None or self.pace > 0, "pace must be above 0")
        self.require(self.words != "none" or self.pace is not None, "with words=none, pace must be given")
        self.require(all(w.strip() for w in self.words.split("/")), "words must not be empty")
        self.require(min(self.trials, self.most) > 0, "trials and most must be above 0")

    def every(self) -> int | None:
        """The pace."""
        return self.pace

    def stops(self, tags: Tags) -> tuple[str, ...]:
        """The words."""
        return () if self.words == "none" else tuple(self.words.split("/"))

    async def look(self, work: Work, state: State) -> End | Put | None:
        """Try an answer, if this is a place for it."""
        tried, last = state.memory.get("early-exit trials", 0), state.memory.get("early-exit tokens", 0)
        due = self.pace is not None and state.tokens - last >= self.pace
        if tried >= self.trials or state.tags is None or not (due or state.stop in self.stops(state.tags)):
            return None
        work.acted.add(self.spec.name)
        state.memory |= {"early-exit trials": tried + 1, "early-exit tokens": state.tokens}
        boxed = self.trial == "boxed"
        fork = await state.chain.fork()
        before = fork.written
        try:
            await fork.put(BOXED if boxed else state.tags.close)
            settings = work.settings.but(temperature=0.0, logprobs=True)
            piece = await fork.write(self.most, ("}",) if boxed else (), settings)
        finally:
            state.side += fork.written - before
            work.spent.other_tokens += fork.written - before
            work.spent.prompt_tokens += fork.read
            await fork.close()
        said = piece.logprobs
        sure = math.exp(sum(said) / len(said)) if said else 0.0
        return End("confident") if sure >= self.threshold else None
