"""Chain-of-thought prompts: one sentence, or worked examples, that make the model go step by step."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from lengthwise.core.spec import param
from lengthwise.errors import BadInput
from lengthwise.thinking.steps import steps
from lengthwise.thinking.strategy import Asks, Strategy, StrategySpec

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Messages, Sampler


@dataclass(frozen=True)
class Cot(Asks):
    """Zero-shot: `trigger` follows the question. Few-shot: worked examples stand before it, and no trigger.

    Examples are lines of JSON, {"question", "reasoning", "answer"}; `shots` of them are used: the first ones, or those
    whose reasoning has the most steps (complexity-based prompting, paper 12). One works best with models that reason by
    themselves, and makes them go over their work less often (paper 154).
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="cot",
        summary="asks for steps, with a sentence or with worked examples",
        formula="question + trigger, or Q: q_i A: r_i The answer is a_i. ... Q: question A:",
        parts=("problem",),
        papers=(147, 154, 12),
        source="Zero-shot-CoT (https://arxiv.org/abs/2205.11916), sec. 3; In-context learning with less overthinking "
        "(https://arxiv.org/abs/2503.19602); Complexity-based prompting (https://arxiv.org/abs/2210.00720), sec. 3",
        main="examples",
        simplified="the trigger ends the user's message instead of beginning the answer; the papers' examples do not "
        "come with it; the answer is extracted in a second stage only with `+ two-stage`",
        test="tests/oracle/test_one_chain.py",
    )
    examples: str | None = param(None, "a file of worked examples (JSONL); without it, zero-shot")
    shots: int = param(1, "how many examples of the file are used")
    pick: Literal["first", "complex"] = param("first", "the first examples of the file, or those with the most steps")
    trigger: str = param("Let's think step by step.", "what follows the question, zero-shot")

    def validate(self) -> None:
        """There is something to add."""
        self.require(self.shots > 0, "shots must be above 0")
        self.require(bool(self.trigger.strip()), "trigger must not be empty")
        if self.examples is None:
            self.require(
                (self.shots, self.pick) == (1, "first"), "shots and pick are for examples: give a file of them"
            )
        else:
            self.require(self.trigger == Cot.trigger, "trigger is for zero-shot: leave it or examples out")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """The file holds enough examples."""
        if self.examples is None:
            return []
        try:
            there = len(read_examples(self.examples))
        except BadInput as error:
            return [str(error)]
        return [f"cot: {self.examples} has {there} examples, not {self.shots}"] if there < self.shots else []

    def messages(self, messages: Messages) -> Messages:
        """The last message, the user's, with the prompt."""
        last = messages[-1]
        if self.examples is None:
            text = f"{last['content'].rstrip()}\n{self.trigger}"
        else:
            there = read_examples(self.examples)
            if self.pick == "complex":
                there = tuple(sorted(there, key=lambda example: -len(steps(example[1]))))
            shown = there[: self.shots]
            worked = [f"Q: {q}\nA: {r} The answer is {a}.\n\n" for q, r, a in shown]
            text = "".join(worked) + f"Q: {last['content'].strip()}\nA:"
        return [*messages[:-1], {**last, "content": text}]


@functools.lru_cache(maxsize=8)
def read_examples(path: str) -> tuple[tuple[str, str, str], ...]:
    """(question, reasoning, answer) of every line. Raises BadInput that names the first line that is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cot: the examples in {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                found.append((str(row["question"]), str(row["reasoning"]), str(row["answer"]).rstrip(".")))
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(
                    f'cot: {path}:{number} is no example: {{"question": ..., "reasoning": ..., "answer": ...}} is one'
                ) from error
    return tuple(found)
