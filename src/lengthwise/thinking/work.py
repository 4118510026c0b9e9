"""One problem at work: writes chains under the strategies' parts, and counts every token that was paid for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar
from zlib import crc32

from lengthwise.errors import BadInput, EndpointError
from lengthwise.thinking._records import Solved, Spent, State, Written
from lengthwise.thinking.answers import Extract, answer_in
from lengthwise.thinking.chain import DEFAULT, Chain, Messages, Recounts, Sampler, Settings, Tags, Waits
from lengthwise.thinking.strategy import (
    Asks,
    Closes,
    Draws,
    End,
    Limits,
    Modes,
    Opens,
    Put,
    Solves,
    Strategy,
    Watches,
)

__all__ = ["Solved", "Spent", "State", "Work", "Written", "together"]

T = TypeVar("T")
S = TypeVar("S", bound=Strategy)
ANSWER_AT_LEAST = 16  # tokens of a window that are left for the answer


async def together(*jobs: Coroutine[Any, Any, T]) -> list[T]:
    """What all of them return; when one fails the others are cancelled, so that none goes on to cost."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Work:
    """What strategies work with: the sampler, the parts of the other strategies, and the count of what was spent.

    `most_thinking` and `most_answer` are tokens of one chain; `settings` how tokens are drawn unless a strategy says
    otherwise; every chain has a seed of its own, derived from `settings.seed`.
    """

    def __init__(
        self,
        sampler: Sampler,
        strategies: Sequence[Strategy] = (),
        *,
        settings: Settings = DEFAULT,
        most_thinking: int = 4096,
        most_answer: int = 512,
        extract: Extract = "auto",
    ) -> None:
        self.sampler, self.strategies, self.settings = sampler, list(strategies), settings
        self.most_thinking, self.most_answer, self.extract = most_thinking, most_answer, extract
        self.spent, self.begun = Spent(), time.perf_counter()
        self.chains: list[Written] = []
        self.acted: set[str] = set()  # names of the strategies that act on thinking, and did
        self.unasked: list[str] = []  # why side questions were left out
        self.lost: list[EndpointError] = []  # of chains that were left out
        self._count, self._problem = 0, ""
        self._modes: dict[str, bool] = {}
        self._deciding = asyncio.Lock()

    def part(self, kind: type[S]) -> S | None:
        """The strategy that owns a part, if any."""
        return next((s for s in self.strategies if isinstance(s, kind)), None)

    async def solve(self, messages: Messages) -> Solved:
        """The whole job, for one problem."""
        self._problem = messages[-1]["content"]
        for strategy in self.strategies:
            if isinstance(strategy, Asks):
                messages = strategy.messages(messages)
        solver = self.part(Solves)
        if solver is not None:
            solved = await solver.solve(self, messages)
        else:
            chain = await self.one(messages)
            chain.weight = 1.0
            solved = Solved(chain.answer, [chain])
        self.spent.seconds = time.perf_counter() - self.begun
        idle = [
            s.spec.name for s in self.strategies if isinstance(s, (Closes, Watches)) and s.spec.name not in self.acted
        ]
        solved.notes += [f"{name} did nothing: its moment never came" for name in idle]
        if cut := sum(chain.reason == "unfinished" for chain in self.chains):
            solved.notes.append(
                f"{cut:,} chains were cut off in their thinking and have no answer: {self.sampler.name} cannot be made "
                "to close it there (an endpoint can with a continuation); allow more thinking"
            )
        if self.lost:
            solved.notes.append(f"{len(self.lost):,} chains were lost: {self.lost[0]}")
        if self.unasked:
            solved.notes.append(f"{len(self.unasked):,} side questions were left out: {self.unasked[0]}")
        return solved

    async def one(self, messages: Messages, **options: Any) -> Written:
        """One chain, waited for. `options` as for `write`."""
        written = await self.write(messages, **options)
        self.spent.waiting_tokens += written.waited
        return written

    async def many(self, messages: Messages, count: int, wanted: int | None = None, **options: Any) -> list[Written]:
        """`count` chains at once; the first `wanted` to end their thinking, in that order, the others are cancelled.

        Chains whose server fails are left out, and a note says so; EndpointError only when none is left.
        """
        wanted = count if wanted is None else wanted
        through: list[int] = []
        answers = asyncio.Event()

        def thought(index: int) -> Callable[[], None]:
            def tell() -> None:
                through.append(index)
                if len(through) >= wanted:
                    answers.set()

            return tell

        tasks = [asyncio.create_task(self.write(messages, thought=thought(i), **options)) for i in range(count)]
        waiting = asyncio.create_task(answers.wait())
        got: list[Written] = []
        try:
            while not answers.is_set() and (left := [task for task in tasks if not task.done()]):
                done, _ = await asyncio.wait([waiting, *left], return_when=asyncio.FIRST_COMPLETED)
                for task in done - {waiting}:
                    error = task.exception()
                    if error is not None and not isinstance(error, EndpointError):
                        raise error
            chosen = through[:wanted]
            for index, task in enumerate(tasks):
                if index not in chosen:
                    task.cancel()
            for index in chosen:
                with contextlib.suppress(EndpointError):
                    got.append(await tasks[index])
        finally:
            for task in [*tasks, waiting]:
                task.cancel()
            ends = await asyncio.gather(*tasks, waiting, return_exceptions=True)
        lost = [end for end in ends if isinstance(end, EndpointError)]
        if not got and lost:
            raise lost[0]
        self.lost += lost
        self.spent.waiting_tokens += max((w.waited for w in got), default=0)
        return got

    async def ask(self, messages: Messages, most: int = 256, **options: Any) -> str:
        """A side question; `options` as for `asks`."""
        return (await self.asks([messages], most, **options))[0]

    async def asks(
        self,
        questions: Sequence[Messages],
        most: int = 256,
        *,
        think: bool = False,
        temperature: float = 0.0,
        needed: bool = True,
    ) -> list[str]:
        """Side questions (to verify, to choose), all at once: the texts, counted as other tokens and as waiting.

        Unless they are `needed`, one that the model cannot take (too long for its window) has the text '', and a note
        says so.
        """

        async def ask(messages: Messages) -> tuple[str, int]:
            try:
                return await answer(messages)
            except BadInput as error:
                if needed:
                    raise
                self.unasked.append(str(error))
                return "", 0

        async def answer(messages: Messages) -> tuple[str, int]:
            chain = await self.sampler.chain(messages, think=think)
            try:
                piece = await chain.write(most, (), self.settings.but(temperature=temperature, seed=self.seed()))
                return piece.text, chain.written
            finally:
                self.spent.other_tokens += chain.written
                self.spent.prompt_tokens += chain.read
                await chain.close()

        got = await together(*map(ask, questions))
        self.spent.waiting_tokens += max((count for _, count in got), default=0)
        return [text for text, _ in got]

    async def write(
        self,
        messages: Messages,
        *,
        begin: str = "",
        most: int | None = None,
        think: bool | None = None,
        settings: Settings | None = None,
        thought: Callable[[], None] | None = None,
    ) -> Written:
        """One chain, from its beginning to its answer, under the parts of all strategies.

        `begin` is put at the beginning of the thinking; `most` bounds it in tokens; `think` overrules the mode;
        `settings` the way tokens are drawn; `thought` is called when the thinking has ended.
        """
        drawn = (settings or self.settings).but(seed=self.seed())
        if think is None:
            think = await self._mode(messages)
        chain = await self.sampler.chain(messages, think=think)
        if (draws := self.part(Draws)) is not None:
            chain = draws.chain(self, chain)
        written = Written()
        self.chains.append(written)
        self.spent.chains += 1
        try:
            if think or self.sampler.tags is None:
                await self._think(chain, messages, written, begin, most, drawn)
            else:
                written.reason = "not thinking"
            if thought is not None:
                thought()
            await self.answer(chain, written, drawn)
        except asyncio.CancelledError:
            written.reason = "cancelled"
            self.spent.cancelled_chains += 1
            self.spent.cancelled_tokens += chain.written
            raise
        except EndpointError:
            written.reason = "lost"
            raise
        finally:
            self.account(chain, written)
            await chain.close()
        return written

    async def _think(
        self, chain: Chain, messages: Messages, written: Written, begin: str, most: int | None, settings: Settings
    ) -> None:
        """Up to the end of the thinking section, which is closed in the chain when this returns."""
        tags, state = self.sampler.tags, State(messages, chain, self.sampler.tags)
        limits, closes, draws = self.part(Limits), self.part(Closes), self.part(Draws)
        watchers = [s for s in self.strategies if isinstance(s, Watches)]
        opening, opens = begin, self.part(Opens)
        if opens is not None and tags is not None:
            opening = opens.opening(tags) + begin
        budget = self.budget(chain, most, limits)
        if draws is not None:
            settings = draws.settings(settings, self.sampler)
        if opening:
            await self._put(state, written, opening)
        close = () if tags is None else (tags.close,)
        watched = tuple(s for w in watchers for s in w.stops(tags or Tags("", "")))
        pace = min((e for w in watchers if (e := w.every())), default=budget)
        while True:
            left = budget - state.tokens
            if left <= 0:
                written.reason = "budget"
                break
            before = chain.written
            try:
                piece = await chain.write(min(left, pace), (*close, *watched), settings)
            finally:
                state.tokens += chain.written - before
                written.thinking_tokens += chain.written - before
            if piece.reason == "end":
                written.reason = "closed" if tags is None else "never closed"
                break
            if piece.stop in close:
                text = closes.instead(state) if closes is not None else None
                if closes is None or text is None:
                    written.reason = "closed"
                    break
                state.closes += 1
                self.acted.add(closes.spec.name)
                await self._put(state, written, text)
                continue
            state.stop = piece.stop
            wish = await self._watch(watchers, state)
            written.side_tokens = state.side
            if isinstance(wish, End):
                written.reason = wish.why
                break
            if piece.stop:
                await chain.put(piece.stop)
            if isinstance(wish, Put):
                await self._put(state, written, wish.text)
        written.thinking = chain.text
        if tags is None or written.reason == "never closed":
            return
        if written.reason != "closed" and "prefix" not in self.sampler.able:
            written.reason = "unfinished"
            return
        await chain.put(tags.close)
        if written.reason == "budget" and limits is not None and limits.elicitation():
            await self._put(state, written, limits.elicitation())

    async def _mode(self, messages: Messages) -> bool:
        """Whether to think about these messages: decided once for all chains."""
        mode = self.part(Modes)
        if mode is None:
            return True
        async with self._deciding:
            key = repr(messages)
            if key not in self._modes:
                self._modes[key] = await mode.thinks(self, messages)
            return self._modes[key]

    async def _watch(self, watchers: Sequence[Watches], state: State) -> End | Put | None:
        """The first watcher's wish."""
        for watcher in watchers:
            wish = await watcher.look(self, state)
            if wish is not None:
                self.acted.add(watcher.spec.name)
                return wish
        return None

    async def answer(self, chain: Chain, written: Written, settings: Settings) -> None:
        """What follows the thinking."""
        if written.reason == "never closed" or self.sampler.tags is None:
            written.text = chain.text
        elif written.reason != "unfinished":
            start, before = len(chain.text), chain.written
            try:
                piece = await chain.write(self.most_answer, (), settings)
            finally:
                written.answer_tokens = chain.written - before
            written.text, written.logprobs = chain.text[start:], piece.logprobs
        written.answer = answer_in(written.text, self.extract)

    async def _put(self, state: State, written: Written, text: str) -> None:
        count = self.sampler.count(text)
        await state.chain.put(text)
        state.tokens += count
        written.put_tokens += count

    def account(self, chain: Chain, written: Written) -> None:
        """Count what a chain cost, once, at its end."""
        written.finished = time.perf_counter() - self.begun
        if isinstance(chain, Recounts):
            written.thinking_tokens, written.answer_tokens = chain.recount(
                written.thinking_tokens, written.answer_tokens
            )
        if isinstance(chain, Waits):
            written.side_tokens += chain.side
        self.spent.thinking_tokens += written.thinking_tokens
        self.spent.answer_tokens += written.answer_tokens
        self.spent.put_tokens += written.put_tokens
        self.spent.prompt_tokens += chain.read

    def budget(self, chain: Chain, most: int | None, limits: Limits | None) -> int:
        """Tokens that the thinking may take: what is asked for, and what the window has room for."""
        budget = min(self.most_thinking if most is None else most, limits.most_thinking() if limits else 1 << 40)
        if self.sampler.window is not None:
            budget = min(budget, self.sampler.window - chain.prompt - min(self.most_answer, ANSWER_AT_LEAST))
        return max(budget, 0)

    def seed(self) -> int | None:
        """A seed for the next chain: problems with one seed in `settings` do not share their luck."""
        self._count += 1
        base = self.settings.seed
        return None if base is None else crc32(f"{base} {self._problem} {self._count}".encode()) >> 1
