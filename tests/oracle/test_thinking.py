"""The work itself: tokens are counted where they belong, ends are honoured, cancelled chains stop costing."""

from __future__ import annotations

import asyncio

import pytest

from lengthwise.errors import BadInput, EndpointError, UnknownMethod
from lengthwise.thinking import Settings, Strategy, Thought, answer_in, think
from lengthwise.thinking.registry import all_strategies, parse, well_formed
from lengthwise.thinking.work import Work, together
from scripted import DEFAULT, Scripted


def run(sampler: Scripted, strategy: str = "plain", **options: object) -> Thought:
    return asyncio.run(think("what is it?", sampler, strategy, **options))  # type: ignore[arg-type]


def test_a_plain_chain_is_thinking_and_answer() -> None:
    sampler = Scripted(lambda q, n: "one two three</think>four five")
    thought = run(sampler)
    assert thought.answer == "four five"
    (chain,) = thought.chains
    assert (chain.thinking, chain.text, chain.reason) == ("one two three", "four five", "closed")
    assert (chain.thinking_tokens, chain.answer_tokens) == (4, 2)  # the closing tag is paid for
    assert (thought.spent.thinking_tokens, thought.spent.answer_tokens, thought.spent.waiting_tokens) == (4, 2, 6)
    assert sampler.live == 0


def test_thinking_beyond_the_limit_is_closed_and_the_answer_asked_for() -> None:
    sampler = Scripted(lambda q, n: "one two three four</think>late", after=lambda text, n: "soon")
    thought = run(sampler, most_thinking=2)
    assert (thought.chains[0].reason, thought.chains[0].thinking, thought.answer) == ("budget", "one two ", "soon")


def test_a_sampler_that_cannot_be_given_text_leaves_thinking_unfinished() -> None:
    thought = run(Scripted(lambda q, n: "one two three</think>four", able=()), most_thinking=2)
    assert (thought.chains[0].reason, thought.answer) == ("unfinished", "")
    assert "1 chains were cut off in their thinking and have no answer" in thought.notes[0]


def test_a_turn_that_ends_inside_the_thinking() -> None:
    thought = run(Scripted(lambda q, n: "the answer is 7"))
    assert (thought.chains[0].reason, thought.answer) == ("never closed", "7")


def test_a_model_without_a_thinking_section() -> None:
    thought = run(Scripted(lambda q, n: "so it follows\nthe answer is: 12", tags=None))
    assert (thought.answer, thought.chains[0].thinking_tokens, thought.chains[0].answer_tokens) == ("12", 7, 0)


def test_many_chains_stop_when_enough_have_thought() -> None:
    lengths = [9, 3, 6, 30]
    sampler = Scripted(lambda q, n: "w " * lengths[n] + f"</think>{n}")
    work = Work(sampler)
    got = asyncio.run(work.many([{"role": "user", "content": "q"}], 4, 2))
    assert [w.answer for w in got] == ["1", "2"]
    cancelled = [w for w in work.chains if w.reason == "cancelled"]
    assert len(cancelled) == work.spent.cancelled_chains == 2
    assert work.spent.cancelled_tokens == sum(w.thinking_tokens for w in cancelled)
    assert all(w.thinking_tokens < 12 for w in cancelled)  # the longest would have written thirty
    assert work.spent.thinking_tokens == sum(w.thinking_tokens for w in work.chains)
    assert work.spent.waiting_tokens == max(w.tokens for w in got)
    assert sampler.live == 0


def test_an_error_of_one_chain_ends_all() -> None:
    class Failing(Scripted):
        async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
            if len(self.asked) == 2:
                raise BadInput("no more")
            return await super().chain(messages, think=think)

    sampler = Failing(lambda q, n: "w " * 50 + "</think>1")
    with pytest.raises(BadInput, match="no more"):
        asyncio.run(Work(sampler).many([{"role": "user", "content": "q"}], 4, 2))
    assert sampler.live == 0


def losing(lost: set[int]) -> Scripted:
    """Four chains that end in the order of their numbers; the server fails at the fifth token of those in `lost`."""

    class Losing(Scripted):
        async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
            made = await super().chain(messages, think=think)
            write = made.write

            async def failing(most, stop=(), settings=DEFAULT):  # type: ignore[no-untyped-def]
                await write(5, (), settings)
                raise EndpointError("the line went dead")

            if made.number in lost:
                made.write = failing  # type: ignore[method-assign]
            return made

    return Losing(lambda q, n: "w " * (10 + 2 * n) + "</think>1")


