"""Plans: each action does what it says, the search finds the plan that is best, the planner learns which it is."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path

import pytest

from lengthwise.errors import BadInput, BadParameter, StackRefused
from lengthwise.thinking import Settings, Thought, sandbox, think
from lengthwise.thinking.planner import fit_planner, load_planner, words
from lengthwise.thinking.registry import parse
from lengthwise.thinking.strategies import dots
from lengthwise.thinking.strategies.dots import PLANS, fit, search
from lengthwise.thinking.strategy import Modes, StrategySpec
from scripted import Scripted

NO_SANDBOX = sandbox.available()
SAFE = [plan for plan in PLANS if "program" not in plan]


def world(question: str, number: int) -> str:
    """A model that can do some things: the answer is 'yes' when it is asked in the right way."""
    if "Do not solve" in question:  # an analysis: the restated or the split question
        return "mm</think>" + ("clear" if question.startswith("Restate") else "1. parts")
    if "Is the solution correct" in question:
        return f"look</think>Is the solution correct? {'yes' if 'Step 2: yes' in question else 'no'}"
    kind = question.split()[0]
    right = {
        "easy": True,
        "murky": "In other words:" in question,
        "long": "Parts to solve" in question,
        "slippery": "An earlier attempt" in question,
    }.get(kind, False)
    if kind == "sum":
        right = "Python program" in question
        return "hm</think>```python\nprint(20 + 22)\n```" if right else "hm</think>41"
    if kind == "hard":
        return "one two three</think>yes"
    return f"one two three</think>{'yes' if right else 'no'}"


class Able(Scripted):
    """'hard' questions need the thinking: without it the answer is wrong."""

    def __init__(self) -> None:
        super().__init__(world)

    async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
        chain = await super().chain(messages, think=think)
        if not think and messages[-1]["content"].startswith("hard"):
            chain.left = ["no"]
        return chain


def run(question: str, strategy: str, sampler: Scripted | None = None) -> Thought:
    return asyncio.run(think(question, sampler or Able(), strategy))


@pytest.mark.parametrize(
    ("question", "plan", "answer"),
    [
        ("hard one", "think", "yes"),
        ("hard one", "direct", "no"),
        ("easy one", "direct", "yes"),
        ("murky one", "rewrite>think", "yes"),
        ("murky one", "think", "no"),
        ("long one", "decompose>direct", "yes"),
        ("long one", "rewrite>direct", "no"),
        ("slippery one", "think>verify", "yes"),
        ("slippery one", "think", "no"),
        ("sum of it", "think", "41"),
        pytest.param("sum of it", "program", "42", marks=pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX)),
    ],
)
def test_actions_do_what_they_say(question: str, plan: str, answer: str) -> None:
    assert run(question, f"dots:plan={plan}").answer == answer


def test_actions_cost_what_they_write() -> None:
    thought = run("slippery one", "dots:plan=rewrite>think>verify")
    # restating "clear" (1); three verdicts' words "look </think> Is the solution correct? no" (7); two chains
    assert thought.spent.other_tokens == 1 + 7
    assert thought.spent.thinking_tokens == 2 * 4
    assert thought.spent.answer_tokens == 2
    assert thought.spent.waiting_tokens == 1 + 5 + 7 + 5
    assert [c.weight for c in thought.chains] == [0, 1]
    assert "verify: no was found wrong, solved again" in thought.notes
    assert run("easy one", "dots:plan=think>verify").notes == []


@pytest.mark.parametrize(
    ("question", "plan"),
    [
        ("easy one", "direct"),  # all plans are right: the cheapest
        ("hard one", "think"),
        ("murky one", "rewrite>direct"),
        ("long one", "decompose>direct"),
        ("slippery one", "direct>verify"),
    ],
)
def test_the_search_finds_the_best_plan(question: str, plan: str) -> None:
    found = asyncio.run(search(question, "yes", Able(), SAFE, rounds=2, runs=1))
    assert (found.plan, found.right) == (plan, 1.0)


def test_the_search_tells_often_right_from_sometimes_right() -> None:
    draw = random.Random(0)

    def script(question: str, number: int) -> str:
        return f"w w</think>{'yes' if draw.random() < 0.9 else 'no'}"

    class Direct(Scripted):  # without thinking right half the time, and cheaper
        async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
            chain = await super().chain(messages, think=think)
            if not think:
                chain.left = ["yes" if draw.random() < 0.4 else "no"]
            return chain

    found = [asyncio.run(search("q", "yes", Direct(script), ["direct", "think"], rounds=1, runs=9)) for _ in range(10)]
    assert [f.plan for f in found].count("think") >= 9
    assert 0.6 < sum(f.right for f in found) / 10 <= 1


def test_while_no_plan_was_right_the_dear_ones_stay() -> None:
    tries = iter(range(100))

    def late(question: str, number: int) -> str:
        return "think and think</think>" + ("yes" if next(tries) > 6 else "no")

    class Direct(Scripted):
        async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
            self.script = late if think else lambda q, n: "</think>no"
            return await super().chain(messages, think=think)

    found = asyncio.run(search("q", "yes", Direct(late), ["think", "direct"], rounds=4, runs=2))
    assert (found.plan, found.right) == ("think", 1 / 8)


def test_the_search_spends_on_the_better_half() -> None:
    sampler = Able()
    asyncio.run(
        search("hard one", "yes", sampler, ["think", "direct", "think>verify", "direct>verify"], rounds=3, runs=2)
    )
    solving = [m for m in sampler.asked if m[-1]["content"].startswith("hard")]
    # four plans, then two, then one, twice each; the verification of 'direct' finds it wrong and solves again
    assert len(solving) == 2 * 4 + 2 + 2 * 2 + 2


def test_the_planner_learns_the_kind_of_question(tmp_path: Path) -> None:
    draw = random.Random(1)
    kinds = ["easy", "hard", "murky", "long"]
    problems = [(f"{kinds[i % 4]} thing with {draw.randrange(100)} parts", "yes") for i in range(24)]
    planner, found = asyncio.run(
        fit(problems, Able(), ["think", "direct", "rewrite>direct", "decompose>direct"], rounds=1)
    )
    assert all(f.right == 1 for f in found)
    planner.save(tmp_path / "plans.json")
    assert load_planner(tmp_path / "plans.json") == planner
    new = {"easy": "direct", "hard": "think", "murky": "rewrite>direct", "long": "decompose>direct"}
    for kind, plan in new.items():
        question = f"{kind} thing with 7 wheels"
        assert planner.choose(question)[0] == plan
        thought = run(question, f"dots:{tmp_path / 'plans.json'}")
        assert thought.answer == "yes"
        assert thought.notes[0].startswith(f"plan: {plan} (")
    # the same questions under the one plan that is best for most are not all right
    assert [run(f"{kind} thing", "dots:plan=think").answer for kind in kinds] == ["yes", "yes", "no", "no"]


def test_the_planner_by_hand() -> None:
    planner = fit_planner(["a a b", "a c", "b b"], ["p", "p", "q"], "m")
    known = sorted({w for q in ("a a b", "a c", "b b") for w in words(q)})
    p = words("a a b") + words("a c")
    q = words("b b")
    odds = math.log(2 / 3) - math.log(1 / 3)
    for word in words("a b"):
        odds += math.log((p.count(word) + 1) / (len(p) + len(known)))
        odds -= math.log((q.count(word) + 1) / (len(q) + len(known)))
    plan, share = planner.choose("a b")
    assert plan == ("p" if odds > 0 else "q")
    assert share == pytest.approx(max(1 / (1 + math.exp(-odds)), 1 / (1 + math.exp(odds))))
    assert planner.choose("a b unseen")[0] == plan


def test_words_keep_the_form_of_numbers() -> None:
    assert words("What is 12+345?") == ["what", "is", "##", "+", "###", "?", "words~3", "numbers~2"]


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="is not one of think"):
        parse("dots:plan=ponder")
    with pytest.raises(BadParameter, match="leave plan or planner out"):
        parse("dots:planner=p.json,plan=direct")
    with pytest.raises(StackRefused, match="cannot be read"):
        run("q", "dots:planner=/nowhere/plans.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(StackRefused, match="is no planner"):
        run("q", f"dots:{tmp_path / 'bad.json'}")
    fit_planner(["q"], ["ponder"], "m").save(tmp_path / "odd.json")
    with pytest.raises(StackRefused, match="a plan 'ponder' that there is not"):
        run("q", f"dots:{tmp_path / 'odd.json'}")
    with pytest.raises(StackRefused, match="needs a thinking section"):
        run("q", "dots:plan=direct", Scripted(world, tags=None))
    with pytest.raises(BadInput, match="there is no plan"):
        asyncio.run(search("q", "yes", Able(), ["ponder"]))
    with pytest.raises(BadInput, match="no plan solved any"):
        asyncio.run(fit([("slippery", "never")], Able(), ["direct"], rounds=1))


def test_a_refused_neighbour_is_named() -> None:
    class Other(Modes):
        """A strategy that decides it, too."""

        spec = StrategySpec(name="other", summary="", formula="", parts=("mode",))

    assert dots.Dots().check(None, [Other()]) == ["dots and other both decide whether the model thinks"]


def test_code_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ran(code: str) -> sandbox.Ran:
        return sandbox.Ran("", "time")

    monkeypatch.setattr(dots.sandbox, "run_python", ran)
    monkeypatch.setattr(dots.sandbox, "available", lambda: "")
    thought = run("sum of it", "dots:plan=program")
    assert (thought.answer, thought.notes) == ("", ["program: it gave no answer (time)"])
    assert run("easy", "dots:plan=program").notes == ["program: none was written"]


def test_seeds_of_the_search_differ() -> None:
    class Seeded(Scripted):
        async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
            chain = await super().chain(messages, think=think)
            self.chains.append(chain)
            return chain

    sampler = Seeded(world)
    sampler.chains = []  # type: ignore[attr-defined]
    asyncio.run(search("easy", "yes", sampler, ["think"], rounds=2, runs=3, settings=Settings(seed=5)))
    seeds = [chain.settings[0].seed for chain in sampler.chains]  # type: ignore[attr-defined]
    assert len(set(seeds)) == 6
    asyncio.run(search("clear", "yes", sampler, ["think"], rounds=2, runs=3, settings=Settings(seed=5)))
    seeds = [chain.settings[0].seed for chain in sampler.chains]  # type: ignore[attr-defined]
    assert len(set(seeds)) == 12  # another question has another luck
