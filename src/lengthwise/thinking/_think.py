"""`lengthwise.think`: one problem, a sampler, a sum of strategies; an answer, its chains and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lengthwise.errors import BadInput
from lengthwise.thinking import registry
from lengthwise.thinking.answers import Extract
from lengthwise.thinking.chain import DEFAULT, Messages, Sampler, Settings
from lengthwise.thinking.strategy import Strategy
from lengthwise.thinking.work import Spent, Work, Written

VERSION = 1


@dataclass
class Thought:
    """What `think` returns. `confidence` is what the strategy says of its answer (a share of votes, mostly)."""

    answer: str
    text: str
    chains: list[Written]
    spent: Spent
    strategy: str
    model: str
    confidence: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form."""
        chains = [asdict(c) | {"logprobs": list(c.logprobs), "finished": round(c.finished, 3)} for c in self.chains]
        return {
            "version": VERSION,
            "answer": self.answer,
            "text": self.text,
            "confidence": self.confidence,
            "strategy": self.strategy,
            "model": self.model,
            "spent": self.spent.to_json(),
            "chains": chains,
            "notes": list(self.notes),
        }


async def think(
    problem: str | Messages,
    sampler: Sampler,
    strategy: str | Sequence[Strategy] = registry.PLAIN,
    *,
    settings: Settings = DEFAULT,
    most_thinking: int = 4096,
    most_answer: int = 512,
    extract: Extract = "auto",
) -> Thought:
    """Think about `problem` (a question, or chat messages that end with the user's) as `strategy` says.

    `strategy` is a sum of strategies (`lengthwise.thinking.registry.parse`) or a list of them. `most_thinking` and
    `most_answer` bound every chain in tokens; `extract` says how answers are found in texts (`answers.answer_in`).
    Chains that were cancelled are in the result, too. Raises StackRefused, with reasons, when the strategies do not fit
    together or the sampler, and other LengthwiseErrors for what a user can put right.
    """
    messages: Messages = [{"role": "user", "content": problem}] if isinstance(problem, str) else problem
    if not messages or not messages[-1].get("content", "").strip():
        raise BadInput("the problem is empty")
    if messages[-1].get("role") != "user":
        raise BadInput("the last message must be the user's")
    if not (0 <= settings.temperature < math.inf and 0 < settings.top_p <= 1):
        raise BadInput("the temperature must be a number from 0 on, top_p above 0 and at most 1")
    if min(most_thinking, most_answer) < 1:
        raise BadInput("the most tokens of thinking and of the answer must be at least 1")
    strategies = registry.parse(strategy) if isinstance(strategy, str) else list(strategy)
    registry.check(strategies, sampler)
    work = Work(
        sampler,
        strategies,
        settings=settings,
        most_thinking=most_thinking,
        most_answer=most_answer,
        extract=extract,
    )
    solved = await work.solve(messages)
    text = next((c.text for c in solved.chains if c.answer == solved.answer), solved.answer)
    named = registry.format_strategies(strategies)
    notes = [*solved.notes, *getattr(sampler, "notes", ())]  # an endpoint's, of what it did otherwise than asked
    return Thought(solved.answer, text, work.chains, work.spent, named, sampler.name, solved.confidence, notes)
