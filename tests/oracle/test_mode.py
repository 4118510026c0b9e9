"""Whether to think: the model's token, and routers that are fitted, saved and used."""

from __future__ import annotations

import asyncio
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import BadInput, BadParameter, StackRefused
from lengthwise.thinking import Thought, think
from lengthwise.thinking.__main__ import fit_mode
from lengthwise.thinking.many import Problem
from lengthwise.thinking.registry import parse
from lengthwise.thinking.router import Router, fit, load_router, look
from scripted import Scripted


def run(sampler: Scripted, strategy: str, question: str = "what is it?") -> Thought:
    return asyncio.run(think(question, sampler, strategy))


def test_a_model_that_says_so_does_not_think() -> None:
    sampler = Scripted(lambda q, n: "<EASY> " + "w " * 50 + "</think>7")
    sampler.script = lambda q, n: "<EASY></think>7" if q.startswith("easy") else "w w w w w w</think>8"
    thought = run(sampler, "mode", "easy: 3+4?")
    assert (thought.answer, thought.chains[0].reason, thought.spent.thinking_tokens) == ("7", "not thinking", 0)
    assert (thought.spent.other_tokens, thought.spent.waiting_tokens) == (2, 2 + 1)  # "<", "EASY>"
    thought = run(sampler, "mode", "hard: 3+4?")
    assert (thought.answer, thought.chains[0].reason, thought.spent.other_tokens) == ("8", "closed", 4)
    assert sampler.live == 0


def test_the_token_must_be_among_the_first() -> None:
    sampler = Scripted(lambda q, n: "a b c EASY</think>7")
    assert run(sampler, "mode:token=EASY,within=4").chains[0].reason == "not thinking"
    assert run(sampler, "mode:token=EASY,within=3").chains[0].reason == "closed"


def test_the_decision_is_made_once_for_all_chains() -> None:
    sampler = Scripted(lambda q, n: "a b c d</think>7")
    thought = run(sampler, "mode + majority:k=5")
    assert len(thought.chains) == 5
    assert thought.spent.other_tokens == 4
    assert len(sampler.asked) == 6


def fitted(path: Path, **changes: object) -> Path:
    """A router that looks at the length of the question in words alone: 2 words are even."""
    router = Router(("words",), (math.log1p(2),), (1.0,), (-3.0,), 0.0, "scripted")
    path.write_text("")
    router.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_router_sends_short_questions_past_the_thinking(tmp_path: Path) -> None:
    path = fitted(tmp_path / "router.json")
    sampler = Scripted(lambda q, n: "one</think>two")
    reasons = [run(sampler, f"mode:{path}", q).chains[0].reason for q in ("short", "just two", "these are three")]
    assert reasons == ["not thinking", "not thinking", "closed"]
    assert run(sampler, f"mode:{path},threshold=0.51", "just two").chains[0].reason == "closed"
    assert run(sampler, f"mode:{path}", "short").spent.other_tokens == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "other"}, "another kind of file"),
        ({"version": 2}, "another kind of file"),
        ({"features": ["colour"]}, "features are not those"),
        ({"weights": [1.0, 2.0]}, "features are not those"),
        ({"bias": None}, "is no router"),
    ],
)
def test_files_that_are_no_router_are_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    path = fitted(tmp_path / "router.json", **changes)
    with pytest.raises(StackRefused, match=says):
        run(Scripted(lambda q, n: ""), f"mode:{path}")


def test_what_a_router_needs_is_said(tmp_path: Path) -> None:
    with pytest.raises(StackRefused, match="cannot be read"):
        run(Scripted(lambda q, n: ""), f"mode:{tmp_path}/none.json")
    router = Router(("mean_logprob",), (0.0,), (1.0,), (1.0,), 0.0, "scripted")
    router.save(tmp_path / "r.json")
    with pytest.raises(StackRefused, match="looks at log-probabilities"):
        run(Scripted(lambda q, n: "", able=("prefix",)), f"mode:{tmp_path}/r.json")


def test_confidence_is_that_of_the_answer_without_thinking() -> None:
    sampler = Scripted(lambda q, n: "one two</think>so seven", prob=lambda t: 0.5 if t == "so " else 0.125)
    seen = asyncio.run(
        look(sampler, [{"role": "user", "content": "q"}], ("least_logprob", "mean_logprob"), answer=True)
    )
    assert seen.x == pytest.approx((math.log(0.125), (math.log(0.5) + math.log(0.125)) / 2))
    assert (seen.answer, seen.written) == ("so seven", 2)


