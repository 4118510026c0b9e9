"""Strategies of one chain: what is put, what is turned away, where thinking ends, and what it cost, on scripts."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lengthwise.errors import BadParameter, StackRefused
from lengthwise.thinking import Settings, Strategy, Thought, think
from lengthwise.thinking.registry import parse
from lengthwise.thinking.strategies.early_exit import EarlyExit
from lengthwise.thinking.strategies.more_think import MoreThink
from lengthwise.thinking.strategies.stop_temperature import StopTemperature
from scripted import Scripted


def run(sampler: Scripted, strategy: str | list[Strategy], **options: object) -> Thought:
    return asyncio.run(think("what is it?", sampler, strategy, **options))  # type: ignore[arg-type]


def refused(strategy: str, sampler: Scripted | None = None) -> str:
    with pytest.raises(StackRefused) as error:
        run(sampler or Scripted(lambda q, n: "one</think>two"), strategy)
    return "; ".join(error.value.reasons)


# --- ZeroThink, LessThink, MoreThink


def test_zero_think_writes_no_thinking() -> None:
    thought = run(Scripted(lambda q, n: "one two three</think>four"), "zero-think")
    (chain,) = thought.chains
    assert (chain.thinking, chain.thinking_tokens, chain.put_tokens, chain.reason) == ("", 0, 0, "not thinking")
    assert (thought.answer, thought.spent.waiting_tokens) == ("four", 1)


def test_less_think_is_the_published_sentence_and_the_closing_tag() -> None:
    seen = []
    sampler = Scripted(lambda q, n: "one two</think>four", after=lambda text, n: seen.append(text) or "five")
    (chain,) = run(sampler, "less-think").chains
    sentence = "Okay, the user ask for this, I can answer it without thinking much. \n"
    assert (chain.thinking, chain.text, chain.thinking_tokens) == (sentence, "five", 0)
    assert seen[-1] == sentence + "</think>"


def test_more_think_turns_the_end_away_as_often_as_it_says() -> None:
    sampler = Scripted(lambda q, n: "one</think>no", after=lambda text, n: f" {text.count('Wait')}</think>yes")
    thought = run(sampler, "more-think:times=2,words=Wait")
    (chain,) = thought.chains
    assert (chain.thinking, chain.reason, chain.answer) == ("one Wait 1 Wait 2", "closed", "yes")
    assert (chain.thinking_tokens, chain.put_tokens) == (8, 4)  # three closing tags; a blank and a word, twice


def test_more_think_is_ten_times_either_of_two_words_as_published() -> None:
    sampler = Scripted(lambda q, n: "one\n</think>no", after=lambda text, n: f" go {len(text)}\n</think>yes")
    (chain,) = run(sampler, "more-think").chains
    waits, agains = chain.thinking.count("Wait"), chain.thinking.count("Let me think again")
    assert waits + agains == 10
    assert min(waits, agains) > 0
    assert "\nWait" in chain.thinking  # no blank where the thinking ends in one


def test_more_think_up_to_a_least_length() -> None:
    sampler = Scripted(lambda q, n: "a b c</think>no", after=lambda text, n: " d e f</think>yes")
    assert run(sampler, "more-think:words=Wait,least=10").chains[0].thinking.count("Wait") == 1
    assert run(sampler, "more-think:words=Wait,least=4").chains[0].thinking.count("Wait") == 0
    assert "wants at least 64 tokens, budget allows 32" in refused("more-think:least=64 + budget:32")


def test_more_think_stays_in_its_budget() -> None:
    sampler = Scripted(lambda q, n: "a b</think>no", after=lambda text, n: " c d</think>yes")
    (chain,) = run(sampler, "more-think:times=10,words=Wait + budget:12").chains
    assert chain.reason == "budget"
    assert chain.thinking_tokens + chain.put_tokens == 12
    assert 0 < chain.thinking.count("Wait") < 10


# --- budgets


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_a_budget_cuts_at_its_token(tokens: int) -> None:
    sampler = Scripted(lambda q, n: "one two three four</think>late", after=lambda text, n: "soon")
    (chain,) = run(sampler, f"budget:{tokens}").chains
    assert chain.thinking == " ".join(["one", "two", "three"][:tokens]) + " "
    assert (chain.reason, chain.thinking_tokens, chain.answer) == ("budget", tokens, "soon")


def test_a_budget_asks_for_the_answer_only_where_it_cut() -> None:
    seen: list[str] = []
    sampler = Scripted(lambda q, n: "one two</think>four", after=lambda text, n: seen.append(text) or "five")
    assert run(sampler, "budget:1,answer=Final Answer:").answer == "five"
    assert seen[-1] == "one </think>\nFinal Answer:"
    whole = run(sampler, "budget:9,answer=Final Answer:")
    assert (whole.answer, whole.chains[0].reason, whole.spent.put_tokens) == ("four", "closed", 0)


# --- the temperature of the stop


class Bytes:
    """A tokenizer in which the closing tag is one token."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [2] if text == "</think>" else list(text.encode())


