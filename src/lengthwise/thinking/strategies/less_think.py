"""LessThink: the thinking section is one sentence, which says that none is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lengthwise.thinking.strategy import Limits, Opens, Part, Strategy, StrategySpec

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Sampler, Tags

SENTENCE = "Okay, the user ask for this, I can answer it without thinking much. \n"  # as published, blank and all
WRITING: tuple[Part, ...] = ("close", "watch", "draw")  # parts that act on thinking that the model writes


@dataclass(frozen=True)
class LessThink(Opens, Limits):
    """The section is put whole: the sentence, then the closing tag. The model writes no token of thinking."""

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="less-think",
        summary="answers after one given sentence of thinking",
        formula="text = <think> 'Okay, ... without thinking much.' </think> answer",
        parts=("open", "limit"),
        papers=(28,),
        source="SafeChain (https://arxiv.org/abs/2502.12025), LessThink",
        needs=("prefix",),
        needs_tags=True,
        simplified="the line breaks after the closing tag are left to the model",
        test="tests/oracle/test_one_chain.py",
    )

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """What acts on the model's own thinking has nothing to act on."""
        idle = [s.spec.name for s in others if set(s.spec.parts) & set(WRITING)]
        return [f"less-think lets the model write no thinking for {name} to act on" for name in idle]

    def opening(self, tags: Tags) -> str:
        """The published sentence."""
        return SENTENCE

    def most_thinking(self) -> int:
        """None of its own."""
        return 0
