"""LongGenBench: many questions in one prompt, one long answer; how accuracy falls along it."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from lengthwise.bench.stream import final, integers, stream
from lengthwise.bench.task import Room, Sample, Scores, Task, TaskSpec
from lengthwise.bench.words import PEOPLE, THINGS
from lengthwise.core.spec import param


@dataclass(frozen=True)
class LongGen(Task):
    """Word problems, all to be answered in order, with their steps. `length` holds questions and answers together."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="longgen",
        summary="answer many questions in one long answer",
        diffusion="low",
        scope="high",
        metric="accuracy",
        papers=(260,),
        source="LongGenBench (Liu et al. 2024, EMNLP Findings), section 3: K questions, numbered answers with steps, "
        "the last number of each counts",
        simplified="generated word problems in place of GSM8K and MMLU; no worked examples before them; the length "
        "decides how many questions",
        test="tests/oracle/test_tasks_longgen.py",
    )

    steps: int = param(2, "steps of each question")

    def validate(self) -> None:
        """At least one step."""
        self.require(self.steps >= 1, "steps must be at least 1")

    def build(self, room: Room, depth: float | None) -> Sample:
        """As many questions as fit with their answers."""
        items = stream(room.draw.random(), self._problem)

        def make(count: int) -> Sample:
            told = items.take(count)
            asked = "".join(f"\nQuestion {i}:{text}" for i, (text, _, _) in enumerate(told, 1))
            answers = [f" {steps}. The answer is {right}." for _, steps, right in told]
            return Sample(
                f"Questions to answer one after the other.{asked}",
                f"Answer all {count} questions in their order, each on a line of its own that begins with its number "
                "and shows the steps, as in: Answer 1: 2+3=5, 5-1=4. The answer is 4.",
                "".join(a if i == 1 else f"\nAnswer {i}:{a}" for i, a in enumerate(answers, 1)),
                [right for _, _, right in told],
                "Answer 1:",
                ("\nQuestion",),
                meta={"questions": count},
            )

        return room.fit(make, 1)

    def _problem(self, draw: random.Random, index: int) -> tuple[str, str, int]:
        """(text, steps, answer)."""
        who, what, held = draw.choice(PEOPLE), draw.choice(THINGS), draw.randint(5, 40)
        text, steps = f" {who} has {held} coins.", []
        for _ in range(self.steps):
            change = draw.randint(2, 20)
            if held > change and draw.random() < 0.5:
                text += f" {who} gives {change} of them to a {what}."
                steps.append(f"{held}-{change}={held - change}")
                held -= change
            else:
                text += f" {who} finds {change} more."
                steps.append(f"{held}+{change}={held + change}")
                held += change
        return f"{text} How many coins does {who} have now?", ", ".join(steps), held

    def score(self, answer: str, sample: Sample) -> Scores:
        """The share of all questions answered right, the share answered at all, and accuracy by thirds of the order."""
        right = sample.reference
        given = answers(sample.prefix + final(answer))
        hits = [given.get(i) == value for i, value in enumerate(right, 1)]
        thirds = [hits[len(hits) * k // 3 : len(hits) * (k + 1) // 3] or hits for k in range(3)]
        return {
            "accuracy": sum(hits) / len(hits),
            "answered": sum(i in given for i in range(1, len(right) + 1)) / len(right),
            **{
                f"accuracy_{name}": sum(t) / len(t) for name, t in zip(("first", "middle", "last"), thirds, strict=True)
            },
        }


def answers(text: str) -> dict[int, int]:
    """The last number of each part that begins with 'Answer 7:' (or, when there is none, with '7.' on a new line)."""
    for head in (r"answer[ _]*(\d+)\W*?:", r"^\W*(\d+)[.:)]"):
        parts = re.split(head, text, flags=re.IGNORECASE | re.MULTILINE)
        found = {
            int(number): values[-1]
            for number, part in zip(parts[1::2], parts[2::2], strict=True)
            if (values := integers(part.split("\n\n")[0]))
        }
        if found:
            return found
    return {}
