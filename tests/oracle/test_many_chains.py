"""Votes among many chains: who votes, what a vote weighs, and what the others cost, exact on scripted chains."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from lengthwise.bench import problems
from lengthwise.errors import BadParameter, StackRefused
from lengthwise.thinking import Settings, Thought, think
from lengthwise.thinking.registry import parse
from lengthwise.thinking.steps import steps
from lengthwise.thinking.strategies.divide_conquer import choices
from lengthwise.thinking.strategies.internal_consistency import agreement
from scripted import Scripted, ScriptedChain

Spec = Sequence[tuple[int, str]]  # (words of thinking, answer) of each chain


def scripted(chains: Spec) -> Scripted:
    return Scripted(lambda q, n: "w " * chains[n][0] + f"</think>{chains[n][1]}")


def run(sampler: Scripted, strategy: str, **options: object) -> Thought:
    return asyncio.run(think("what is it?", sampler, strategy, **options))  # type: ignore[arg-type]


def plurality(answers: Sequence[str]) -> str:
    """The most frequent, written as a count: of equals the one that comes first."""
    counts = Counter(a for a in answers if a)
    return max(counts, key=lambda a: (counts[a], -answers.index(a))) if counts else ""


# --- short-m@k


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_the_m_shortest_vote_and_the_others_stop(m: int) -> None:
    draw = random.Random(m)
    for _ in range(20):
        lengths = draw.sample(range(3, 90, 4), 5)  # apart, so that no answer overtakes a thought
        chains = [(length, draw.choice("ABC")) for length in lengths]
        sampler = scripted(chains)
        thought = run(sampler, f"short-m@k:m={m},k=5")
        shortest = sorted(chains)[:m]
        assert thought.answer == plurality([a for _, a in shortest])
        share = sum(a == thought.answer for _, a in shortest) / m
        assert thought.confidence == pytest.approx(share)
        voted = {c.thinking_tokens - 1 for c in thought.chains if c.weight == 1}  # less the closing tag
        assert voted == {length for length, _ in shortest}
        assert sampler.live == 0


def test_a_tie_goes_to_the_shortest() -> None:
    chains = [(40, "B"), (5, "A"), (20, "C")]
    assert run(scripted(chains), "short-m@k:m=3,k=3").answer == "A"
    assert run(scripted(chains), "short-m@k:m=2,k=3").answer == "A"


def test_tokens_saved_against_majority_are_exact() -> None:
    chains = [(10, "A"), (30, "B"), (50, "A"), (100, "B"), (200, "B")]
    whole = run(scripted(chains), "majority:k=5").spent
    assert (whole.thinking_tokens, whole.cancelled_tokens, whole.waiting_tokens) == (390 + 5, 0, 202)
    thought = run(scripted(chains), "short-m@k:m=2,k=5")
    spent = thought.spent
    kept = [c for c in thought.chains if c.weight]
    assert [c.thinking_tokens for c in kept] == [11, 31]
    stopped = [c.thinking_tokens for c in thought.chains if not c.weight]
    # every chain writes one token a turn: the stopped ones are where the second to end was, give or take the turns
    # that it takes to hear of it
    assert all(31 <= tokens <= 34 for tokens in stopped)
    assert spent.cancelled_chains == 3
    assert spent.cancelled_tokens == sum(stopped)
    assert spent.thinking_tokens == 11 + 31 + sum(stopped)
    assert spent.waiting_tokens == 32  # of the last that voted, its answer included
    assert all(c.reason == "cancelled" for c in thought.chains if not c.weight)


def test_all_of_k_is_majority() -> None:
    chains = [(10, "A"), (30, "B"), (50, "B"), (7, "C")]
    assert run(scripted(chains), "short-m@k:m=4,k=4").answer == run(scripted(chains), "majority:k=4").answer == "B"


@pytest.mark.parametrize("text", ["short-m@k:m=4,k=3", "short-m@k:m=0", "complexity:m=9,k=8", "majority:k=0"])
def test_counts_that_cannot_be(text: str) -> None:
    with pytest.raises(BadParameter, match=r"m must|below m|at least 1"):
        parse(text)


def test_two_that_solve_are_refused_by_name() -> None:
    with pytest.raises(StackRefused, match=r"short-m@k and majority both decide how many chains"):
        run(scripted([]), "short-m@k + majority")


def test_what_makes_a_vote_empty_is_said() -> None:
    notes = run(scripted([(3, "A")] * 3), "majority:k=3", settings=Settings(temperature=0)).notes
    assert any("temperature is 0" in note for note in notes)
    assert not run(scripted([(3, "A")] * 3), "majority:k=3").notes
    silent = run(scripted([(3, "")] * 3), "majority:k=3")
    assert (silent.answer, silent.confidence) == ("", 0.0)
    assert any("no chain that votes has an answer" in note for note in silent.notes)


# --- majority


def test_majority_is_the_most_frequent_answer_over_all_chains() -> None:
    draw = random.Random(3)
    for _ in range(30):
        lengths = draw.sample(range(3, 120, 4), 6)
        chains = [(length, draw.choice(["A", "B", "C", ""])) for length in lengths]
        thought = run(scripted(chains), "majority:k=6")
        ended = [a for _, a in sorted(chains)]
        assert thought.answer == plurality(ended)
        assert thought.confidence == pytest.approx(ended.count(thought.answer) / 6 if thought.answer else 0)
        assert thought.spent.cancelled_chains == 0


def test_a_chain_without_an_answer_lowers_the_confidence() -> None:
    thought = run(scripted([(3, "A"), (9, ""), (15, ""), (21, "A")]), "majority:k=4")
    assert (thought.answer, thought.confidence) == ("A", 0.5)
    assert [c.weight for c in thought.chains] == [1, 0, 0, 1]


# --- complexity


def test_the_chains_with_the_most_steps_vote() -> None:
    # steps are not tokens: the wordy chains have one step, the terse ones many
    scripts = [
        "w " * 40 + "</think>A",
        "w " * 50 + "</think>A",
        "w " * 60 + "</think>A",
        "a; b; c;</think>B",
        "a; b;</think>B",
    ]
    thought = run(Scripted(lambda q, n: scripts[n]), "complexity:m=2,k=5")
    assert (thought.answer, thought.confidence) == ("B", 1.0)
    assert [c.weight for c in thought.chains] == [0, 0, 0, 1, 1]
    assert run(Scripted(lambda q, n: scripts[n]), "complexity:m=5,k=5").answer == "A"
    assert (thought.spent.cancelled_chains, thought.spent.waiting_tokens) == (0, 62)


def test_complexity_is_short_m_at_k_with_the_sign_turned() -> None:
    sizes = [3, 6, 12, 24, 48]

    def script(question: str, number: int) -> str:
        return "w; " * sizes[number] + f"</think>{'AABBB'[number]}"

    short = run(Scripted(script), "short-m@k:m=2,k=5")
    long = run(Scripted(script), "complexity:m=2,k=5")
    assert (short.answer, long.answer) == ("A", "B")
    assert [bool(c.weight) for c in short.chains] == [True, True, False, False, False]
    assert [bool(c.weight) for c in long.chains] == [False, False, False, True, True]


# --- internal consistency


class Layered(Scripted):
    """Chain number n answers ANSWERS[n]; its layers prefer what LAYERS[n] says."""

    answers = "AABC"
    layers = ("BBCA", "CBBA", "BBBB", "ACCC")
    seen: list[tuple[str, tuple[str, ...]]]

    def __init__(self) -> None:
        super().__init__(lambda q, n: f"t{n} " + "w " * 4 * n + f"</think>The answer is: {self.answers[n % 4]}")
        self.able, self.seen = frozenset({"prefix", "layers"}), []

    async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
        chain = await super().chain(messages, think=think)
        chain.__class__ = LayeredChain
        return chain


class LayeredChain(ScriptedChain):
    async def layered(self, answers: Sequence[str]) -> list[list[float]]:
        self.sampler.seen.append((self.text, tuple(answers)))  # type: ignore[attr-defined]
        number = int(self.text[1])
        prefers = Layered.layers[number]
        return [[0.0 if a.strip() == best else -1.0 for a in answers] for best in prefers]


def test_layers_weigh_the_votes() -> None:
    sampler = Layered()
    thought = run(sampler, "internal-consistency:k=4")
    # three layers below the last: chain 0 says A, they say B B C; chain 1 says A, they say C B B; chain 2 all B
    assert [c.weight for c in thought.chains] == [0, 0, 1, pytest.approx(2 / 3)]
    assert thought.answer == "B"
    assert thought.confidence == pytest.approx(1 / (5 / 3))
    assert run(Layered(), "majority:k=4").answer == "A"
    assert sampler.live == 0


def test_layers_are_read_where_the_answer_stands() -> None:
    sampler = Layered()
    read = run(sampler, "internal-consistency:k=4").spent.prompt_tokens
    text, answers = sampler.seen[1]
    assert text == "t1 " + "w " * 4 + "</think>The answer is:"
    assert answers == (" A", " B", " C")
    plain = run(Layered(), "majority:k=4").spent.prompt_tokens
    again = sum(4 + sampler.count(text) for text, _ in sampler.seen)  # four words of the message and the text
    assert read - plain == pytest.approx(again, abs=8)


def test_agreement_by_hand() -> None:
    rows = [[-1.0, -2.0], [-2.0, -1.0], [-1.0, -2.0], [-2.0, -1.0], [0.0, -9.0]]
    assert agreement(rows, 0) == 0.5  # the last layer is what the others are compared with
    assert agreement(rows[:3], 1) == 0.5
    assert agreement(rows[:1], 1) == 1.0


def test_layers_are_needed_and_not_asked_in_vain() -> None:
    with pytest.raises(StackRefused, match="answers can be read off at every layer"):
        run(scripted([(3, "A")]), "internal-consistency")
    sampler = Layered()
    sampler.answers = "AAAA"  # type: ignore[misc]
    thought = run(sampler, "internal-consistency:k=4")
    assert not sampler.seen
    assert any("not asked" in note for note in thought.notes)


# --- divide and conquer


class Rounds(Scripted):
    """Answers of the first round, then of the second, by the chain's number."""

    def __init__(self, answers: str) -> None:
        super().__init__(lambda q, n: "w " * (4 * (n % 5) + 2) + f"</think>{answers[n].strip('-')}")


