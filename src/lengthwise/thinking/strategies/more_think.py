"""MoreThink and budget forcing: the end of the thinking is replaced by words that make the model go on."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking.strategy import Closes, Strategy, StrategySpec

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Sampler
    from lengthwise.thinking.work import State


@dataclass(frozen=True)
class MoreThink(Closes):
    """The closing tag is taken away and `words` stand in its place, `times` times; then the model may end.

    SafeChain's MoreThink: 10 times, 'Wait' or 'Let me think again' by chance, within 10,000 tokens (`+ budget:10000`).
    s1's budget forcing: `more-think:times=1,words=Wait`; with `least`, until the thinking has so many tokens.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="more-think",
        summary="replaces the end of the thinking by 'Wait', so that the model thinks on",
        formula="text</think> -> text + words, the first `times` times (while tokens < least)",
        parts=("close",),
        papers=(28,),
        source="SafeChain (https://arxiv.org/abs/2502.12025), MoreThink; s1 (https://arxiv.org/abs/2501.19393)",
        main="times",
        needs=("prefix",),
        needs_tags=True,
        simplified="which words come is drawn from the text so far, so that a run can be repeated; "
        "a blank is put before them where the thinking does not end in one",
        test="tests/oracle/test_one_chain.py",
    )
    times: int = param(10, "ends of thinking that are turned away, at most")
    words: str = param("Wait/Let me think again", "what stands in their place; of several, between slashes, one")
    least: int | None = param(None, "ends are turned away only while the thinking is shorter, in tokens")

    def validate(self) -> None:
        """Words to go on with, and at least one time."""
        self.require(self.times > 0, "times must be above 0 (leave more-think out for none)")
        self.require(all(w.strip() for w in self.words.split("/")), "words must not be empty")
        self.require(self.least is None or self.least > 0, "least must be above 0")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """A limit below `least` would win."""
        from lengthwise.thinking.strategy import Limits

        if self.least is None:
            return []
        tight = [s for s in others if isinstance(s, Limits) and s.most_thinking() < self.least]
        return [
            f"more-think wants at least {self.least} tokens, {s.spec.name} allows {s.most_thinking()}" for s in tight
        ]

    def instead(self, state: State) -> str | None:
        """Words, until they have come often enough."""
        if state.closes >= self.times or (self.least is not None and state.tokens >= self.least):
            return None
        choices = self.words.split("/")
        words = choices[zlib.crc32(state.thinking.encode()) % len(choices)]
        return words if not state.thinking or state.thinking[-1].isspace() else f" {words}"
