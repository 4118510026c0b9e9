"""MIR-Bench: infer a function from many input-output examples and apply it."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lengthwise.bench.programs import Value, example, program, write
from lengthwise.bench.stream import final, stream
from lengthwise.bench.task import Room, Sample, Scores, Task, TaskSpec
from lengthwise.core.spec import param


@dataclass(frozen=True)
class Mir(Task):
    """Shots of a generated program, of which a share may be wrong; the output of a new input is asked for."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="mir",
        summary="infer a program from many examples, some of them wrong if asked, and apply it",
        diffusion="high",
        scope="medium",
        metric="accuracy",
        papers=(106,),
        source="MIR-Bench (Yan et al. 2025), section 3, and its study of erroneous shots: exact match",
        simplified="generated compositions of list and string steps in place of 693 functions taken from coding tests; "
        "shots fill the length instead of being 4 to 2,048",
        test="tests/oracle/test_tasks_mir.py",
    )

    data: Literal["list", "string", "mixed"] = param("mixed", "what the program works on; mixed: drawn")
    steps: int = param(2, "steps of the program, 1 to 6")
    errors: float = param(0.0, "share of shots with a wrong output, about")

    def validate(self) -> None:
        """One to six steps; a share below one."""
        self.require(1 <= self.steps <= 6, "steps must be 1 to 6")
        self.require(0 <= self.errors < 1, "errors must be 0 or more and below 1")

    def build(self, room: Room, depth: float | None) -> Sample:
        """As many shots as fit; none of them has the asked-for input."""
        draw = room.draw
        domain: Literal["list", "string"] = (
            self.data if self.data != "mixed" else ("list" if draw.random() < 0.5 else "string")
        )
        made = program(domain, self.steps, draw)

        def fresh(draw: random.Random) -> Value:
            while (value := example(domain, draw)) == asked:
                pass
            return value

        def shot(draw: random.Random, index: int) -> tuple[str, bool]:
            value, bad = fresh(draw), draw.random() < self.errors
            output = made(value)
            while bad and output == made(value):  # the output of another input is a wrong one of the right kind
                output = made(fresh(draw))
            return f"\nInput: {write(value)} Output: {write(output)}", bad

        asked: Value = example(domain, draw)
        while made(asked) in ([], "", asked):
            asked = example(domain, draw)
        right, shots = made(asked), stream(draw.random(), shot)

        def make(count: int) -> Sample:
            told = shots.take(count)
            return Sample(
                "".join(t for t, _ in told),
                f"What is the output of the same function for the input {write(asked)}?",
                f" {write(right)}",
                {"input": asked, "output": right},
                "Output:",
                meta={"shots": count, "wrong": sum(bad for _, bad in told), "program": list(made.about)},
            )

        return room.fit(make, 1)

    def score(self, answer: str, sample: Sample) -> Scores:
        """Whether the first value in the answer of the kind asked for is the right one."""
        return {"accuracy": float(_read(final(answer), sample.reference["output"]))}


def _read(text: str, right: Any) -> bool:
    if isinstance(right, list):
        found = re.search(r"\[([^\[\]]*)\]", text)
        return found is not None and [n.strip() for n in found[1].split(",")] == [str(n) for n in right]
    if isinstance(right, int):
        number = re.search(r"-?\d+", text)
        return number is not None and int(number[0]) == right
    quoted = re.search(r"[\"'`]([^\"'`\n]*)[\"'`]", text)
    return (quoted[1] if quoted else text.strip().rstrip(".")) == str(right)