def stopping(temperature: float, logits: list[float], base: Settings | None = None) -> list[float]:
    """Probabilities after the strategy."""
    sampler = Scripted(lambda q, n: "", able=("logits",))
    sampler.tokenizer = Bytes()  # type: ignore[attr-defined]
    settings = StopTemperature(temperature=temperature).settings(base or Settings(), sampler)
    assert settings.logits is not None
    given = torch.tensor(logits)
    out = settings.logits(given, []).softmax(-1).tolist()
    assert given.tolist() == torch.tensor(logits).tolist()  # the model's own logits are left alone
    return out


@pytest.mark.parametrize("logits", [[0.0, 1.0, 2.0, 3.0], [5.0, 4.0, 9.0, -3.0], [10.0, 10.5, 3.0, 11.0]])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0, 7.0])
def test_the_stop_has_a_temperature_of_its_own(logits: list[float], temperature: float) -> None:
    plain = [math.exp(z) / sum(map(math.exp, logits)) for z in logits]
    raised = plain[2] ** (1 / temperature)
    want = [p / (1 - plain[2] + raised) for p in plain]
    want[2] = raised / (1 - plain[2] + raised)
    assert stopping(temperature, logits) == pytest.approx(want, abs=1e-6)
    assert stopping(temperature, [z + 7 for z in logits]) == pytest.approx(want, abs=1e-6)


def test_the_higher_its_temperature_the_likelier_the_stop() -> None:
    got = [stopping(t, [1.0, 0.0, -2.0, 3.0])[2] for t in (0.5, 0.9, 1.0, 1.5, 4.0)]
    assert got == sorted(set(got))


