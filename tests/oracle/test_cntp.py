"""Cautious next-token prediction: doubt starts trials, the likeliest is kept, the others are paid for."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lengthwise.bench import problems
from lengthwise.errors import BadInput, StackRefused
from lengthwise.thinking import Messages, Piece, Settings, Tags, Work, parse, refusals, think
from lengthwise.thinking.local import LocalSampler
from lengthwise.thinking.strategies.cntp import CautiousChain, Cntp

WORDS = ["a", "b", "c", ";", "</think>", "\n"]
# after a word: what may follow, with its probability. Outside of trials, the only doubt is behind an 'a'; the longer
# 'ccc;' is, the likelier its tokens are on average, and the less likely is the whole
NEXT: dict[str, dict[str, float]] = {
    "": {"a": 1.0},
    "a": {"b": 0.5, "c": 0.4, ";": 0.1},
    "b": {"b": 0.7, ";": 0.3},
    "c": {"c": 0.9, ";": 0.1},
    ";": {"a": 1.0},
    "</think>": {"\n": 1.0},
    "\n": {"\n": 1.0},
}


class Bigrams:
    """A sampler whose next word depends on the last one; `runs` has (text before, piece, settings) of every write."""

    name, window, able, tags = "bigrams", None, frozenset({"prefix", "logprobs", "logits"}), Tags("<think>", "</think>")

    def __init__(self, table: dict[str, dict[str, float]] = NEXT) -> None:
        self.table, self.live = table, 0
        self.runs: list[tuple[str, Piece, Settings]] = []

    async def chain(self, messages: Messages, *, think: bool = True) -> BigramChain:
        return BigramChain(self, [])

    def count(self, text: str) -> int:
        return len(text)

    async def close(self) -> None:
        pass


class BigramChain:
    def __init__(self, sampler: Bigrams, words: list[str]) -> None:
        self.sampler, self.words, self.written, self.prompt, self.read = sampler, words, 0, 1, 0
        self.source: tuple[Any, random.Random] | None = None
        self.closed = False
        sampler.live += 1

    @property
    def text(self) -> str:
        return "".join(self.words)

    async def write(self, most: int, stop: Sequence[str] = (), settings: Settings = Settings()) -> Piece:  # noqa: B008
        assert not self.closed
        if self.source is None or self.source[0] != settings.seed:
            self.source = settings.seed, random.Random(settings.seed)
        before, said = self.text, list[float]()
        piece = None
        while piece is None:
            await asyncio.sleep(0)
            p = torch.tensor([self.sampler.table[self.words[-1] if self.words else ""].get(w, 0.0) for w in WORDS])
            logits = p.log().clamp(min=-1e4)
            if settings.logits is not None:
                logits = settings.logits(logits, [WORDS.index(w) for w in self.words])
            word = self.source[1].choices(WORDS, logits.softmax(-1).tolist())[0]
            self.written += 1
            said.append(math.log(float(p[WORDS.index(word)])))
            if word in stop:
                piece = Piece(self.text[len(before) :], len(said), "stop", word, tuple(said))
                continue
            self.words.append(word)
            if len(said) == most:
                piece = Piece(self.text[len(before) :], len(said), "length", "", tuple(said))
        self.sampler.runs.append((before, piece, settings))
        return piece

    async def put(self, text: str) -> None:
        self.words.append(text)

    async def fork(self) -> BigramChain:
        return BigramChain(self.sampler, list(self.words))

    async def layered(self, answers: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError

    async def close(self) -> None:
        self.sampler.live -= not self.closed
        self.closed = True


def entropy(word: str) -> float:
    return -sum(p * math.log(p) for p in NEXT[word].values())


@pytest.mark.parametrize(
    ("h", "trials"), [(0.0, 1), (0.01, 1), (0.3, 1), (0.31, 2), (0.75, 4), (0.76, 5), (1.49, 9), (1.5, 10), (9.0, 10)]
)
def test_trials_grow_with_entropy_as_published(h: float, trials: int) -> None:
    assert Cntp().count(h) == trials


def test_the_number_of_trials_follows_the_steps_entropy() -> None:
    strategy, sampler = Cntp(trials=7, low=0.1, high=1.0), Bigrams()
    asyncio.run(think("q", sampler, [strategy], settings=Settings(1.0, seed=1), most_thinking=12))
    begun = [before for before, _, s in sampler.runs if s.logprobs and before.endswith("a")]
    wanted = math.floor(7 * (entropy("a") - 0.1) / 0.9)
    assert wanted == 6
    assert begun
    assert {before: begun.count(before) for before in begun} == dict.fromkeys(begun, wanted)
    assert all(not s.logprobs or before.endswith("a") for before, _, s in sampler.runs)


def test_the_trial_of_lowest_perplexity_is_kept_and_the_others_are_paid_for() -> None:
    waits = 0
    for seed in range(12):
        sampler = Bigrams()
        settings = Settings(1.0, seed=seed)
        thought = asyncio.run(
            think("q", sampler, "cntp:6,low=0.1,high=1", settings=settings, most_thinking=40, most_answer=3)
        )
        (chain,) = thought.chains
        trials = [(before, piece) for before, piece, s in sampler.runs if s.logprobs]
        assert len(trials) >= 10
        kept = longest = 0
        for before in dict.fromkeys(b for b, _ in trials):
            pieces = [p for b, p in trials if b == before]
            best = min(pieces, key=lambda p: math.exp(-sum(p.logprobs) / len(p.logprobs)))
            assert chain.thinking.startswith(before + best.text + best.stop)
            kept += best.tokens
            longest += max(p.tokens for p in pieces)
        every = sum(p.tokens for _, p in trials)
        assert thought.spent.other_tokens == every - kept > 0
        assert chain.side_tokens == longest - kept
        assert thought.spent.waiting_tokens == chain.tokens + longest - kept
        assert chain.thinking_tokens == len(chain.thinking) == 40
        assert sampler.live == 0
        waits += chain.side_tokens
        # the random numbers go on from the trial that was kept: the chain's own would begin anew with every fork
        assert sampler.runs[-1][2].seed in {s.seed for _, _, s in sampler.runs if s.logprobs}
    assert waits > 0


def test_trials_end_at_punctuation_and_at_what_the_chain_stops_at() -> None:
    sampler = Bigrams({**NEXT, "a": {"b": 0.5, "</think>": 0.5}})
    thought = asyncio.run(think("q", sampler, "cntp:trials=4,high=0.7", settings=Settings(1.0, seed=2), most_answer=2))
    (chain,) = thought.chains
    trials = [p for _, p, s in sampler.runs if s.logprobs]
    assert {p.stop for p in trials} == {";", "</think>"}
    assert chain.reason == "closed"
    assert "</think>" not in chain.thinking
    assert chain.answer_tokens == 2
    assert chain.thinking_tokens == len(chain.thinking) + 1  # the tag is paid for


def test_a_mark_inside_a_stop_string_does_not_end_a_trial() -> None:
    """Put back, it would hide the beginning of the stop string."""

    async def write(stop: str) -> set[str]:
        sampler = Bigrams()
        chain = CautiousChain(Cntp(trials=6, low=0.1, high=1.0), Work(sampler), await sampler.chain([]))  # type: ignore[arg-type]
        assert (await chain.write(9, (stop,), Settings(1.0, seed=1))).tokens == 9
        return {p.stop for _, p, s in sampler.runs if s.logprobs}

    assert ";" in asyncio.run(write("--"))
    assert asyncio.run(write(";--")) == {""}


@pytest.mark.parametrize("limit", ["cntp:trials=1", "cntp:low=50,high=60"])
def test_without_doubt_it_is_plain_sampling(limit: str) -> None:
    async def texts(strategy: str) -> list[str]:
        sampler = LocalSampler("pocket-reasoner")
        try:
            settings = Settings(1.0, seed=5)
            got = [await think(f"What is 4+{i}+8+3 mod 10?", sampler, strategy, settings=settings) for i in range(3)]
            assert all(t.spent.other_tokens == 0 for t in got)
            return [t.chains[0].thinking + t.text for t in got]
        finally:
            await sampler.close()

    assert asyncio.run(texts(limit)) == asyncio.run(texts("plain"))


def test_the_pocket_reasoner_writes_likelier_chains_and_reports_their_logprobs() -> None:
    draw = random.Random(5)
    kinds = (("sum", 6), ("addition", 3), ("tracking", 4))
    questions = [problems.make(kind, level, draw).question for kind, level in kinds]

    async def write(strategy: Cntp | None) -> tuple[list[float], int]:
        sampler, said, trials = LocalSampler("pocket-reasoner"), list[float](), 0
        try:
            for i, question in enumerate(questions):
                chain: Any = await sampler.chain([{"role": "user", "content": question}])
                work = Work(sampler, settings=Settings(seed=i))
                whole = CautiousChain(strategy, work, chain) if strategy else chain
                piece = await whole.write(150, ("</think>",), Settings(1.0, seed=i, logprobs=True))
                now = whole._now if strategy else chain
                with torch.no_grad():
                    ids = torch.tensor([now._held.script.ids])
                    logp = sampler.model(input_ids=ids).logits[0].log_softmax(-1)
                wanted = logp[:-1].gather(1, ids[0, 1:, None])[now.prompt - 1 :, 0].tolist()
                assert piece.tokens == len(piece.logprobs) == len(wanted) == whole.written
                assert piece.logprobs == pytest.approx(wanted, abs=2e-3)
                said += piece.logprobs
                trials += work.spent.other_tokens
                await whole.close()
            return said, trials
        finally:
            await sampler.close()

    plain, none = asyncio.run(write(None))
    careful, trials = asyncio.run(write(Cntp(high=0.7)))
    assert none == 0 < trials
    assert sum(careful) / len(careful) > sum(plain) / len(plain)


def test_what_cannot_be_is_refused() -> None:
    sampler = Bigrams()
    with pytest.raises(BadInput, match="at temperature 0 they are all the same"):
        asyncio.run(think("q", sampler, "cntp", settings=Settings(0.0)))
    assert sampler.live == 0
    sampler.able = frozenset({"prefix"})
    with pytest.raises(StackRefused, match="cntp needs what bigrams cannot give"):
        asyncio.run(think("q", sampler, "cntp"))
    assert any("step-search" in r and "cntp" in r for r in refusals(parse("cntp + step-search"), None))
    assert any("stop-temperature" in r for r in refusals(parse("cntp + stop-temperature"), None))