def questions(sampler: Scripted) -> list[str]:
    return [messages[-1]["content"] for messages in sampler.asked]


def test_where_the_first_chains_agree_no_more_are_asked() -> None:
    sampler = Rounds("AAAAB" + "BBBBB")
    thought = run(sampler, "divide-conquer:k=5,sure=0.8")
    assert (thought.answer, thought.confidence, thought.spent.chains) == ("A", 0.8, 5)
    assert any("5 chains saved" in note for note in thought.notes)


def test_where_they_do_not_the_second_round_decides() -> None:
    sampler = Rounds("AAABC" + "BBBBA")
    thought = run(sampler, "divide-conquer:k=5,sure=0.8")
    assert (thought.answer, thought.confidence, thought.spent.chains) == ("B", 0.8, 10)
    assert [c.weight for c in thought.chains] == [0] * 5 + [1] * 5
    assert questions(sampler)[:5] == ["what is it?"] * 5
    assert questions(sampler)[5:] == ["what is it?\n\nThe answer is one of these: A; B; C."] * 5
    # the rounds follow one another, chains of a round do not
    assert thought.spent.waiting_tokens == 2 * (4 * 4 + 2 + 1 + 1)


def test_again_votes_with_all_chains() -> None:
    sampler = Rounds("AAABC" + "BBBBA")
    thought = run(sampler, "divide-conquer:k=5,how=again")
    assert (thought.answer, thought.confidence) == ("B", 0.5)
    assert questions(sampler) == ["what is it?"] * 10


