"""LongProc: long answers that follow a procedure exactly: table extraction and path traversal."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from lengthwise.bench.procedures import agreement
from lengthwise.bench.stream import final, names, stream
from lengthwise.bench.task import Room, Sample, Scores, Task, TaskSpec, scatter
from lengthwise.bench.words import CITIES, PEOPLE, TRAITS
from lengthwise.core.spec import param
from lengthwise.errors import BadInput

T = TypeVar("T")
SOURCE = (
    "LongProc (Ye et al. 2025), section 3 and the evaluators of its repository; answers of 500, 2,000, 8,000 tokens"
)
TEST = "tests/oracle/test_tasks_longproc.py"
STOP = ("\nQuestion:",)
TRANSPORT = ("bus", "train", "plane", "ferry")


def lines_of(answer: str) -> list[str]:
    """The lines of an answer that are not empty, without what it thought before."""
    return [line.strip() for line in final(answer).splitlines() if line.strip()]


def within(
    room: Room, tokens: int, make: Callable[[int], T], answer: Callable[[T], str], least: int = 1, most: int = 1000
) -> T:
    """make(n) for the largest n from least to most whose answer has at most `tokens` tokens.

    Raises BadInput when that of make(least) has more.
    """
    empty = room.size(Sample("", "", "", None))

    def size(n: int) -> int:
        return room.size(Sample("", "", answer(made(n)), None)) - empty

    seen: dict[int, T] = {}

    def made(n: int) -> T:
        if n not in seen:
            seen[n] = make(n)
        return seen[n]

    if size(least) > tokens:
        raise BadInput(f"the shortest answer has {size(least)} tokens: ask for a larger output than {tokens}")
    low, high = least, least + 1
    while high <= most and size(high) <= tokens:
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= tokens else (low, middle)
    return made(low)


@dataclass(frozen=True)
class Procedure(Task):
    """What the procedures share: the dial for the answer's length."""

    output: int = param(500, "tokens of the answer, at most")

    def validate(self) -> None:
        """A positive length."""
        self.require(self.output >= 1, "output must be at least 1")


