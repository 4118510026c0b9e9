"""Which stack is best for what it costs: standings over all samples, or those of one length or one task."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lengthwise.bench.store import Row
from lengthwise.bench.summary import COSTS, Cell, Quality, cell, leaders, quality, sample_id

MARGIN = 0.05  # of the mean score, that a cheaper stack may lose to the best


@dataclass(frozen=True)
class Standing:
    """One stack among all. `front` names the costs for which no other stack is both better and cheaper.

    A sample that failed or was refused counts as 0 here. A stack that answered nothing at some task and length that
    others did answer is not `complete`: its costs are of easier samples, so it is on no front.
    """

    stack: str
    quality: Quality
    samples: int
    answered: int
    complete: bool
    tied: bool
    costs: dict[str, float | None]
    front: frozenset[str] = frozenset()

    @property
    def mean(self) -> float:
        """The mean score."""
        return self.quality.mean or 0.0


@dataclass(frozen=True)
class Slice:
    """Standings over some of the samples, best first. `cheaper`: by cost, the cheapest stack that is about as good."""

    group: str
    label: str
    standings: list[Standing]
    cheaper: dict[str, Standing]

    @property
    def best(self) -> Standing:
        """The highest mean."""
        return self.standings[0]


def slices(rows: list[Row]) -> list[Slice]:
    """Over everything, then for each length and each task where there are several. No slice without an answer."""
    out = [_slice("", "all tasks and lengths", rows)]
    lengths = sorted({row["length"] for row in rows}, key=lambda n: n or 0)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if len(lengths) > 1:
        out += [
            _slice("Length", "own length" if n is None else f"{n:,} tokens", [r for r in rows if r["length"] == n])
            for n in lengths
        ]
    if len(tasks) > 1:
        out += [_slice("Task", task, [r for r in rows if r["task"] == task]) for task in tasks]
    return [s for s in out if s.standings]


def _slice(group: str, label: str, rows: list[Row]) -> Slice:
    """A task and length that no stack answered says nothing of any, and is left out."""
    answered = {(r["task"], r["length"]) for r in rows if r["status"] == "done"}
    by_stack: dict[str, list[Row]] = {}
    for row in rows:
        if (row["task"], row["length"]) in answered:
            by_stack.setdefault(row["stack"], []).append(row)
    cells = {stack: _with_zeros(stack, own) for stack, own in by_stack.items()}
    top = leaders(list(cells.values()))
    standings = [
        Standing(
            stack=stack,
            quality=c.quality,
            samples=c.n + c.failed + c.refused,
            answered=c.n,
            complete=answered == {(r["task"], r["length"]) for r in by_stack[stack] if r["status"] == "done"},
            tied=stack in top,
            costs={kind: get(c.cost) for kind, (_, get) in COSTS.items()},
        )
        for stack, c in cells.items()
    ]
    standings = [replace(s, front=frozenset(k for k in COSTS if on_front(s, standings, k))) for s in standings]
    standings.sort(key=lambda s: (-s.mean, s.costs["cpu"] or 0.0))
    return Slice(group, label, standings, {kind: s for kind in COSTS for s in _cheaper(standings, kind)})


def _with_zeros(stack: str, rows: list[Row]) -> Cell:
    scores = {sample_id(row): float(row["score"]) if row["status"] == "done" else 0.0 for row in rows}
    return replace(cell(stack, "", None, None, rows), scores=scores, quality=quality(list(scores.values())))


def on_front(one: Standing, standings: list[Standing], kind: str) -> bool:
    """Whether no complete stack is at least as good and as cheap, and better in one of both."""
    mine = one.costs[kind]
    if mine is None or not one.complete:
        return False
    for other in standings:
        theirs = other.costs[kind]
        if theirs is None or not other.complete:
            continue
        if other.mean >= one.mean and theirs <= mine and (other.mean > one.mean or theirs < mine):
            return False
    return True


def _cheaper(standings: list[Standing], kind: str) -> list[Standing]:
    """At most one: the cheapest complete stack that loses at most MARGIN to the best and is cheaper than it."""
    limit = standings[0].costs[kind] if standings else None
    able = []
    for one in standings[1:]:
        cost = one.costs[kind]
        close = one.tied and one.mean >= standings[0].mean - MARGIN  # a tie of few samples alone is no advice
        if close and one.complete and cost is not None and limit is not None and cost < limit:
            able.append((cost, one))
    return [min(able, key=lambda pair: pair[0])[1]] if able else []