def test_knowledge_hands_the_reasoning_on() -> None:
    sampler = Scripted(lambda q, n: f"idea{n}</think>{'ABBBB'[n % 5] if n > 2 else 'ABC'[n]}")
    run(sampler, "divide-conquer:k=3,how=both")
    asked = questions(sampler)[3]
    assert all(f"[{i + 1}] idea{i}" in asked for i in range(3))
    assert asked.endswith("Question: what is it?\n\nThe answer is one of these: A; B; C.")


def test_options_that_never_came_up_are_taken_out() -> None:
    question = "Which?\nA) one\nB) two\nC) three\nD) four"
    assert choices(question, ["B", "(D)"]) == "Which?\nB) two\nD) four"
    assert choices(question, ["two"]).endswith("The answer is one of these: two.")


def test_a_second_round_without_answers_leaves_the_first() -> None:
    thought = run(Rounds("AAABC" + "-----"), "divide-conquer:k=5")
    assert (thought.answer, thought.confidence) == ("A", 0.6)
    assert [c.weight for c in thought.chains] == [1] * 5 + [0] * 5
    assert any("gave no answer" in note for note in thought.notes)


def test_calls_saved_on_easy_problems_at_the_accuracy_of_twice_the_chains() -> None:
    """Chains are right 9 times in 10 on easy problems, 6 in 10 on hard ones, and their errors differ."""
    calls = {"divide-conquer:k=5,how=again": 0, "majority:k=10": 0, "majority:k=5": 0}
    right = dict.fromkeys(calls, 0)
    for seed in range(60):
        draw = random.Random(seed)
        level = 0.9 if seed % 2 else 0.6
        answers = ["R" if draw.random() < level else draw.choice("xyz") for _ in range(10)]
        for strategy in calls:
            thought = run(scripted([(3 + 4 * i, a) for i, a in enumerate(answers)]), strategy)
            calls[strategy] += thought.spent.chains
            right[strategy] += thought.answer == "R"
    routed, whole, half = calls
    assert calls[routed] < 0.8 * calls[whole]
    assert right[routed] >= right[half]
    assert right[routed] >= right[whole] - 1


