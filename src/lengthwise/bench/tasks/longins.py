"""LongIns: an exam of many small questions, answered; which answers are wrong?"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from lengthwise.bench.stream import final, integers, stream
from lengthwise.bench.task import Room, Sample, Scores, Task, TaskSpec
from lengthwise.bench.words import ALL
from lengthwise.core.spec import param

KINDS_OF = {
    "animal": "falcon eagle raven sparrow pigeon turtle spider beetle salmon shark dolphin otter badger rabbit tiger "
    "zebra camel donkey",
    "fruit": "melon mango papaya banana cherry lemon apricot",
    "metal": "copper silver cobalt nickel",
    "flower": "orchid tulip daisy violet lotus",
    "tool": "shovel hammer needle ladder",
}
OPPOSITES = {
    "new": "old", "huge": "tiny", "loud": "quiet", "bright": "dark", "heavy": "light", "warm": "cold", "wet": "dry",
    "smooth": "rough", "sharp": "dull", "soft": "hard", "sweet": "bitter", "full": "empty",
}  # fmt: skip

Item = tuple[str, str, str]
"""A question, its right answer and a wrong one."""


def _near(draw: random.Random, right: int) -> str:
    return str(max(0, right + draw.choice([-2, -1, 1, 2]))) if right > 1 else str(right + draw.choice([1, 2]))


def _sum(draw: random.Random) -> Item:
    a, b = draw.randint(2, 60), draw.randint(2, 40)
    return f"{a} and {b}", str(a + b), _near(draw, a + b)


def _product(draw: random.Random) -> Item:
    a, b = draw.randint(2, 9), draw.randint(2, 12)
    return f"{a} and {b}", str(a * b), _near(draw, a * b)


def _larger(draw: random.Random) -> Item:
    a, b = draw.sample(range(100, 999), 2)
    return f"{a} and {b}", str(max(a, b)), str(min(a, b))


def _letters(draw: random.Random) -> Item:
    word = draw.choice(ALL).lower()
    return word, str(len(word)), _near(draw, len(word))


def _last(draw: random.Random) -> Item:
    word = draw.choice([w for w in ALL if w[-1] != w[-2]]).lower()
    return word, word[-1], word[-2]


def _kind(draw: random.Random) -> Item:
    kind, other = draw.sample(sorted(KINDS_OF), 2)
    return draw.choice(KINDS_OF[kind].split()), kind, other


def _opposite(draw: random.Random) -> Item:
    word = draw.choice(sorted(OPPOSITES))
    return word, OPPOSITES[word], draw.choice([w for k, w in OPPOSITES.items() if k != word])


def _next(draw: random.Random) -> Item:
    start, step = draw.randint(1, 30), draw.randint(2, 9)
    right = start + 4 * step
    return ", ".join(str(start + i * step) for i in range(4)), str(right), _near(draw, right)


EXAM: dict[str, tuple[str, Callable[[random.Random], Item]]] = {
    "sum": ("Add the two numbers.", _sum),
    "product": ("Multiply the two numbers.", _product),
    "larger": ("Give the larger number.", _larger),
    "letters": ("Count the letters of the word.", _letters),
    "last": ("Give the last letter of the word.", _last),
    "kind": ("Say whether it is an animal, a fruit, a metal, a flower or a tool.", _kind),
    "opposite": ("Give the word with the opposite meaning.", _opposite),
    "next": ("Give the number that comes next.", _next),
}  # name -> (instruction, maker)


@dataclass(frozen=True)
class LongIns(Task):
    """An answered exam; the numbers of the questions with a wrong answer are to be found."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="longins",
        summary="which questions of a long answered exam have a wrong answer",
        diffusion="medium",
        scope="high",
        metric="f1",
        papers=(119,),
        source="LongIns (Gavin et al. 2024), section 3 and eval.py: 10% wrong answers, F1 of their numbers",
        simplified="eight generated kinds of question in place of seven task types from two instruction sets",
        test="tests/oracle/test_tasks_longins.py",
    )

    setting: Literal["gist", "list", "limt"] = param(
        "list", "gist: one kind, its instruction once at the top; list: at every question; limt: list, many kinds"
    )
    wrong: float = param(0.1, "share of wrong answers, about; at least one is wrong")

    def validate(self) -> None:
        """A share."""
        self.require(0 <= self.wrong < 1, "wrong must be 0 or more and below 1")

    def build(self, room: Room, depth: float | None) -> Sample:
        """As many questions as fit."""
        kind = room.draw.choice(sorted(EXAM))

        def item(draw: random.Random, index: int) -> tuple[str, Item, float]:
            instruction, maker = EXAM[draw.choice(sorted(EXAM)) if self.setting == "limt" else kind]
            return instruction, maker(draw), draw.random()

        items = stream(room.draw.random(), item)

        def make(count: int) -> Sample:
            exam = items.take(count)
            luck = min(u for _, _, u in exam)
            document = f"Instruction for all questions: {EXAM[kind][0]}" if self.setting == "gist" else ""
            errors = []
            for number, (instruction, (asked, right, wrong), u) in enumerate(exam, 1):
                given = right
                if u < self.wrong or u == luck:
                    given = wrong
                    errors.append(number)
                told = "" if self.setting == "gist" else f"{instruction[:-1]}: "
                document += f"\nQuestion {number}: {told}{asked}. Answer: {given}."
            question = "Which questions have a wrong answer? Give all their numbers, as in: 2, 5, 9."
            answer = f" {', '.join(map(str, errors))}."
            return Sample(document, question, answer, errors, "The wrong ones are", meta={"questions": count})

        return room.fit(make, 2)

    def score(self, answer: str, sample: Sample) -> Scores:
        """Precision, recall and F1 of the numbers; those in square brackets when the answer has any."""
        text = final(answer)
        given = set(integers(" ".join(re.findall(r"\[([^\]]*)\]", text)) or text))
        right = set(sample.reference)
        hits = len(given & right)
        precision = hits / len(given) if given else 0.0
        recall = hits / len(right)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        return {"f1": f1, "precision": precision, "recall": recall}