@dataclass(frozen=True)
class LongProcTable(Procedure):
    """The rows of a web page that meet a condition, as tab-separated values."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="longproc-table",
        summary="extract rows of a long HTML page as tab-separated values",
        diffusion="medium",
        scope="high",
        metric="f1",
        papers=(14,),
        source=SOURCE,
        simplified="generated pages; F1 of whole rows, in any order, as published",
        test=TEST,
    )

    def build(self, room: Room, depth: float | None) -> Sample:
        """The rows asked for by `output`, and as many others as fit."""
        city, who, seed = room.draw.choice(CITIES), names(room.draw.random()), room.draw.random()

        def row(draw: random.Random, index: int) -> tuple[list[str], float]:
            return [draw.choice(PEOPLE), str(draw.randint(3, 99)), draw.choice(TRAITS)], draw.random()

        def page(name: str, town: str, cells: list[str]) -> str:
            seller, price, look = cells
            return f'\n<li class="{look}"><b>{name}</b> by <i>{seller}</i>, sent from {town}: {price} coins</li>'

        asked, others = stream(seed, row), stream(seed + 1, row)
        header = "item\tseller\tprice"

        def table(count: int) -> list[list[str]]:
            told = zip(who.take(count), asked.take(count), strict=True)
            rows = sorted((depth, [name, *cells]) for name, (cells, depth) in told)
            return [cells for _, cells in rows]

        def written(rows: list[list[str]]) -> str:
            return "".join("\n" + "\t".join([name, seller, f"{price} coins"]) for name, seller, price, _ in rows)

        wanted = within(room, self.output, table, written)
        depths = sorted(d for _, d in asked.take(len(wanted)))
        facts = [(d, page(cells[0], city, cells[1:])) for d, cells in zip(depths, wanted, strict=True)]

        def make(count: int) -> Sample:
            fill = zip(who.take(len(wanted) + count)[len(wanted) :], others.take(count), strict=True)
            towns = random.Random(seed)
            pieces = [page(n, towns.choice([c for c in CITIES if c != city]), cells) for n, (cells, _) in fill]
            body, spans = scatter(pieces, facts)
            head = "<html><body><ul>"
            return Sample(
                f"{head}{body}\n</ul></body></html>",
                f"List all items of the page that are sent from {city}, in its order, as tab-separated values: a line "
                f"with the item's name, its seller and its price as written. Begin with the line '{header}'.",
                written(wanted),
                [[*cells[:2], f"{cells[2]} coins"] for cells in wanted],
                f"\n{header}",
                STOP,
                needles=tuple((a + len(head), b + len(head)) for a, b in spans),
            )

        return room.fit(make)

    def score(self, answer: str, sample: Sample) -> Scores:
        """Precision, recall and F1 of whole rows, ignoring case, spaces and punctuation."""

        def bare(cells: list[str]) -> tuple[str, ...]:
            return tuple(re.sub(r"\W", "", cell.lower()) for cell in cells)

        read = [bare(line.split("\t")) for line in lines_of(answer) if "\t" in line]
        given = [cells for cells in read if cells != ("item", "seller", "price")]
        right = [bare(cells) for cells in sample.reference]
        precision = sum(g in right for g in given) / len(given) if given else 0.0
        recall = sum(r in given for r in right) / len(right)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {"f1": f1, "precision": precision, "recall": recall}


@dataclass(frozen=True)
class LongProcPath(Procedure):
    """A route through places that each lead to one other."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        name="longproc-path",
        summary="the route between two places that each lead to one other",
        diffusion="medium",
        scope="medium",
        metric="accuracy",
        papers=(14,),
        source=SOURCE,
        simplified="generated places; `partial` is the share of lines before the first wrong one",
        test=TEST,
    )

    def build(self, room: Room, depth: float | None) -> Sample:
        """A route of about `output` tokens, and as many other connections as fit."""
        who, seed = names(room.draw.random()), room.draw.random()
        rides = stream(seed, lambda draw, _: (draw.choice(TRANSPORT), draw.random(), draw.random()))

        def route(count: int) -> list[str]:
            stops = itertools.pairwise(who.take(count + 1))
            return [
                f"From {a} take the {ride[0]} to {b}." for (a, b), ride in zip(stops, rides.take(count), strict=True)
            ]

        def written(lines: list[str]) -> str:
            return "".join(f"\n{line}" for line in lines)

        right = within(room, self.output, route, written, least=2)
        stops = who.take(len(right) + 1)

        def connection(a: str, b: str, by: str) -> str:
            return f" From {a} one gets to {b} by {by}."

        facts = [
            (ride[1], connection(a, b, ride[0]))
            for (a, b), ride in zip(itertools.pairwise(stops), rides.take(len(right)), strict=True)
        ]

        def make(count: int) -> Sample:
            every, ride = who.take(len(stops) + count), rides.take(len(right) + count)[len(right) :]
            others = [
                connection(a, every[int(to * len(every))], by)
                for a, (by, _, to) in zip(every[len(stops) :], ride, strict=True)
            ]
            document, spans = scatter(others, facts)
            return Sample(
                document,
                f"What is the route from {stops[0]} to {stops[-1]}? Write one connection a line, as in: "
                "From here take the bus to there.",
                written(right),
                right,
                "",
                STOP,
                needles=spans,
                meta={"steps": len(right)},
            )

        return room.fit(make)

    def score(self, answer: str, sample: Sample) -> Scores:
        """Whether the lines 'From ...' are the route, and the share of it before the first wrong line."""
        given = [line for line in lines_of(answer) if line.lower().startswith("from ")]
        partial = agreement(given, sample.reference)
        return {"accuracy": float(partial == 1 and len(given) == len(sample.reference)), "partial": partial}