def test_a_vote_survives_chains_whose_server_fails() -> None:
    sampler = losing({1, 2})
    thought = asyncio.run(think("q", sampler, "majority:4"))
    assert thought.answer == "1"
    assert [c.reason for c in thought.chains] == ["closed", "lost", "lost", "closed"]
    assert any("2 chains were lost: the line went dead" in note for note in thought.notes)
    assert thought.spent.thinking_tokens == sum(c.thinking_tokens for c in thought.chains) == 11 + 5 + 5 + 17
    assert sampler.live == 0


def test_the_first_ones_are_taken_of_those_that_are_left() -> None:
    thought = asyncio.run(think("q", losing({0}), "short-m@k:m=2,k=4"))
    assert [c.reason for c in thought.chains] == ["lost", "closed", "closed", "cancelled"]


def test_when_all_chains_are_lost_the_error_is_told() -> None:
    sampler = losing({0, 1, 2, 3})
    with pytest.raises(EndpointError, match="went dead"):
        asyncio.run(think("q", sampler, "majority:4"))
    assert sampler.live == 0


@pytest.mark.parametrize(
    ("text", "how", "answer"),
    [
        ("so \\boxed{1{2}3} and \\boxed{4,200}.", "auto", "4200"),
        ("so the Answer is: 42.", "auto", "42"),
        ("it is **1,234**", "number", "1234"),
        ("\n first \n second", "line", "first"),
        ("first\nsecond.", "auto", "second"),
        ("", "auto", ""),
        ("no digits", "number", ""),
        ("\\boxed{open", "boxed", ""),
    ],
)
def test_answers_are_found(text: str, how: str, answer: str) -> None:
    assert answer_in(text, how) == answer  # type: ignore[arg-type]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnknownMethod, match="no strategy"):
        parse("short-m@q:k=3")
    with pytest.raises(BadInput, match="empty"):
        asyncio.run(think(" ", Scripted(lambda q, n: "")))
    with pytest.raises(UnknownMethod, match="'plain' is no strategy beside others"):
        parse("plain + budget:10")
    with pytest.raises(BadInput, match="the user's"):
        asyncio.run(think([{"role": "assistant", "content": "hi"}], Scripted(lambda q, n: "")))
    for settings in (Settings(temperature=-1), Settings(temperature=float("inf")), Settings(top_p=0)):
        with pytest.raises(BadInput, match="temperature must be"):
            run(Scripted(lambda q, n: ""), settings=settings)


def test_when_one_job_fails_the_others_stop_costing() -> None:
    sampler = Scripted(lambda q, n: "</think>" + "word " * 1000)

    async def work() -> tuple[int, int]:
        job = Work(sampler)

        async def fails() -> str:
            for _ in range(5):
                await asyncio.sleep(0)
            raise BadInput("no")

        with pytest.raises(BadInput, match="no"):
            await together(job.ask([{"role": "user", "content": "q"}], 1000), fails())
        return job.spent.other_tokens, sampler.live

    tokens, live = asyncio.run(work())
    assert 0 < tokens < 20
    assert live == 0


def test_a_side_question_that_does_not_fit_is_left_out_only_where_it_may_be() -> None:
    def script(question: str, number: int) -> str:
        if question == "long":
            raise BadInput("too long")
        return "</think>yes"

    async def work(needed: bool) -> tuple[list[str], list[str]]:
        job = Work(Scripted(script))
        asked = [[{"role": "user", "content": q}] for q in ("short", "long", "short")]
        return await job.asks(asked, needed=needed), job.unasked

    assert asyncio.run(work(False)) == (["yes", "", "yes"], ["too long"])
    with pytest.raises(BadInput, match="too long"):
        asyncio.run(work(True))


@pytest.mark.parametrize("name", list(all_strategies()))
def test_strategies_are_well_formed(name: str) -> None:
    kind: type[Strategy] = all_strategies()[name]
    assert well_formed(kind) == []
    assert parse(str(kind())) == [kind()]
    assert kind.spec.test
    assert kind.__doc__
