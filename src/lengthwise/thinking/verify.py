"""Judges the steps of a solution: the model itself, asked in words, or any Python function."""

from __future__ import annotations

import asyncio
import functools
import importlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lengthwise.errors import BadInput
from lengthwise.thinking.steps import steps as split

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Messages
    from lengthwise.thinking.work import Work, Written

Check = Callable[[str, list[str]], Sequence[float]]  # (question, steps) -> for each step, 0 (wrong) to 1 (right)
Score = Literal["min", "prod", "mean", "last"]

SELF = "self"
MOST = 1024  # tokens of one verification
PROMPT = """Here are a problem and the steps of a proposed solution.

Problem:
{problem}

Steps:
{steps}

Judge each step on its own merits, one after another, and look for errors. If the solution is not finished, judge only \
the steps that are there. Write a line for each step, "Step N: \\boxed{{correct}}" or "Step N: \\boxed{{incorrect}}". \
End with the line "Is the solution correct? yes" or "Is the solution correct? no"."""

_STEP = re.compile(r"\bstep\s*#?(\d+)\b", re.IGNORECASE)
_NEGATED = r"(?:\bnot|n't|\bnever|\bhardly)\s+(?:\w+\s+){0,2}?(?:correct|right|valid|sound)\b"
_WORD = re.compile(
    rf"(?P<no>{_NEGATED}|\b(?:incorrect|wrong|invalid|unsound|false)\b)|"
    r"(?P<yes>\b(?:correct|right|valid|sound|true)\b)",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{\s*)?(in)?correct\b", re.IGNORECASE)
_WHOLE = re.compile(
    r"\bis\s+the\s+(?:\w+\s+)?(?:solution|answer)\s+(?:correct|right|valid)\s*\??[\s:*\-]*\b(?P<said>yes|no)\b|"
    r"\b(?:verdict|conclusion|overall)\b(?P<words>[^\n]*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Judgement:
    """What one verification says of each step and of the whole: 0 (wrong) to 1 (right), None where it says nothing."""

    steps: tuple[float | None, ...]
    whole: float | None = None

    def score(self, how: Score = "min") -> float | None:
        """One number for the solution: the verdict on the whole if there is one, else from the steps; None: no verdict.

        Steps without a verdict are left out, but unless a step is wrong (below 1/2) all must have one.
        """
        if self.whole is not None:
            return self.whole
        said = [s for s in self.steps if s is not None]
        if not said or (len(said) < len(self.steps) and min(said) >= 0.5):
            return None
        if how == "min":
            return min(said)
        if how == "prod":
            return math.prod(said)
        return sum(said) / len(said) if how == "mean" else said[-1]


def mean_score(judgements: Sequence[Judgement], how: Score = "min") -> float | None:
    """The mean score of several verifications of one solution; those without a verdict are left out."""
    scores = [score for judgement in judgements if (score := judgement.score(how)) is not None]
    return sum(scores) / len(scores) if scores else None


def verdicts(text: str, count: int) -> Judgement:
    r"""Read a verification of `count` steps.

    A step's verdict is the last one after its heading ("Step 3"), a \boxed one before words ("correct", "not right").
    Where a step has several headings, the last one with a verdict counts. Without headings, \boxed verdicts are taken
    in order if there are `count`. The verdict on the whole is the last "Is the solution correct? yes/no" or
    "verdict: ...".
    """
    asked = [
        _verdict(m["words"]) if m["said"] is None else float(m["said"].lower() == "yes") for m in _WHOLE.finditer(text)
    ]
    whole = [verdict for verdict in asked if verdict is not None]
    body = _WHOLE.sub("\n", text)
    found: list[float | None] = [None] * count
    heads = list(_STEP.finditer(body))
    for head, after in zip(heads, [*heads[1:], None]):
        index = int(head[1]) - 1
        verdict = _verdict(body[head.end() : after.start() if after else len(body)])
        if 0 <= index < count and verdict is not None:
            found[index] = verdict
    boxed = [0.0 if no else 1.0 for no in _BOXED.findall(body)]
    if not heads and len(boxed) == count:
        found = list(boxed)
    return Judgement(tuple(found), whole[-1] if whole else None)


def _verdict(text: str) -> float | None:
    if boxed := _BOXED.findall(text):
        return 0.0 if boxed[-1] else 1.0
    words = list(_WORD.finditer(text))
    return (0.0 if words[-1]["no"] else 1.0) if words else None


@functools.cache
def load(name: str) -> Check | None:
    """The function that `module:function` names; None for "self". Raises BadInput when there is none."""
    if name == SELF:
        return None
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise BadInput(f"the verifier '{name}' is neither 'self' nor module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise BadInput(f"the verifier '{name}' cannot be imported ({error}): is its folder on PYTHONPATH?") from error
    except AttributeError as error:
        raise BadInput(f"the verifier '{name}' is not there: the module {module} has no '{function}'") from error
    if not callable(found):
        raise BadInput(f"the verifier '{name}' cannot be called with (question, steps)")
    return found  # type: ignore[no-any-return]


def solution(chain: Written) -> list[str]:
    """What of a chain is judged: the steps of its thinking, then those of the text that holds its answer."""
    return split(chain.thinking) + (split(chain.text) if chain.text != chain.thinking else [])


def reasons(name: str, owner: str) -> list[str]:
    """Why the strategy `owner` cannot use the verifier `name`; [] when it can."""
    try:
        load(name)
    except BadInput as error:
        return [f"{owner}: {error}"]
    return []


async def judge(
    work: Work,
    messages: Messages,
    solutions: Sequence[Sequence[str]],
    name: str = SELF,
    *,
    checks: int = 1,
    most: int = MOST,
) -> list[list[Judgement]]:
    """Judgements [solutions][checks] of the steps of each solution, all asked at once.

    "self" asks the sampler, with thinking, in at most `most` tokens each; its tokens are counted as other tokens.
    More than one check are drawn at the work's temperature, or at 1 if that is 0. A solution that is too long to be
    judged has no verdict. A function gives the same judgement each time: it is called once for each solution. Raises
    BadInput when what it returns is not a number in 0 to 1 for each step.
    """
    question, function = messages[-1]["content"], load(name)
    if function is not None:
        return [[await _call(function, name, question, list(steps))] for steps in solutions]
    asked: list[Messages] = []
    for steps in solutions:
        lines = "\n".join(f"Step {i}: {step.strip()}" for i, step in enumerate(steps, 1))
        asked += [[{"role": "user", "content": PROMPT.format(problem=question, steps=lines)}]] * checks
    temperature = 0.0 if checks == 1 else work.settings.temperature or 1.0
    said = await work.asks(asked, most, think=work.sampler.tags is not None, temperature=temperature, needed=False)
    close = work.sampler.tags.close if work.sampler.tags is not None else ""
    read = []
    for index, text in enumerate(said):
        after = text.rpartition(close)[2] if close else text
        count = len(solutions[index // checks])
        judgement = verdicts(after, count)
        read.append(judgement if judgement.score() is not None else verdicts(text, count))
    return [read[i * checks : (i + 1) * checks] for i in range(len(solutions))]


async def _call(function: Check, name: str, question: str, steps: list[str]) -> Judgement:
    try:
        got = list(await asyncio.to_thread(function, question, steps))
    except Exception as error:
        raise BadInput(f"the verifier '{name}' failed: {type(error).__name__}: {error}") from error
    if len(got) != len(steps) or not all(isinstance(g, int | float) and 0 <= g <= 1 for g in got):
        raise BadInput(
            f"the verifier '{name}' must return a number from 0 to 1 for each step: {len(steps)} steps, got {got!r:.80}"
        )
    return Judgement(tuple(map(float, got)))
