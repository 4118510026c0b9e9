"""A budget of thinking tokens: at its end the section is closed and the answer asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking.strategy import Limits, StrategySpec


@dataclass(frozen=True)
class Budget(Limits):
    """After `tokens` of thinking (put text included) the closing tag is put, then `answer`, and the model answers."""

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="budget",
        summary="closes the thinking after a number of tokens and asks for the answer",
        formula="text[:tokens] + </think> + answer",
        parts=("limit",),
        source="s1 (https://arxiv.org/abs/2501.19393), sec. 3.1: budget forcing, the maximum",
        main="tokens",
        needs=("prefix",),
        needs_tags=True,
        simplified="the words that ask for the answer are optional in the paper and left out unless they are given",
        test="tests/oracle/test_one_chain.py",
    )
    tokens: int = param(2048, "most tokens of thinking")
    answer: str | None = param(None, "what is put after the closed section, such as 'Final Answer:'")

    def validate(self) -> None:
        """Some thinking is left."""
        self.require(self.tokens > 0, "tokens must be above 0 (zero-think does not think at all)")

    def most_thinking(self) -> int:
        """The budget."""
        return self.tokens

    def elicitation(self) -> str:
        """The words that ask for the answer."""
        return "" if self.answer is None else f"\n{self.answer}"
