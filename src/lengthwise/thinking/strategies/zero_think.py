"""ZeroThink: the thinking section is empty, and the model answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lengthwise.thinking.strategy import Modes, Part, Strategy, StrategySpec

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Messages, Sampler
    from lengthwise.thinking.work import Work

THINKING: tuple[Part, ...] = ("open", "limit", "close", "watch", "draw")  # parts that act inside the section


@dataclass(frozen=True)
class ZeroThink(Modes):
    """The chain begins with `open + close`: no token of thinking is written. A model's own empty section is used."""

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="zero-think",
        summary="answers at once, after an empty thinking section",
        formula="text = <think></think> answer",
        parts=("mode",),
        papers=(28,),
        source="SafeChain (https://arxiv.org/abs/2502.12025), ZeroThink",
        needs_tags=True,
        simplified="the line breaks inside the empty section are those of the chat template, not always the paper's",
        test="tests/oracle/test_one_chain.py",
    )

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """What acts on thinking has nothing to act on."""
        idle = [s.spec.name for s in others if set(s.spec.parts) & set(THINKING)]
        return [f"zero-think leaves no thinking for {name} to act on" for name in idle]

    async def thinks(self, work: Work, messages: Messages) -> bool:
        """Never."""
        return False
