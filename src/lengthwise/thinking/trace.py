"""Where the tokens of a chain went: its steps by kind, by importance, and what came after the answer was there.

Kinds and importance are those of PIR (paper 92): progress is the way to the solution; verification, alternative
("multi-method validation") and correction are functional, and may be pruned. Cutting a chain into stretches of one kind
at the words that begin them ("Wait", "Alternatively"), and looking for the first place at which thinking could have
ended, are those of thinking patterns (paper 123). Repetition, a progress step that was there before in the same words,
is neither's: it is kept apart because nothing was thought in it.

PIR has a large model name the kinds where words do not tell; here words alone decide (`_MARKS`), and stretches without
such words belong to the one before. Sources: arXiv 2505.19187, section 2 and figure 7; arXiv 2505.21765, section 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

from lengthwise.errors import BadParameter
from lengthwise.thinking.steps import steps as split

Kind = Literal["progress", "verification", "alternative", "correction", "repetition"]
KINDS: dict[Kind, str] = {
    "progress": "goes on towards the solution",
    "verification": "checks what was there",
    "alternative": "does it again in another way",
    "correction": "finds a mistake and puts it right",
    "repetition": "was there before, in the same words",
}
FUNCTIONAL: tuple[Kind, ...] = ("verification", "alternative", "correction")

_MISTAKE = (
    r"mistake|wrong|incorrect|not right|can't be right|impossible|contradict\w*|oops|the error|"
    r"(?:correct|fix) (?:this|that|it)"
)
_MARKS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("correction", re.compile(rf"^\W*(?:(?:wait|hmm|no|oh)\W*)+$|^.{{0,60}}?\b(?:{_MISTAKE})\b", re.I | re.S)),
    (
        "alternative",
        re.compile(
            r"^\W*(?:\w+\W+){0,4}?(?:alternatively|(?:another|different|other) (?:way|approach|method))\b", re.I
        ),
    ),
    (
        "verification",
        re.compile(
            r"^\W*(?:(?:so|but|now|ok|okay|let me|let's|let us|i should|just|to|and)\W+){0,3}"
            r"(?:wait|hmm|check|double[- ]check|recheck|verify|verifying|confirm|make sure|be (?:extra )?sure|"
            r"going back|sanity)\b",
            re.I,
        ),
    ),
    (
        "progress",
        re.compile(r"^\W*(?:next|now|finally|therefore|step \d+|moving on|continuing|back to)\b", re.I),
    ),
)
_BARE = re.compile(r"^\W*(?:(?:wait|hmm|no|oh)\W*)+$", re.I)
_RESULT = re.compile(r"=|:|→|\b(?:is|are|equals|get|gives)\b", re.I)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_WORD = re.compile(r"\w+|[^\w\s]")
SURE = 0.5  # from which probability of the answer on the model knows it


@dataclass
class Step:
    """A stretch of one kind: all steps of a functional stretch together, a progress step alone. `tokens` are its own.

    `importance` is PIR's: log of how many times the answer's perplexity grows when the step is taken out; above 0 it
    helped. `known` is the answer's probability when the thinking ends behind this step. Both need a model.
    """

    text: str
    kind: Kind
    tokens: int
    repeated: bool = False
    importance: float | None = None
    known: float | None = None
    pruned: bool = False


@dataclass
class Trace:
    """A chain, taken apart: the texts of `steps` are the chain, their tokens its tokens.

    `answered` is the step in which the answer first stands as a result, `sure` the first after which the model gives it
    a probability of at least `SURE` (-1: before any step); None where there is none, or no model.
    """

    steps: list[Step]
    unit: str = "words"
    answer: str = ""
    id: str = ""
    answered: int | None = None
    sure: int | None = None
    change: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """All tokens of the chain."""
        return sum(s.tokens for s in self.steps)

    @property
    def patterns(self) -> int:
        """Stretches of one kind, one after another."""
        return bool(self.steps) + sum(a.kind != b.kind for a, b in pairwise(self.steps))

    def by_kind(self) -> dict[Kind, int]:
        """Tokens of every kind; they sum to `tokens`."""
        return {kind: sum(s.tokens for s in self.steps if s.kind == kind) for kind in KINDS}

    def after(self, step: int | None) -> int | None:
        """Tokens behind a step."""
        return None if step is None else sum(s.tokens for s in self.steps[step + 1 :])

    def kept(self) -> str:
        """The chain without its pruned steps."""
        return "".join(s.text for s in self.steps if not s.pruned)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form."""
        return {
            "id": self.id,
            "answer": self.answer,
            "unit": self.unit,
            "tokens": self.tokens,
            "patterns": self.patterns,
            "by_kind": self.by_kind(),
            "repeated": sum(s.tokens for s in self.steps if s.repeated),
            "answered_at": self.answered,
            "after_answer": self.after(self.answered),
            "sure_at": self.sure,
            "after_sure": self.after(self.sure),
            "pruned": sum(s.tokens for s in self.steps if s.pruned),
            "pruned_change": self.change,
            "steps": [asdict(s) for s in self.steps],
            "notes": list(self.notes),
        }


