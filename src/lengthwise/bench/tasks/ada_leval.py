"""Ada-LEval: put shuffled segments of a text in order, and choose the best of many answers."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lengthwise.bench.stream import final, integers, names, stream
from lengthwise.bench.task import Room, Sample, Scores, Task, TaskSpec
from lengthwise.bench.words import CITIES, PEOPLE, THINGS, TRAITS
from lengthwise.core.spec import param

TEST = "tests/oracle/test_tasks_ada_leval.py"


@dataclass(frozen=True)
class TSort(Task):
    """A text whose middle is cut into segments and shuffled; what goes before and after them is given."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="tsort",
        summary="put the shuffled segments of a text back in order",
        diffusion="medium",
        scope="high",
        metric="accuracy",
        papers=(130,),
        source="Ada-LEval (Wang et al. 2024), section 3: 4 segments, exact order, guessing 4.2%",
        simplified="a generated journey (or the haystack, with text=haystack) in place of books of Project Gutenberg",
        chance=1 / 24,
        test=TEST,
    )

    segments: int = param(4, "segments to put in order")
    text: Literal["journey", "haystack"] = param("journey", "what is cut: a generated journey, or the haystack's text")

    def validate(self) -> None:
        """Two to nine segments."""
        self.require(2 <= self.segments <= 9, "segments must be 2 to 9")

    def build(self, room: Room, depth: float | None) -> Sample:
        """As many stages of the journey as fit, in equal parts: one before, the segments, one after."""
        order = room.draw.sample(range(self.segments), self.segments)  # the segment shown k-th is order[k]
        places, who = names(room.draw.random()), room.draw.choice(PEOPLE)
        right = [order.index(k) + 1 for k in range(self.segments)]

        def stages(count: int) -> list[str]:
            sentences = room.filler.take(2 * count)
            if self.text == "haystack":
                return ["".join(sentences[2 * i : 2 * i + 2]) for i in range(count)]
            stops = places.take(count + 1)
            hops = [f" From the {a} {who} went on to the {b}." for a, b in itertools.pairwise(stops)]
            return [hop + "".join(sentences[2 * i : 2 * i + 2]) for i, hop in enumerate(hops)]

        def make(count: int) -> Sample:
            parts = self.segments + 2
            cuts = [count * i // parts for i in range(parts + 1)]
            told = stages(count)
            pieces = ["".join(told[a:b]) for a, b in itertools.pairwise(cuts)]
            shown = [f"\nSegment {k + 1}:{pieces[1 + order[k]]}" for k in range(self.segments)]
            document = f"Before:{pieces[0]}{''.join(shown)}\nAfter:{pieces[-1]}"
            example = ", ".join(str(n) for n in range(self.segments, 0, -1))
            question = (
                f"The {self.segments} segments between 'Before' and 'After' are out of order. In which order do they "
                f"make one text? Give their numbers, first to last, as in: {example}."
            )
            return Sample(document, question, f" {', '.join(map(str, right))}.", right, "The order is", spare=16)

        return room.fit(make, self.segments + 2)

    def score(self, answer: str, sample: Sample) -> Scores:
        """Whether the first run of numbers that is an order of the segments is the right one.

        Numbers with nothing but signs between them go first, so that '4 segments: 2, 1, 4, 3' is read as it is meant.
        """
        size, text = len(sample.reference), final(answer)
        lists = [integers(part) for part in re.split(r"[^\W\d]+", text)]
        runs = [given[i : i + size] for given in [*lists, integers(text)] for i in range(len(given) - size + 1)]
        found = next((run for run in runs if sorted(run) == list(range(1, size + 1))), None)
        return {"accuracy": float(found == sample.reference)}


@dataclass(frozen=True)
class _Offer:
    trait: str
    city: str
    price: int
    days: int

    def meets(self, wish: _Offer) -> bool:
        return (
            (self.trait, self.city) == (wish.trait, wish.city) and self.price <= wish.price and self.days <= wish.days
        )


@dataclass(frozen=True)
class BestAnswer(Task):
    """A wish of four parts and many numbered answers, of which one meets them all and the others all but one or two."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="best-answer",
        summary="the one of many answers to a question that meets all that is asked",
        diffusion="medium",
        scope="high",
        metric="accuracy",
        papers=(130,),
        source="Ada-LEval (Wang et al. 2024), section 3: the number of the answer, accuracy",
        simplified="generated offers in place of Stack Overflow answers; guessing scores 1 / meta['candidates']",
        deep=True,
        test=TEST,
    )

    def build(self, room: Room, depth: float | None) -> Sample:
        """As many wrong answers as fit, the right one at the depth."""
        draw = room.draw
        where = draw.random() if depth is None else depth
        thing = draw.choice(THINGS)
        wish = _Offer(draw.choice(TRAITS), draw.choice(CITIES), draw.randint(40, 60), draw.randint(5, 8))
        right = _Offer(wish.trait, wish.city, wish.price - draw.randint(0, 9), wish.days - draw.randint(0, 3))

        def tell(offer: _Offer, draw: random.Random) -> str:
            parts = [f"It costs {offer.price} coins.", f"It takes {offer.days} days.", f"It is sent to {offer.city}."]
            draw.shuffle(parts)
            return f" {draw.choice(PEOPLE)} sells a {offer.trait} {thing}. {' '.join(parts)}"

        def wrong(draw: random.Random, index: int) -> str:
            broken = draw.sample(range(4), draw.randint(1, 2))  # which parts of the wish it misses
            offer = _Offer(
                _other(TRAITS, wish.trait, draw) if 0 in broken else wish.trait,
                _other(CITIES, wish.city, draw) if 1 in broken else wish.city,
                wish.price + (draw.randint(1, 20) if 2 in broken else -draw.randint(0, 9)),
                wish.days + (draw.randint(1, 6) if 3 in broken else -draw.randint(0, 3)),
            )
            return tell(offer, draw)

        others, told = stream(draw.random(), wrong), tell(right, random.Random(draw.random()))
        asked = (
            f"Which answer offers a {wish.trait} {thing} that is sent to {wish.city}, costs at most {wish.price} coins "
            f"and takes at most {wish.days} days?"
        )

        def make(count: int) -> Sample:
            at = round(where * count)
            texts = others.take(count)
            lines = [f"\nA{i + 1}:{t}" for i, t in enumerate([*texts[:at], told, *texts[at:]])]
            head = f"A question: {asked} Its answers:"
            start = len(head) + sum(map(len, lines[:at]))
            return Sample(
                head + "".join(lines),
                f"{asked} Only one does. Give its number.",
                f"{at + 1}.",
                at + 1,
                "The best answer is A",
                needles=((start, start + len(lines[at])),),
                meta={"candidates": count + 1},
            )

        return room.fit(make, 1)

    def score(self, answer: str, sample: Sample) -> Scores:
        """Whether the first number of the answer is the right one's."""
        return {"accuracy": float(integers(final(answer))[:1] == [sample.reference])}


def _other(words: Sequence[str], than: str, draw: random.Random) -> str:
    return draw.choice([w for w in words if w != than])
