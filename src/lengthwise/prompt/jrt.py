"""JRT-Prompt, "just read twice": the text stands in the prompt several times (arXiv 2407.05483)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.seams import Choice, Look, Prompts
from lengthwise.core.spec import Spec, param


@dataclass(frozen=True)
class Jrt(Prompts):
    """Reads question, text, text, question: from the second time on the model knows what comes and what is asked.

    A model that reads from left to right, and most of all one with a small memory, must decide what to remember of a
    token before it sees what follows. When it reads again, it has seen all.
    """

    times: int = param(2, "how often the text is read; 1: once, and the question only after it")

    spec: ClassVar[Spec] = Spec(
        name="jrt",
        family="prompt",
        summary="the question and then the text, twice, before the question",
        formula="prompt = question + times * (newline + text) + question",
        seams=("prompt",),
        papers=(23,),
        source="arXiv 2407.05483, section 3.2; the order of question and text is that of the released evaluation code "
        "(github.com/HazyResearch/prefix-linear-attention)",
        exact_when="times=1",
        refuses="nothing",
        simplified="JRT-RNN, the trained architecture of the paper, is left out; one line break stands before each "
        "text, where the released code differs from task to task",
        neutral={"times": 1},
        test="tests/oracle/test_jrt.py",
    )

    def validate(self) -> None:
        """At least once."""
        self.require(self.times >= 1, "times must be at least 1")

    def choose(self, length: int, limit: int, look: Look) -> Choice:
        """All of the text."""
        return Choice(((0, length),), times=self.times)

    def passes(self, length: int, limit: int) -> list[tuple[int, int]] | None:
        """One pass over all repetitions."""
        return [(self.times * length, 1)]
