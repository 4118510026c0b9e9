"""LIConBench: learn to name many classes from demonstrations in the context."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lengthwise.bench.stream import final, names, stream
from lengthwise.bench.task import Room, Sample, Scores, Task, TaskSpec
from lengthwise.bench.words import ACTS, CITIES, PEOPLE, THINGS, TRAITS, WHEN
from lengthwise.core.spec import param

TEST = "tests/oracle/test_tasks_licon.py"
SOURCE = (
    "LIConBench (Li et al. 2024), section 3, and its study of grouped demonstrations: 28 to 174 classes, rounds of "
    "one example a class"
)
SIMPLIFIED = "generated texts, whose class is what is done to which thing, in place of six data sets; accuracy only"


@dataclass(frozen=True)
class Licon(Task):
    """Rounds of demonstrations, each round one of every class in a new order; a new text is to be named."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="licon",
        summary="name a text's class, one of many, learned from demonstrations in rounds",
        diffusion="medium",
        scope="high",
        metric="accuracy",
        papers=(124,),
        source=SOURCE,
        simplified=SIMPLIFIED,
        chance=1 / 28,
        test=TEST,
    )

    classes: int = param(28, "number of classes, 2 to 174")
    labels: Literal["codes", "names"] = param("codes", "codes say nothing of the text; names say what makes the class")

    def validate(self) -> None:
        """Two to 174 classes."""
        self.require(2 <= self.classes <= 174, "classes must be 2 to 174")

    def build(self, room: Room, depth: float | None) -> Sample:
        """As many demonstrations as fit, at least one of every class."""
        return self._build(room, None)

    def _build(self, room: Room, depth: float | None) -> Sample:
        draw = room.draw
        side = math.ceil(math.sqrt(self.classes))
        pairs = list(itertools.product(draw.sample(ACTS, side), draw.sample(THINGS, side)))
        kinds = draw.sample(pairs, self.classes)
        codes = names(draw.random()).take(self.classes)
        labels = [f"{act} {thing}" for act, thing in kinds] if self.labels == "names" else codes
        asked = draw.randrange(self.classes)
        text = _tell(draw, *kinds[asked])

        def one_round(draw: random.Random, index: int) -> list[tuple[int, str]]:
            order = draw.sample(range(self.classes), self.classes)
            return [(k, f"\nText: {_tell(draw, *kinds[k])} Class: {labels[k]}.") for k in order]

        rounds = stream(draw.random(), one_round)
        grouped = draw.sample([k for k in range(self.classes) if k != asked], self.classes - 1)
        if depth is not None:
            grouped.insert(round(depth * len(grouped)), asked)

        def make(count: int) -> Sample:
            shots = [s for r in rounds.take(math.ceil(count / self.classes)) for s in r][:count]
            if depth is not None:
                shots.sort(key=lambda shot: grouped.index(shot[0]))
            ends = list(itertools.accumulate(len(t) for _, t in shots))
            spans: dict[int, list[tuple[int, int]]] = {k: [] for k in range(self.classes)}
            for (k, told), end in zip(shots, ends, strict=True):
                spans[k].append((end - len(told), end))
            size = max(1, ends[-1])
            places = {labels[k]: round(sum(map(sum, s)) / 2 / len(s) / size, 3) for k, s in spans.items()}
            needle = (spans[asked][0][0], spans[asked][-1][1]) if depth is not None else spans[asked][-1]
            return Sample(
                "".join(t for _, t in shots),
                f"What is the class of this text? Text: {text}",
                f" {labels[asked]}.",
                {"label": labels[asked], "places": places},
                "Class:",
                needles=(needle,),
                meta={"demonstrations": count, "place": places[labels[asked]]},
            )

        return room.fit(make, self.classes)

    def score(self, answer: str, sample: Sample) -> Scores:
        """Whether the first label that the answer names is the right one."""
        return {"accuracy": float(_named(answer, sample.reference["places"]) == sample.reference["label"])}


@dataclass(frozen=True)
class LiconGrouped(Licon):
    """The same demonstrations sorted by class, the asked-for class at the depth."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="licon-grouped",
        summary="name a text's class, one of many, from demonstrations sorted by class",
        diffusion="medium",
        scope="low",
        metric="accuracy",
        papers=(124,),
        source=SOURCE,
        simplified=SIMPLIFIED,
        chance=1 / 28,
        deep=True,
        test=TEST,
    )

    def build(self, room: Room, depth: float | None) -> Sample:
        """As many demonstrations as fit, at least one of every class."""
        return self._build(room, room.draw.random() if depth is None else depth)


def _tell(draw: random.Random, act: str, thing: str) -> str:
    who, where = draw.choice(PEOPLE), draw.choice(CITIES)
    return f"{draw.choice(WHEN).capitalize()} {who} of {where} {act} a {draw.choice(TRAITS)} {thing}."


def _named(answer: str, labels: Iterable[str]) -> str | None:
    """The label that the answer names first, if any."""
    text = " ".join(final(answer).lower().split())
    found = {lb: re.search(rf"(?<!\w){re.escape(lb.lower())}(?!\w)", text) for lb in labels}
    at = {label: match.start() for label, match in found.items() if match}
    return min(at, key=lambda label: (at[label], -len(label)), default=None)


def position_bias(rows: Iterable[Mapping[str, Any]], bins: int = 4) -> dict[str, Any]:
    """How results depend on where a label's demonstrations stand: rows of `licon` or `licon-grouped`.

    `accuracy` and `count` are by the place of the right label, in `bins` equal parts of the demonstrations (None where
    there is no row); `lean` is the mean place of the predicted labels less that of the right ones, in [-1, 1]: positive
    when the model favours labels that stand later. Rows that name no known label count as wrong and not for `lean`.
    """
    right: list[list[float]] = [[] for _ in range(bins)]
    moves = []
    for row in rows:
        reference = row["reference"]
        places, label = reference["places"], reference["label"]
        named = _named(row["answer"], places)
        right[min(bins - 1, int(places[label] * bins))].append(float(named == label))
        if named is not None:
            moves.append(places[named] - places[label])
    return {
        "accuracy": [sum(r) / len(r) if r else None for r in right],
        "count": [len(r) for r in right],
        "lean": sum(moves) / len(moves) if moves else None,
    }
