"""Verdicts are read right, and the strategies that use them choose as their formulas say and count what it costs."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lengthwise.bench import problems
from lengthwise.errors import BadInput, BadParameter, StackRefused
from lengthwise.thinking import Settings, Thought, think
from lengthwise.thinking.registry import parse
from lengthwise.thinking.steps import steps
from lengthwise.thinking.strategies._vote import best
from lengthwise.thinking.strategies.pessimistic import lower_bounds
from lengthwise.thinking.verify import Judgement, load, verdicts
from lengthwise.thinking.work import Written
from scripted import DEFAULT, Scripted, ScriptedChain

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(sampler: Scripted, strategy: str, **options: object) -> Thought:
    return asyncio.run(think("what is it?", sampler, strategy, **options))  # type: ignore[arg-type]


# --- reading verdicts


@pytest.mark.parametrize(
    ("text", "count", "found", "whole"),
    [
        ("Step 1: \\boxed{correct}\nStep 2: \\boxed{incorrect}\nIs the solution correct? no", 2, (1, 0), 0),
        (
            "Step 1: sums up. \\boxed{correct} Step 2: \\boxed{\\text{correct}} Is the solution correct? **Yes**",
            2,
            (1, 1),
            1,
        ),
        ("Step 1 looks wrong at first, but is right. Step 2 isn't quite right.", 2, (1, 0), None),
        ("Step 1: not a valid move", 1, (0,), None),
        ("Step 1: \\boxed{incorrect}, what a pity, the rest is right", 1, (0,), None),  # a box before words
        ("step 1: correct. Step 1 again: on second thought incorrect.", 1, (0,), None),
        ("\\boxed{correct} then \\boxed{incorrect}", 2, (1, 0), None),
        ("\\boxed{correct}", 2, (None, None), None),  # whose is it?
        ("Step 7: wrong", 2, (None, None), None),  # there is no such step
        ("Verdict: not correct", 1, (None,), 0),
        ("Is the solution correct? no. Is the solution correct? yes", 1, (None,), 1),
        ("nothing to see", 1, (None,), None),
        ("", 0, (), None),
    ],
)
def test_verdicts(text: str, count: int, found: tuple[float | None, ...], whole: float | None) -> None:
    assert verdicts(text, count) == Judgement(found, whole)


def test_scores_of_judgements() -> None:
    some = Judgement((0.9, 0.5, 0.8))
    assert [some.score(how) for how in ("min", "last")] == [0.5, 0.8]  # type: ignore[arg-type]
    assert some.score("prod") == pytest.approx(0.36)
    assert some.score("mean") == pytest.approx(2.2 / 3)
    assert Judgement((0.0, 1.0), whole=1.0).score() == 1.0  # the word on the whole counts
    assert Judgement((1.0, None)).score() is None  # what was not looked at is not right
    assert Judgement((0.0, None)).score() == 0.0  # one error is enough
    assert Judgement(()).score() is None


# --- the verifier


def solver(answers: str, lengths: list[int], verdict: Callable[[str, int], str]) -> Scripted:
    """Chain n thinks `lengths[n]` words and answers answers[n]; verifications say verdict(judged answer, number)."""

    def script(question: str, number: int) -> str:
        if "Is the solution correct" not in question:
            return f"c{number}; " + "w " * (lengths[number] - 1) + f"</think>{answers[number]}"
        judged = re.findall(r"Step \d+: (.*)", question)[-1]
        return f"let me see</think>{verdict(judged, number)}"

    return Scripted(script)


def test_best_of_n_takes_the_chain_that_holds() -> None:
    sampler = solver(
        "AAB", [3, 6, 12], lambda judged, n: f"Is the solution correct? {'yes' if judged == 'B' else 'no'}"
    )
    thought = run(sampler, "best-of-n:k=3")
    assert (thought.answer, thought.confidence) == ("B", 1.0)
    assert [c.weight for c in thought.chains] == [0, 0, 1]
    # a verification is "let me see </think> Is the solution correct? yes": eight tokens, three of them at once
    assert (thought.spent.other_tokens, thought.spent.waiting_tokens) == (3 * 9, 14 + 9)
    assert thought.spent.thinking_tokens == 3 + 6 + 12 + 3
    assert len(thought.chains) == 3
    asked = sampler.asked[-1][-1]["content"]
    assert "what is it?" in asked
    assert "Step 1: c2;" in asked
    assert "Step 3: B" in asked
    assert sampler.live == 0


def test_best_of_n_averages_its_checks() -> None:
    said = iter("yes no no no yes yes".split())  # two of the checks on A, then on B, then on C
    sampler = solver("ABC", [3, 6, 12], lambda judged, n: f"Is the solution correct? {next(said)}")
    thought = run(sampler, "best-of-n:k=3,checks=2,weighted=true")
    assert [c.weight for c in thought.chains] == [0.5, 0, 1]
    assert (thought.answer, thought.confidence) == ("C", pytest.approx(2 / 3))


@pytest.mark.parametrize(("checks", "drawn", "temperature"), [(1, 0.6, 0.0), (2, 0.6, 0.6), (2, 0.0, 1.0)])
def test_one_check_is_greedy_and_several_differ(checks: int, drawn: float, temperature: float) -> None:
    chains: list[ScriptedChain] = []

    class Seen(Scripted):
        async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
            chains.append(await super().chain(messages, think=think))
            return chains[-1]

    sampler = Seen(solver("A", [3], lambda judged, n: "Is the solution correct? yes").script)
    run(sampler, f"best-of-n:k=1,checks={checks}", settings=Settings(temperature=drawn))
    assert [chain.settings[0].temperature for chain in chains[1:]] == [temperature] * checks


def test_a_verifier_that_says_nothing_or_no_leaves_majority_and_says_so() -> None:
    mute = run(solver("ABB", [3, 6, 12], lambda judged, n: "well"), "best-of-n:k=3")
    assert mute.answer == "B"
    assert mute.notes == ["the verifier gave no verdict: plain majority"]
    strict = run(solver("ABB", [3, 6, 12], lambda judged, n: "Is the solution correct? no"), "best-of-n:k=3")
    assert strict.answer == "B"
    assert strict.notes == ["the verifier rejected every chain: plain majority"]


def test_a_solution_too_long_to_be_judged_has_no_verdict_and_the_others_are_judged() -> None:
    sampler = solver("AAB", [3, 6, 12], lambda judged, n: "Is the solution correct? yes")
    script = sampler.script

    def narrow(question: str, number: int) -> str:
        if "Step 3: B" in question:
            raise BadInput("the prompt takes too much")
        return script(question, number)

    sampler.script = narrow
    for strategy in ("best-of-n:k=3", "pessimistic:k=3,checks=1"):
        sampler.numbers = itertools.count()
        thought = run(sampler, strategy)
        assert thought.answer == "A"
        assert [c.answer for c in thought.chains] == ["A", "A", "B"]
        assert "1 side questions were left out: the prompt takes too much" in thought.notes
        assert any("no verdict" in note for note in thought.notes)
    assert sampler.live == 0


def test_best_by_hand() -> None:
    chains = [Written(answer=a) for a in "ABBC"]
    assert best(chains, [0.9, 0.9, 0.9, 0.2]).answer == "B"  # equals vote
    assert best(chains, [0.9, 0.9, 0.9, 0.2]).confidence == 0.9
    assert best(chains, [0.9, 0.5, 0.5, None], weighted=True).answer == "B"
    assert best(chains, [0.9, 0.5, 0.5, None]).answer == "A"
    assert "1 of 4 chains" in best(chains, [0.9, 0.5, 0.5, None]).notes[0]


def test_functions_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_verifier.py").write_text(
        "def good(question, steps): return [float(s.strip() != 'A') for s in steps]\n"
        "def short(question, steps): return [1.0]\n"
        "def far(question, steps): return [7.0 for _ in steps]\n"
        "def broken(question, steps): return 1 / 0\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sampler = solver("AAB", [3, 6, 12], lambda judged, n: "never asked")
    thought = run(sampler, "best-of-n:k=3,verifier=my_verifier:good")
    assert (thought.answer, thought.spent.other_tokens, thought.spent.waiting_tokens) == ("B", 0, 14)
    for name, what in [("short", "a number from 0 to 1 for each step"), ("far", "0 to 1"), ("broken", "ZeroDivision")]:
        with pytest.raises(BadInput, match=what):
            run(solver("AAB", [3, 6, 12], lambda judged, n: ""), f"best-of-n:k=3,verifier=my_verifier:{name}")
    for name, what in [
        ("my_verifier:none", "has no 'none'"),
        ("no_such_module:f", "PYTHONPATH"),
        ("my_verifier", "neither 'self' nor"),
        ("my_verifier:number", "cannot be called"),
    ]:
        with pytest.raises(BadInput, match=what):
            load(name)
        with pytest.raises(StackRefused, match=what):  # before anything is paid for
            run(sampler, f"pessimistic:verifier={name}")


# --- pessimistic


def test_lower_bounds_by_hand() -> None:
    bounds = lower_bounds({"a": [1, 1], "b": [1, 1, 1, 0, 1, 1]}, 0.5)
    assert bounds == pytest.approx({"a": 1 - 0.5 * math.log(8) / 3, "b": 5 / 6 - 0.5 * math.log(8) / 7})
    assert lower_bounds({"a": [], "b": []}, 0.1) == {"a": 0.0, "b": 0.0}


class World:
    """A solver that is right three times in eight or so, and a verifier that errs at a rate of its own.

    The solver's errors are one trap that it likes better than what is right, or scattered.
    """

    def __init__(self, seed: int, error: float, scattered: bool = False) -> None:
        self.draw, self.error = random.Random(seed), error
        wrong = [f"no{i}" for i in range(12)] if scattered else ["trap"] * 8 + ["x", "y", "z", "z"]
        self.answers = ["right" if self.draw.random() < 0.37 else self.draw.choice(wrong) for _ in range(8)]

    def script(self, question: str, number: int) -> str:
        if "Is the solution correct" not in question:
            return "w " * (4 * number + 1) + f"</think>{self.answers[number]}"
        judged = re.findall(r"Step \d+: (.*)", question)[-1]
        true = (judged == "right") != (self.draw.random() < self.error)
        return f"</think>Is the solution correct? {'yes' if true else 'no'}"


def accuracy(strategy: str, error: float = 0.25, scattered: bool = False, worlds: int = 100) -> float:
    answers = [run(Scripted(World(seed, error, scattered).script), strategy).answer for seed in range(worlds)]
    return answers.count("right") / worlds


def test_pessimistic_beats_majority() -> None:
    majority, pessimistic = accuracy("majority:k=8"), accuracy("pessimistic:k=8,checks=4")
    assert majority < 0.5
    assert pessimistic > 0.75
    assert pessimistic > accuracy("pessimistic:k=8,checks=1") + 0.05  # more verdicts are worth their tokens
    assert accuracy("pessimistic:k=8,checks=1", error=0.0) > 0.9  # what one chain of eight has found


def test_pessimism_does_not_believe_a_lucky_single_answer() -> None:
    trusting = accuracy("pessimistic:k=8,checks=2,alpha=0", error=0.35, scattered=True)
    assert accuracy("pessimistic:k=8,checks=2,alpha=0.5", error=0.35, scattered=True) > trusting + 0.05


def test_a_large_alpha_takes_a_most_frequent_answer() -> None:
    for seed in range(20):
        world = World(seed, 0.25)
        answer = run(Scripted(world.script), "pessimistic:k=8,checks=2,alpha=1000").answer
        assert world.answers.count(answer) == max(map(world.answers.count, world.answers))


def test_pessimistic_counts_its_verifications() -> None:
    sampler = solver(
        "AAB", [3, 6, 12], lambda judged, n: f"Is the solution correct? {'yes' if judged == 'B' else 'hm'}"
    )
    thought = run(sampler, "pessimistic:k=3,checks=5")
    assert (thought.answer, thought.confidence) == ("B", 1.0)
    assert thought.spent.other_tokens == 15 * 9
    assert thought.spent.waiting_tokens == 14 + 9
    assert "10 of 15 verifications hold no verdict: they do not count" in thought.notes


def test_pessimistic_without_a_verdict_is_majority_and_says_so() -> None:
    thought = run(solver("BAA", [3, 6, 12], lambda judged, n: "hm"), "pessimistic:k=3,checks=2")
    assert (thought.answer, thought.confidence) == ("A", 2 / 3)
    assert "the verifier gave no verdict: plain majority" in thought.notes


# --- search over steps

PATH = "abcd"


def walk(text: str) -> str:
    """What the walker has chosen so far."""
    return "".join(re.findall(r"[a-z]", text))


class Walker(Scripted):
    """Chains that take four steps, each right with probability `right`, by draws of their own; then the walk itself."""

    def __init__(self, seed: int = 0, right: float = 0.4) -> None:
        super().__init__(lambda q, n: "")
        self.draw, self.right = random.Random(seed), right

    async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
        chain = await super().chain(messages, think=think)
        chain.__class__ = WalkerChain
        return chain


class WalkerChain(ScriptedChain):
    async def write(self, most, stop=(), settings=DEFAULT):  # type: ignore[no-untyped-def, override]
        sampler = self.sampler
        assert isinstance(sampler, Walker)
        if "</think>" in self.text:
            self.left = [walk(self.text.partition("</think>")[0])]
        elif not self.left:
            rest = PATH[len(walk(self.text)) :]
            self.left = [(c if sampler.draw.random() < sampler.right else "x") + ";" for c in rest] + ["</think>"]
        return await super().write(most, stop, settings)

    async def fork(self):  # type: ignore[no-untyped-def, override]
        other = await super().fork()
        other.__class__, other.left = WalkerChain, []  # it draws anew
        return other


def on_path(question: str, given: list[str]) -> list[float]:
    """Right as long as the walk is on PATH."""
    return [float(PATH.startswith(walk("".join(given[: i + 1])))) for i in range(len(given))]


SEARCH = "step-search:ends=semicolon,verifier=test_verification:on_path"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_verification", sys.modules[__name__])


def test_search_finds_what_no_chain_finds_alone() -> None:
    found = [run(Walker(seed), SEARCH + ",k=8,width=8").answer for seed in range(20)]
    alone = [run(Walker(seed), "best-of-n:k=8,verifier=test_verification:on_path").answer for seed in range(20)]
    assert found.count(PATH) >= 17
    assert alone.count(PATH) <= 9


def test_search_costs_what_its_branches_wrote() -> None:
    # all chains alike: of 4 prefixes 1 is left after each round, which goes on in 4, until all end in the fifth
    sampler = Walker(right=1.0)
    thought = run(sampler, SEARCH + ",k=4,width=2")
    spent = thought.spent
    assert thought.answer == PATH
    assert spent.thinking_tokens == sum(c.thinking_tokens for c in thought.chains) == 5 * 4
    assert (spent.answer_tokens, spent.waiting_tokens, spent.other_tokens) == (4, 5 + 1, 0)
    assert (spent.chains, spent.cancelled_chains, spent.cancelled_tokens) == (4 + 4 * 3, 4 * 3, 4 * 3)
    assert [c.reason for c in thought.chains].count("pruned") == 12
    assert [c.reason for c in thought.chains].count("closed") == 4
    assert all(c.thinking == "a;b;c;d;" for c in thought.chains if c.reason == "closed")
    assert "12 of 16 branches were given up" in thought.notes
    assert sampler.live == 0


def test_search_keeps_the_best_prefixes_each_round() -> None:
    """The prefixes that the verifier sees after the first round all go on from a right one, if there was one."""
    for seed in range(10):
        seen: list[str] = []

        def watch(question: str, given: list[str], seen: list[str] = seen) -> list[float]:
            seen.append(walk("".join(given)))
            return on_path(question, given)

        sys.modules[__name__].watch = watch  # type: ignore[attr-defined]
        load.cache_clear()
        run(Walker(seed), SEARCH.replace("on_path", "watch") + ",k=8,width=8")
        first = {s for s in seen if len(s) == 1}
        assert "a" in first
        second = [s for s in seen if len(s) == 2]
        assert len(second) == 8
        assert all(s.startswith("a") for s in second)


def test_one_round_writes_to_the_end() -> None:
    thought = run(Walker(1), SEARCH + ",k=4,width=2,rounds=1")
    assert [c.reason for c in thought.chains] == ["closed"] * 4
    assert thought.spent.cancelled_chains == 0


def test_search_ends_at_its_limit_and_asks_for_the_answer() -> None:
    thought = run(Walker(right=1.0), SEARCH + ",k=2,width=2", most_thinking=2)
    ended = [c for c in thought.chains if c.reason == "budget"]
    assert ended
    assert all(c.thinking == "a;b;" and c.answer == "ab" for c in ended)


def test_search_says_what_it_cannot() -> None:
    with pytest.raises(StackRefused, match=r"step-search writes its chains by steps itself, and budget acts inside"):
        run(Walker(), SEARCH + " + budget:100")
    with pytest.raises(BadParameter, match="multiple of width"):
        parse("step-search:k=5,width=2")
    unable = Walker()
    unable.able = frozenset()
    with pytest.raises(StackRefused, match="text can be put into a chain"):
        run(unable, SEARCH)


# --- the checker of the small problems


@pytest.mark.parametrize("kind", list(problems.KINDS))
def test_the_step_checker_knows_right_chains_from_wrong_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    check = load("step_checker:check")
    assert check is not None
    draw, wrong = random.Random(2), 0
    for _ in range(60):
        problem = problems.make(kind, draw.randint(1, problems.KINDS[kind][1]), draw)
        lines, answer = problems.worked(problem, draw, slip=0.0)
        assert min(check(problem.question, [*steps("".join(lines)), " " + answer])) == 1
        lines, answer = problems.worked(problem, draw, slip=0.3)
        if answer != problem.answer:
            wrong += 1
            assert min(check(problem.question, [*steps("".join(lines)), " " + answer])) == 0
    assert wrong > 5


def test_the_step_checker_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    check = load("step_checker:check")
    assert check is not None
    assert check("What is 3+4+5 mod 10?", [" 3+4=7;", " 7+5=3;", " 3"]) == [1, 0, 1]
    assert check("What is 3+4+5 mod 10?", [" 3+4=8;", " wait;", " 3+4=7;", " 7+5=2;"]) == [1, 1, 1, 1]
    assert check("What is 3+4+5 mod 10?", [" 3+4=8;", " 8+5=3;", " check: 3+4=7;", " 7+5=2;", " 2"]) == [1] * 5
    assert check("What is 58+67?", [" 8+7+0=15;", " 5+6+0=11;"]) == [1, 0]  # the carry is forgotten
    assert check("What is 58+67?", [" 8+7+0=15;", " 5+6+1=12;", " 125."]) == [1, 1, 1]
    assert check("What is 58+67?", [" 8+7+0=15;", " 5+6+1=12;", " 115."]) == [1, 1, 0]
    asked = "What is the list 1 2 3 after reverse, push 4, drop, swap?"
    lines = [" reverse: 3 2 1;", " push 4: 3 2 1 4;", " drop: 2 1 4;", " swap: 4 1 2;"]
    assert check(asked, lines) == [1, 1, 1, 1]
    assert check(asked, [" reverse: 3 2 1;", " push 4: 3 2 4;"]) == [1, 0]