def test_what_the_settings_did_to_logits_comes_first() -> None:
    base = Settings(logits=lambda z, ids: z + torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert stopping(3.0, [0.0, 1.0, 1.0, 0.0], base) == pytest.approx(stopping(3.0, [0.0, 1.0, 2.0, 0.0]))


def test_the_stop_must_be_one_token() -> None:
    assert "needs a closing tag of one token" in refused(
        "stop-temperature", Scripted(lambda q, n: "", able=("logits", "prefix"))
    )
    assert "logits of the next token" in refused("stop-temperature")


# --- early exit


def sure_of(word: str, high: float = 0.99) -> Scripted:
    """Forks answer 'four', with `high` probability once `word` has been thought, else with 0.5."""
    sampler = Scripted(
        lambda q, n: "one two Wait three four Wait five six</think>late",
        after=lambda text, n: "four }end" if text.endswith(("boxed{", "</think>")) else "",
    )

    def prob(token: str) -> float:
        return high if any(word in text for text in thought_of) else 0.5

    thought_of: list[str] = []
    fresh = sampler.after
    sampler.after = lambda text, n: thought_of.append(text) or fresh(text, n)  # type: ignore[misc]
    sampler.prob = prob
    return sampler


def test_early_exit_ends_at_the_first_word_where_the_trial_is_sure() -> None:
    thought = run(sure_of("three"), [EarlyExit(words="Wait ", most=3)])
    (chain,) = thought.chains
    assert (chain.reason, chain.thinking) == ("confident", "one two Wait three four ")  # the word itself is dropped
    assert (chain.answer, thought.spent.other_tokens, chain.side_tokens) == ("four }end", 4, 4)
    assert chain.thinking_tokens == 6
    assert thought.spent.waiting_tokens == 6 + 2 + 4  # thinking, answer, two trials up to the brace


def test_early_exit_goes_on_when_no_trial_is_sure() -> None:
    sampler = sure_of("nothing")
    (chain,) = run(sampler, [EarlyExit(words="Wait ")]).chains
    assert (chain.reason, chain.thinking) == ("closed", "one two Wait three four Wait five six")
    assert sampler.live == 0


@pytest.mark.parametrize(("high", "reason"), [(0.5, "closed"), (0.93, "closed"), (0.97, "confident")])
def test_early_exit_wants_the_geometric_mean(high: float, reason: str) -> None:
    assert run(sure_of("one", high), [EarlyExit(words="Wait ")]).chains[0].reason == reason


def test_the_geometric_mean_is_not_the_arithmetic_one() -> None:
    sampler = sure_of("one")
    sampler.prob = lambda token: 0.25 if token.startswith("four") else 1.0
    for threshold, reason in ((0.49, "confident"), (0.51, "closed")):  # sqrt(0.25 * 1), not 0.625
        chain = run(sampler, [EarlyExit(words="Wait ", threshold=threshold)]).chains[0]
        assert chain.reason == reason


def test_early_exit_at_a_pace_after_closing() -> None:
    sampler = sure_of("five")
    thought = run(sampler, "early-exit:words=none,pace=3,trial=closed")
    assert thought.chains[0].thinking == "one two Wait three four Wait five six"  # 3 and 6 tokens are before 'five'
    thought = run(sure_of("three"), "early-exit:words=none,pace=4,trial=closed")
    assert thought.chains[0].thinking == "one two Wait three "
    assert thought.spent.other_tokens == 2


def test_early_exit_keeps_its_pace_when_another_watcher_looks_more_often() -> None:
    sampler = Scripted(
        lambda q, n: "one Wait<two three four five</think>late", after=lambda text, n: "<x y z</think>late"
    )
    thought = run(sampler, "early-exit:words=none,pace=99,trial=closed + hint:at=words")
    assert thought.spent.other_tokens == 0
    assert thought.notes == ["early-exit did nothing: its moment never came"]


def test_early_exit_tries_no_more_than_it_may() -> None:
    thought = run(sure_of("nothing"), "early-exit:words=none,pace=1,trial=closed,trials=2,most=1")
    assert (thought.chains[0].reason, thought.spent.other_tokens) == ("closed", 2)


def test_what_never_came_to_act_is_said() -> None:
    thought = run(Scripted(lambda q, n: "one two</think>three"), "early-exit")
    assert thought.notes == ["early-exit did nothing: its moment never came"]
    assert run(sure_of("nothing"), [EarlyExit(words="Wait ")]).notes == []
    assert run(
        Scripted(lambda q, n: "one two three</think>four", after=lambda t, n: "x"), "budget:1 + more-think"
    ).notes


def test_an_endpoint_reads_on_from_the_same_stream_after_a_trial() -> None:
    pytest.importorskip("httpx")
    from fake_server import FakeServer, Reply
    from lengthwise.thinking.endpoint import EndpointSampler

    def script(body: dict[str, Any], number: int) -> Reply:
        if body["prompt"].endswith("</think>"):  # a trial, or the answer
            return Reply(answer="four")
        return Reply(thinking="one two Wait three", answer="late", style="opened")

    async def ask(url: str, threshold: float) -> Thought:
        sampler = EndpointSampler(url, "fake", continuation="llama.cpp")
        try:
            return await think("2+2?", sampler, f"early-exit:threshold={threshold},trial=closed")
        finally:
            await sampler.close()

    for threshold, reason, requests in ((0.9, "closed", 2), (0.7, "confident", 3)):  # the server says exp(-0.25)
        with FakeServer(script) as server:
            thought = asyncio.run(ask(server.url, threshold))
            assert len(server.seen) == requests
        chain = thought.chains[0]
        assert (chain.reason, chain.thinking) == (
            reason,
            {"closed": "one two Wait three", "confident": "one two "}[reason],
        )
        assert (thought.answer, thought.spent.other_tokens) == ({"closed": "late", "confident": "four"}[reason], 1)


def test_trials_leave_the_chain_of_a_local_model_as_it_is() -> None:
    from lengthwise.thinking.local import LocalSampler

    trying = "early-exit:words=wait/check,pace=7,threshold=1,trials=99,trial=closed"

    async def work() -> list[Thought]:
        sampler = LocalSampler("pocket-reasoner")
        try:
            return await asyncio.gather(
                *(
                    think("What is 3+9+4 mod 10?", sampler, s, settings=Settings(temperature=1.0, seed=seed))
                    for s in ("plain", trying, "stop-temperature:1")
                    for seed in range(5)
                )
            )
        finally:
            await sampler.close()

    got = asyncio.run(work())
    plain, tried, neutral = ([t.chains[0] for t in got[n : n + 5]] for n in (0, 5, 10))
    assert [c.thinking for c in neutral] == [c.thinking for c in plain]
    same = [(a.thinking, b.thinking) for a, b in zip(plain, tried, strict=True) if b.reason == "closed"]
    assert len(same) > 1
    assert all(a == b for a, b in same)
    assert sum(c.side_tokens for c in tried) > 10


def test_the_stop_temperature_sets_how_long_a_local_model_thinks() -> None:
    from lengthwise.thinking.local import LocalSampler

    async def work(strategy: str) -> int:
        sampler = LocalSampler("pocket-reasoner")
        try:
            settings = Settings(temperature=1.0, seed=3)
            asked = [think(f"What is {n}+9+4 mod 10?", sampler, strategy, settings=settings) for n in range(10)]
            return sum(thought.spent.thinking_tokens for thought in await asyncio.gather(*asked))
        finally:
            await sampler.close()

    sooner, plain, later = (asyncio.run(work(s)) for s in ("stop-temperature:8", "plain", "stop-temperature:0.3"))
    assert sooner < 0.7 * plain < plain < 0.8 * later


# --- prompts


def test_zero_shot_cot_ends_the_question_with_its_sentence() -> None:
    sampler = Scripted(lambda q, n: "one</think>two")
    run(sampler, "cot")
    assert sampler.asked == [[{"role": "user", "content": "what is it?\nLet's think step by step."}]]


def test_few_shot_cot_shows_worked_examples(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    rows = [{"question": f"{n}+1?", "reasoning": f"{n} and 1.", "answer": n + 1} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    sampler = Scripted(lambda q, n: "one</think>two")
    run(sampler, f"cot:examples={path},shots=2")
    assert sampler.asked[0][-1]["content"] == (
        "Q: 0+1?\nA: 0 and 1. The answer is 1.\n\nQ: 1+1?\nA: 1 and 1. The answer is 2.\n\nQ: what is it?\nA:"
    )
    assert "has 3 examples, not 4" in refused(f"cot:examples={path},shots=4")
    assert "cannot be read" in refused(f"cot:{tmp_path}/none.jsonl")
    (broken := tmp_path / "broken.jsonl").write_text('{"question": "a"}\n')
    assert "broken.jsonl:1 is no example" in refused(f"cot:{broken}")


def test_few_shot_cot_can_pick_the_examples_with_the_most_steps(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    made = [{"question": f"q{n}", "reasoning": "\n".join(["a step"] * n), "answer": n} for n in (1, 3, 2)]
    path.write_text("\n".join(map(json.dumps, made)))
    for pick, first in (("first", "Q: q1\n"), ("complex", "Q: q3\n")):
        sampler = Scripted(lambda q, n: "one</think>two")
        run(sampler, f"cot:examples={path},pick={pick}")
        assert sampler.asked[0][-1]["content"].startswith(first)


def test_the_second_stage_extracts_the_answer() -> None:
    def script(question: str, number: int) -> str:
        return "six and one</think>so it is seven" if number == 0 else "</think> 7."

    sampler = Scripted(script)
    thought = run(sampler, "cot + two-stage:number")
    assert thought.answer == "7"
    assert sampler.asked[1][-1]["content"] == (
        "what is it?\nLet's think step by step.\nsix and one\nso it is seven\n"
        "Therefore, the answer (arabic numerals) is"
    )
    assert (thought.spent.other_tokens, thought.spent.waiting_tokens, thought.chains[0].weight) == (2, 4 + 4 + 2, 1.0)


def test_a_second_stage_without_an_answer_is_said() -> None:
    thought = run(Scripted(lambda q, n: "one</think>two" if n == 0 else ""), "two-stage")
    assert thought.answer == "two"
    assert "wrote no answer" in thought.notes[0]


# --- what cannot be


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("zero-think + budget:4", "zero-think leaves no thinking for budget"),
        ("zero-think + less-think", "zero-think leaves no thinking for less-think"),
        ("zero-think + mode", "zero-think and mode both decide whether the model thinks"),
        ("less-think + more-think", "less-think lets the model write no thinking for more-think"),
        ("less-think + budget:4", "less-think and budget both decide how many tokens"),
        ("less-think + early-exit", "less-think lets the model write no thinking for early-exit"),
        ("more-think + hint", "more-think and hint both decide whether the thinking may end"),
    ],
)
def test_strategies_that_cannot_be_together_say_why(strategy: str, says: str) -> None:
    assert says in refused(strategy)


@pytest.mark.parametrize("strategy", ["less-think", "more-think", "budget:8", "early-exit", "hint", "zero-think"])
def test_strategies_need_a_thinking_section(strategy: str) -> None:
    assert "needs a thinking section" in refused(strategy, Scripted(lambda q, n: "", tags=None))


@pytest.mark.parametrize("strategy", ["less-think", "more-think", "budget:8", "early-exit", "hint"])
def test_what_is_put_needs_a_sampler_that_takes_it(strategy: str) -> None:
    assert "cannot give: text can be put" in refused(strategy, Scripted(lambda q, n: "", able=("logprobs",)))


@pytest.mark.parametrize(
    "strategy",
    [
        "budget:0",
        "more-think:0",
        "more-think:words=a//b",
        "more-think:least=0",
        "stop-temperature:0",
        "cot:shots=0",
        "early-exit:0",
        "early-exit:1.5",
        "early-exit:words=none",
        "early-exit:pace=0",
        "early-exit:trials=0",
        "two-stage:most=0",
        "two-stage:letters",
        "cot:shots=2",
        "cot:pick=complex",
        "cot:examples=e.jsonl,trigger=Think.",
    ],
)
def test_values_out_of_range_are_refused(strategy: str) -> None:
    with pytest.raises(BadParameter):
        parse(strategy)


def test_words_are_chosen_by_the_text_alone() -> None:
    strategy = MoreThink()
    chosen = [run(Scripted(lambda q, n: "one</think>x", after=lambda t, n: "</think>y"), [strategy]) for _ in range(2)]
    assert chosen[0].chains[0].thinking == chosen[1].chains[0].thinking
