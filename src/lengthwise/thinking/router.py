"""Decides whether a problem needs thinking: a logistic regression that is fitted on problems with known answers.

P(right without thinking) = sigmoid(w · (x - mean) / scale + b), x being features of the question and, where wanted, how
sure the model is of the answer that it gives without thinking.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lengthwise.errors import BadInput
from lengthwise.thinking.answers import Extract, answer_in
from lengthwise.thinking.chain import Messages, Sampler, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

VERSION = 1
CHEAP: dict[str, Callable[[str], float]] = {
    "characters": lambda q: math.log1p(len(q)),
    "words": lambda q: math.log1p(len(q.split())),
    "numbers": lambda q: math.log1p(len(re.findall(r"\d+", q))),
    "longest_number": lambda q: float(max(map(len, re.findall(r"\d+", q)), default=0)),
    "operators": lambda q: math.log1p(len(re.findall(r"[-+*/^=<>%]", q))),
    "separators": lambda q: math.log1p(len(re.findall(r"[,;:\n]", q))),
}
CONFIDENCE = ("mean_logprob", "least_logprob")  # of the tokens of the answer without thinking, written greedily
FEATURES = {"cheap": tuple(CHEAP), "confidence": CONFIDENCE, "all": (*CHEAP, *CONFIDENCE)}
MOST = 64  # tokens of an answer without thinking


@dataclass(frozen=True)
class Router:
    """A fitted router. `model` is the model whose answers it was fitted on."""

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    model: str

    def __call__(self, x: Sequence[float]) -> float:
        """P(the answer without thinking is right), from the features in their order."""
        z = [w * (v - m) / s for w, v, m, s in zip(self.weights, x, self.mean, self.scale, strict=True)]
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, sum(z) + self.bias))))

    @property
    def asks(self) -> bool:
        """Whether it needs the model's answer without thinking."""
        return any(name in CONFIDENCE for name in self.features)

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps({"version": VERSION, "kind": "mode-router", **asdict(self)}, indent=1) + "\n")


def load_router(path: str | Path) -> Router:
    """A router that `Router.save` wrote. Raises BadInput."""
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
        if row["kind"] != "mode-router" or row["version"] != VERSION:
            raise ValueError("another kind of file, or another version")
        mean, scale, weights = (tuple(map(float, row[name])) for name in ("mean", "scale", "weights"))
        router = Router(tuple(row["features"]), mean, scale, weights, float(row["bias"]), str(row["model"]))
        unknown = set(router.features) - set(FEATURES["all"])
        if unknown or {len(mean), len(scale), len(weights)} != {len(router.features)}:
            raise ValueError("its features are not those of this version")
    except OSError as error:
        raise BadInput(f"the router {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no router ({error}): python -m lengthwise.thinking fit-mode writes one") from error
    return router


@dataclass(frozen=True)
class Seen:
    """Features of a problem, the answer without thinking ('' where it was not asked for), and tokens that were paid."""

    x: tuple[float, ...]
    answer: str = ""
    written: int = 0
    read: int = 0


async def look(
    sampler: Sampler,
    messages: Messages,
    names: Sequence[str],
    *,
    answer: bool = False,
    extract: Extract = "auto",
    settings: Settings | None = None,
) -> Seen:
    """The features called `names`. The model is asked, without thinking, if they or `answer` want it."""
    question = messages[-1]["content"]
    values = {name: CHEAP[name](question) for name in names if name in CHEAP}
    if not answer and not any(name in CONFIDENCE for name in names):
        return Seen(tuple(values[name] for name in names))
    chain = await sampler.chain(messages, think=False)
    try:
        greedy = (settings or Settings()).but(temperature=0.0, logprobs="logprobs" in sampler.able, logits=None)
        piece = await chain.write(MOST, (), greedy)
    finally:
        await chain.close()
    said = piece.logprobs or (-1e3,)
    values |= {"mean_logprob": sum(said) / len(said), "least_logprob": min(said)}
    return Seen(tuple(values[name] for name in names), answer_in(piece.text, extract), chain.written, chain.read)


@dataclass(frozen=True)
class Fit:
    """How good a router is on the problems it was fitted on, each predicted by a router fitted without it.

    `right` is the share of problems that need no thinking, `accuracy` of those that are told apart at 0.5, `auc` the
    chance that a problem that needs none is ranked above one that does.
    """

    problems: int
    right: float
    accuracy: float
    auc: float


def fit(
    x: Sequence[Sequence[float]], right: Sequence[bool], names: Sequence[str], model: str, *, folds: int = 5
) -> tuple[Router, Fit]:
    """A router from features [problems, features] and whether each answer without thinking was right.

    Raises BadInput when there are too few problems, or all are alike.
    """
    matrix, target = np.asarray(x, float), np.asarray(right, float)
    most, few = len(target), int(min(target.sum(), (1 - target).sum()))
    if few < folds:
        raise BadInput(
            f"{int(target.sum())} of {most} problems are right without thinking: a router needs at least {folds} that "
            "are and as many that are not"
        )
    order = np.random.default_rng(0).permutation(most)
    place = np.empty(most, int)
    for value in (0.0, 1.0):  # folds with equal shares of both
        members = order[target[order] == value]
        place[members] = np.arange(len(members)) % folds
    held = np.empty(most)
    for fold in range(folds):
        part = _solve(matrix[place != fold], target[place != fold], names, model)
        held[place == fold] = [part(row) for row in matrix[place == fold].tolist()]
    yes, no = held[target == 1], held[target == 0]
    above = float(np.mean(np.sign(yes[:, None] - no[None, :]) * 0.5 + 0.5))
    accuracy = float(np.mean((held >= 0.5) == (target == 1)))
    return _solve(matrix, target, names, model), Fit(most, float(target.mean()), accuracy, above)


def _solve(matrix: NDArray[np.float64], target: NDArray[np.float64], names: Sequence[str], model: str) -> Router:
    """Newton's method on the log-likelihood less |w|²/2 (the bias is not held back)."""
    mean, scale = matrix.mean(0), matrix.std(0)
    scale[scale < 1e-9] = 1.0
    design = np.column_stack([(matrix - mean) / scale, np.ones(len(target))])
    ridge = np.diag([*np.ones(matrix.shape[1]), 1e-6])
    w = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ w, -30, 30)))
        slope = design.T @ (target - p) - ridge @ w
        curve = design.T @ (design * (p * (1 - p))[:, None]) + ridge
        step = np.linalg.solve(curve, slope)
        w += step
        if np.abs(step).max() < 1e-9:
            break
    return Router(
        tuple(names), tuple(mean.tolist()), tuple(scale.tolist()), tuple(w[:-1].tolist()), float(w[-1]), model
    )