def trace(thinking: str, answer: str = "", spans: Callable[[str], list[int]] | None = None) -> Trace:
    """Take a thinking text apart. `answer` is what is looked for; '' looks for nothing.

    `spans` gives the place (in characters) at which each token of a text begins; without it words and marks are
    counted.
    """
    parts = _stretches(split(thinking))
    starts = [m.start() for m in _WORD.finditer(thinking)] if spans is None else spans(thinking)
    out, begin, seen = Trace([], "words" if spans is None else "tokens", answer), 0, set[str]()
    for kind, lines in parts:
        text = "".join(lines)
        end = begin + len(text)
        said = [_plain(line) for line in lines]
        repeated = all(line in seen or not line for line in said) and any(said)
        seen.update(said)
        if kind == "progress" and repeated:
            kind = "repetition"
        out.steps.append(Step(text, kind, sum(begin <= s < end for s in starts), repeated))
        if out.answered is None and answer and any(_gives(line, answer) for line in lines):
            out.answered = len(out.steps) - 1
        begin = end
    return out


def prune(traced: Trace, ratio: float) -> None:
    """Mark the `ratio` of the functional steps with the lowest importance, of each kind by itself (PIR, algorithm 1).

    A share of a step counts as one. Progress and repetition stay. Raises BadParameter for ratios outside of 0 to 1, and
    when importance is not known.
    """
    if not 0 <= ratio <= 1:
        raise BadParameter(f"the ratio to prune is {ratio}, not in 0 to 1")
    if any(s.importance is None for s in traced.steps):
        raise BadParameter("pruning goes by importance, which needs a model: --model")
    for step in traced.steps:
        step.pruned = False
    for kind in FUNCTIONAL:
        own = sorted((s for s in traced.steps if s.kind == kind), key=lambda s: s.importance or 0.0)
        for step in own[: math.ceil(ratio * len(own) - 1e-9)]:
            step.pruned = True


def kind_of(step: str) -> Kind | None:
    """What the first words of a step say that it does; None when they say nothing."""
    return next((kind for kind, mark in _MARKS if mark.search(step)), None)


def _stretches(lines: Sequence[str]) -> list[tuple[Kind, list[str]]]:
    """Steps in stretches. A correction is one step (and the one behind a bare "wait"), then it goes on as before."""
    out: list[tuple[Kind, list[str]]] = []
    now: Kind = "progress"
    redo = False
    for line in lines:
        marked = kind_of(line)
        if redo and marked != "progress":  # a bare "wait" belongs to what it leads to
            kind = marked or "correction"
            out[-1] = (kind, [*out[-1][1], line])
            redo, now = _BARE.match(line) is not None, now if kind == "correction" else kind
            continue
        redo = _BARE.match(line) is not None
        if marked == "correction":
            out.append(("correction", [line]))
            continue
        fresh = marked is not None and marked != "progress"
        now = marked or now
        if fresh or now == "progress" or not out or out[-1][0] != now:
            out.append((now, [line]))
        else:
            out[-1][1].append(line)
    return out


def _plain(line: str) -> str:
    """A step in the form in which repetitions are alike: without the word that begins it, blanks and end marks."""
    text = re.sub(r"^\W*(?:wait|hmm|so|check|now|then|okay|ok|again)\b\W*", "", line.strip(), flags=re.I)
    return " ".join(text.casefold().split()).strip(" .;,:!?")


def _gives(line: str, answer: str) -> bool:
    """Whether a step ends in the answer: behind its last '=', ':' or "is", in a box, or as its last number."""
    wanted = " ".join(answer.casefold().split())
    text = " ".join(line.casefold().split())
    if f"boxed{{{wanted}}}" in text:
        return True
    if _NUMBER.fullmatch(wanted):
        numbers = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))
        return bool(numbers) and numbers[-1] == wanted
    result = _RESULT.split(text)[-1].strip(" $*\\({[")
    behind = result[len(wanted) :]
    return result.startswith(wanted) and re.match(r"\w|[.,]\d|\s+\d|\s*[-+*/^]\s*\w", behind) is None
