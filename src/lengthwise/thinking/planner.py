"""Chooses a plan of actions for a question: naive Bayes over words, fitted on questions whose best plan is known."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lengthwise.errors import BadInput

VERSION = 1


def words(question: str) -> list[str]:
    """What of a question the planner looks at: its words and signs, numbers by their digits, and how much there is."""
    found = re.findall(r"[^\W\d_]+|\d+|[^\w\s]", question.lower())
    seen = ["#" * min(len(w), 4) if w.isdigit() else w for w in found]
    numbers = sum(w.isdigit() for w in found)
    return [*seen, f"words~{len(found).bit_length()}", f"numbers~{numbers.bit_length()}"]


@dataclass(frozen=True)
class Planner:
    """log P(plan) and log P(word | plan) in the order of `plans`; `model` is the one whose answers it was fitted on."""

    plans: tuple[str, ...]
    prior: tuple[float, ...]
    likely: dict[str, tuple[float, ...]]
    model: str

    def choose(self, question: str) -> tuple[str, float]:
        """The likeliest plan for a question and its probability. Words never seen say nothing."""
        scores = list(self.prior)
        for word in words(question):
            if word in self.likely:
                scores = [score + more for score, more in zip(scores, self.likely[word])]
        top = max(scores)
        share = 1 / sum(math.exp(score - top) for score in scores)
        return self.plans[scores.index(top)], share

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps({"version": VERSION, "kind": "dots-planner", **asdict(self)}, indent=1) + "\n")


def load_planner(path: str | Path) -> Planner:
    """A planner that `Planner.save` wrote. Raises BadInput."""
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
        if row["kind"] != "dots-planner" or row["version"] != VERSION:
            raise ValueError("another kind of file, or another version")
        likely = {str(word): tuple(map(float, each)) for word, each in row["likely"].items()}
        planner = Planner(tuple(row["plans"]), tuple(map(float, row["prior"])), likely, str(row["model"]))
        if not planner.plans or {len(planner.plans)} != {len(planner.prior), *map(len, likely.values())}:
            raise ValueError("its tables differ in length")
    except OSError as error:
        raise BadInput(f"the planner {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is no planner ({error}): python -m lengthwise.thinking fit-dots writes one") from error
    return planner


def fit_planner(questions: Sequence[str], best: Sequence[str], model: str) -> Planner:
    """A planner from questions and the best plan of each; add-one smoothing. Raises BadInput when there are none."""
    if not questions:
        raise BadInput("a planner needs at least one question whose best plan is known")
    plans = tuple(dict.fromkeys(best))
    counts = {plan: Counter[str]() for plan in plans}
    for question, plan in zip(questions, best, strict=True):
        counts[plan].update(words(question))
    known = sorted(set().union(*counts.values()))
    totals = {plan: counts[plan].total() + len(known) for plan in plans}
    likely = {word: tuple(math.log((counts[p][word] + 1) / totals[p]) for p in plans) for word in known}
    return Planner(plans, tuple(math.log(best.count(plan) / len(best)) for plan in plans), likely, model)