# --- the pocket reasoner


def test_the_pocket_reasoner_votes() -> None:
    """With the same seed chains are the same under every strategy, so that one record of them foretells all."""
    from lengthwise.thinking.local import LocalSampler

    problem = problems.make("sum", 6, random.Random(4))
    strategies = ["majority:k=4", "short-m@k:m=1,k=4", "complexity:m=2,k=4", "internal-consistency:k=4"]

    async def all_of_them() -> list[Thought]:
        sampler = LocalSampler("pocket-reasoner")
        settings = Settings(temperature=1.0, seed=11)
        options = {"settings": settings, "most_thinking": 200, "most_answer": 16}
        try:
            return [await think(problem.question, sampler, s, **options) for s in strategies]  # type: ignore[arg-type]
        finally:
            await sampler.close()

    majority, short, complexity, internal = asyncio.run(all_of_them())
    chains = majority.chains
    assert len({c.thinking_tokens for c in chains}) > 1  # they differ in length
    least = min(c.thinking_tokens for c in chains)
    (voted,) = [c for c in short.chains if c.weight]
    assert voted.thinking in [c.thinking for c in chains if c.thinking_tokens == least]
    stopped = sum(min(c.thinking_tokens, least) for c in chains)  # and what was written until they heard of it
    assert stopped <= short.spent.thinking_tokens < majority.spent.thinking_tokens
    assert short.spent.waiting_tokens < majority.spent.waiting_tokens
    assert (
        [c.thinking for c in complexity.chains] == [c.thinking for c in chains] == [c.thinking for c in internal.chains]
    )
    voters = sorted(range(4), key=lambda i: -len(steps(chains[i].thinking)))[:2]
    assert {len(steps(c.thinking)) for c in complexity.chains if c.weight} <= {
        len(steps(chains[i].thinking)) for i in voters
    }
    assert all(0 <= c.weight <= 1 for c in internal.chains)
    assert internal.spent.prompt_tokens >= majority.spent.prompt_tokens
