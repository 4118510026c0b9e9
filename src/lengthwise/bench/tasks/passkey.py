"""The pass key in repetitive noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lengthwise.bench.filler import filler
from lengthwise.bench.keys import digits
from lengthwise.bench.phrases import Query
from lengthwise.bench.score import recall
from lengthwise.bench.task import Room, Sample, Scores, Task, TaskSpec


@dataclass(frozen=True)
class PassKey(Task):
    """One key of five digits, stated twice in a row, in four sentences of noise that repeat without end."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="passkey",
        summary="one pass key in sentences that repeat, whatever the haystack",
        diffusion="low",
        scope="low",
        deep=True,
        source="Landmark Attention (Mohtashami & Jaggi 2023), in our own words",
        test="tests/oracle/test_tasks_needle.py",
    )

    def build(self, room: Room, depth: float | None) -> Sample:
        """The haystack of the room is put aside: the noise belongs to the task."""
        draw = room.draw
        key = digits(draw, 5)
        where = draw.random() if depth is None else depth
        noise = replace(room, filler=filler("noise", draw))
        query = Query("Which number is the pass key? Answer with the number.", "The pass key is", f" {key}.")
        return noise.fill(
            [(where, f" The pass key is {key}. Keep it in mind. {key} is the pass key.")],
            lambda document, spans: Sample(document, query.question, query.answer, [key], query.prefix, needles=spans),
        )

    def score(self, answer: str, sample: Sample) -> Scores:
        """Whether the answer holds the pass key."""
        return {"recall": recall(answer, sample.reference)}