def test_a_router_by_confidence_pays_for_its_look(tmp_path: Path) -> None:
    Router(("mean_logprob",), (-1.0,), (1.0,), (5.0,), 0.0, "scripted").save(tmp_path / "r.json")
    for prob, reason in ((0.9, "not thinking"), (0.1, "closed")):
        sampler = Scripted(lambda q, n: "one</think>two three", prob=lambda t, p=prob: p)
        thought = run(sampler, f"mode:{tmp_path}/r.json")
        assert (thought.chains[0].reason, thought.spent.other_tokens) == (reason, 2)
        assert thought.spent.waiting_tokens == 2 + thought.chains[0].tokens


def test_the_fit_is_the_maximum_of_the_penalised_likelihood() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(200, 2)) * [1, 5] + [0, 3]
    right = draw.random(200) < 1 / (1 + np.exp(-(2 * x[:, 0] - 0.5)))
    router, report = fit(x.tolist(), right.tolist(), ("words", "numbers"), "m")

    def loss(weights: list[float], bias: float) -> float:
        r = Router(router.features, router.mean, router.scale, tuple(weights), bias, "m")
        p = np.array([r(row) for row in x.tolist()])
        return float(-np.log(np.where(right, p, 1 - p)).sum() + np.square(weights).sum() / 2)

    best = loss(list(router.weights), router.bias)
    for step in (-0.02, 0.02):
        assert loss([router.weights[0] + step, router.weights[1]], router.bias) > best
        assert loss([router.weights[0], router.weights[1] + step], router.bias) > best
        assert loss(list(router.weights), router.bias + step) > best
    assert router.weights[0] > 5 * abs(router.weights[1])
    assert 0.8 < report.auc < 1
    assert 0.7 < report.accuracy < 1
    assert report.problems == 200


def test_chance_is_reported_as_chance() -> None:
    draw = np.random.default_rng(2)
    right = draw.random(200) < 0.5
    names = [f"feature {n}" for n in range(40)]
    _, report = fit(draw.normal(size=(200, 40)).tolist(), right.tolist(), names, "m")
    assert 0.35 < report.auc < 0.65  # a fit that had seen its own problems would say 0.85


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(BadInput, match="3 of 20 problems are right"):
        fit([[float(n)] for n in range(20)], [n < 3 for n in range(20)], ("words",), "m")


def test_a_router_is_fitted_from_problems_and_used(tmp_path: Path) -> None:
    draw = random.Random(0)
    numbers = [[draw.randrange(10) for _ in range(draw.choice([2, 5]))] for _ in range(60)]
    problems = [
        Problem(str(i), [{"role": "user", "content": "+".join(map(str, n))}], str(sum(n)))
        for i, n in enumerate(numbers)
    ]

    def script(question: str, number: int) -> str:
        terms = list(map(int, question.split("+")))
        return f"add them</think>{sum(terms) if len(terms) == 2 else 99}"

    path = tmp_path / "router.json"
    report = asyncio.run(fit_mode(problems, Scripted(script), "cheap", str(path)))
    assert (report["accuracy"], report["auc"]) == (1.0, 1.0)
    assert load_router(path).model == "scripted"
    assert run(Scripted(script), f"mode:{path}", "1+2").chains[0].reason == "not thinking"
    assert run(Scripted(script), f"mode:{path}", "1+2+3+4+5").chains[0].reason == "closed"


def test_a_fit_needs_answers_and_log_probabilities(tmp_path: Path) -> None:
    problem = Problem("1", [{"role": "user", "content": "1+1?"}])
    with pytest.raises(BadInput, match="answers are known"):
        asyncio.run(fit_mode([problem], Scripted(lambda q, n: ""), "cheap", str(tmp_path / "r")))
    known = Problem("1", problem.messages, "2")
    with pytest.raises(BadInput, match="--features cheap"):
        asyncio.run(fit_mode([known], Scripted(lambda q, n: "", able=()), "all", str(tmp_path / "r")))
    with pytest.raises(BadInput, match="no thinking section"):
        asyncio.run(fit_mode([known], Scripted(lambda q, n: "", tags=None), "all", str(tmp_path / "r")))


@pytest.mark.parametrize(
    "strategy",
    ["mode:threshold=2", "mode:within=0", "mode:threshold=0.7", "mode:router=r.json,token=X", "mode:r.json,within=2"],
)
def test_values_out_of_range_are_refused(strategy: str) -> None:
    with pytest.raises(BadParameter):
        parse(strategy)
