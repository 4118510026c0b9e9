"""Many problems from a file: several at once, a row each as soon as it is there, resumable."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lengthwise.bench.store import VERSION, Row, Store
from lengthwise.errors import BadInput, LengthwiseError
from lengthwise.thinking import registry
from lengthwise.thinking._think import think
from lengthwise.thinking.answers import Extract, tidy
from lengthwise.thinking.chain import DEFAULT, Messages, Sampler, Settings
from lengthwise.thinking.strategy import Strategy
from lengthwise.thinking.work import Spent

FAILURES = 3  # in a row (or as many as are under way): the others would fail alike
MESSAGE = '{"problem": ...} or {"messages": [{"role": "user", "content": ...}]}'


@dataclass(frozen=True)
class Problem:
    """A problem of a file. `id` is the line's number where none is given; `answer` the right one, None if not known."""

    id: str
    messages: Messages
    answer: str | None = None
    line: int = 0


def read_problems(path: str | Path) -> tuple[list[Problem], list[tuple[int, str]]]:
    """The problems of a JSONL file, and (line, what is wrong) of the lines that are none.

    A line is {"problem": ..., "id"?: ..., "answer"?: ...}, or has "messages" instead of "problem"; a row of `think_all`
    is a problem, too, with the answer that was expected. Empty lines are left out. Raises BadInput when the file cannot
    be read or has no problem at all.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text") from error
    problems: dict[str, Problem] = {}
    broken: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            problem = _problem(line, number)
            if problem.id in problems:
                raise BadInput(f"its id '{problem.id}' is that of line {problems[problem.id].line}")
            problems[problem.id] = problem
        except BadInput as error:
            broken.append((number, str(error)))
    if not problems:
        why = f" (line {broken[0][0]}: {broken[0][1]})" if broken else ""
        raise BadInput(f"{path} has no problem, a line of JSON such as {MESSAGE}{why}")
    return list(problems.values()), broken


def _problem(line: str, number: int) -> Problem:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(f"it is not JSON ({error})") from error
    if not isinstance(row, dict) or ("problem" in row) == ("messages" in row):
        raise BadInput(f"it must be {MESSAGE}")
    messages = row["messages"] if "messages" in row else [{"role": "user", "content": row["problem"]}]
    ok = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not ok or not messages or not messages[-1]["content"].strip():
        raise BadInput("its problem is no text" if "problem" in row else "its messages are not texts with roles")
    if messages[-1]["role"] != "user":
        raise BadInput("its last message is not the user's")
    for name in ("id", "answer"):
        if not isinstance(row.get(name), (str, int, float, type(None))):
            raise BadInput(f'its "{name}" is neither a text nor a number')
    answer = row["expected"] if "chains" in row and "expected" in row else row.get("answer")
    return Problem(str(row.get("id", number)), messages, None if answer is None else str(answer), number)


def same_answer(given: str, expected: str) -> bool:
    """Whether two answers are one but for case, blanks, a full stop at the end and commas between thousands."""
    return bool(given.strip()) and tidy(given).casefold() == tidy(expected).casefold()


@dataclass(frozen=True)
class Batch:
    """What became of the problems: a row each, in their order; `left` were not tried, `resumed` there before."""

    rows: list[Row]
    resumed: int = 0
    left: int = 0
    spent: Spent = field(default_factory=Spent)

    @property
    def failed(self) -> list[Row]:
        """The rows of problems that ended with an error."""
        return [row for row in self.rows if row["status"] == "failed"]

    @property
    def accuracy(self) -> tuple[int, int]:
        """(right answers, problems with a known answer that were worked on)."""
        known = [row["right"] for row in self.rows if row["right"] is not None]
        return sum(known), len(known)


async def think_all(
    problems: Sequence[Problem],
    sampler: Sampler,
    strategy: str | Sequence[Strategy] = registry.PLAIN,
    *,
    out: str | Path | None = None,
    concurrency: int = 8,
    settings: Settings = DEFAULT,
    most_thinking: int = 4096,
    most_answer: int = 512,
    extract: Extract = "auto",
    where: Mapping[str, str] | None = None,
    progress: Callable[[Row, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Batch:
    """Think about every problem, `concurrency` of them at a time, as `lengthwise.thinking.think` does about one.

    Rows go to `out` one by one, written through. A problem whose row is there, of the same strategy, model and settings
    (and `where`: what else tells runs apart), is not run again unless it failed: rows of other runs are kept beside it.
    A problem that fails is a row with its error, and the others go on; when many fail in a row, the rest is left,
    and comes first in the next run.
    `progress` gets each new row and how many are to come; `stop` is asked before each problem. Raises StackRefused, and
    OSError when `out` cannot be written.
    """
    if concurrency < 1:
        raise BadInput("at least one problem must be worked on at a time")
    strategies = registry.parse(strategy) if isinstance(strategy, str) else list(strategy)
    registry.check(strategies, sampler)
    run = {
        "strategy": registry.format_strategies(strategies),
        "model": sampler.name,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
        "most_thinking": most_thinking,
        "most_answer": most_answer,
        "extract": extract,
        **(where or {}),
    }
    keys = {_key(problem, run): problem for problem in problems}
    store = None if out is None else Store(Path(out))
    there = set() if store is None else store.done()
    rows: dict[str, Row] = {} if store is None else {row["key"]: row for row in store.rows if row["key"] in keys}
    todo = sorted((key for key in keys if key not in there), key=lambda key: key in rows)  # what failed before: last
    coming, in_a_row, left = iter(todo), 0, len(todo)

    async def work() -> None:
        nonlocal in_a_row, left
        for key in coming:
            if in_a_row >= max(FAILURES, concurrency) or (stop is not None and stop()):
                return
            problem = keys[key]
            row: Row = {"version": VERSION, "key": key, "id": problem.id, "line": problem.line, **run}
            row |= {
                "messages": [dict(m) for m in problem.messages],
                "status": "done",
                "error": "",
                "expected": problem.answer,
                "right": None,
            }
            try:
                thought = await think(
                    problem.messages,
                    sampler,
                    strategies,
                    settings=settings,
                    most_thinking=most_thinking,
                    most_answer=most_answer,
                    extract=extract,
                )
                row |= thought.to_json()
                if problem.answer is not None:
                    row["right"] = same_answer(thought.answer, problem.answer)
                in_a_row = 0
            except Exception as error:  # one problem must not end the run
                text = str(error) if isinstance(error, LengthwiseError) else f"{type(error).__name__}: {error}"
                row |= {"status": "failed", "error": text}
                in_a_row += 1
            left -= 1
            rows[key] = row
            if store is not None:
                store.append(row)
            if progress is not None:
                progress(row, left)

    workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(todo)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*workers, return_exceptions=True)
        if store is not None:
            store.close()
    found = [rows[key] for key in keys if key in rows]
    return Batch(found, len(keys) - len(todo), left, _total(found))


def _key(problem: Problem, run: Mapping[str, Any]) -> str:
    """Tells rows of one file apart: the problem's id and text, and how it was worked on."""
    text = json.dumps([problem.id, [dict(m) for m in problem.messages], problem.answer, dict(run)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _total(rows: Sequence[Row]) -> Spent:
    """What all rows cost together."""
    total = Spent()
    for row in rows:
        for f in fields(Spent):
            setattr(total, f.name, getattr(total, f.name) + row.get("spent", asdict(Spent()))[f.name])
    return total
