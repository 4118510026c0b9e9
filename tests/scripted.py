"""A sampler whose chains follow a script: words are tokens, one for each turn of the event loop."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from collections.abc import Callable, Sequence

from lengthwise.thinking import Messages, Piece, Settings, Tags

Script = Callable[[str, int], str]  # (the question, the chain's number) -> all that the model would write

TAGS = Tags("<think>", "</think>")
DEFAULT = Settings()


class Scripted:
    """`script` gives what a chain writes after its prompt; after put text it goes on with `after(text, number)`.

    Every word costs one turn of the event loop, so that of parallel chains the shorter ends first. `prob` is the
    probability that each token is reported with.
    """

    name = "scripted"
    window: int | None = None

    def __init__(
        self,
        script: Script,
        *,
        after: Callable[[str, int], str] | None = None,
        able: Sequence[str] = ("prefix", "logprobs"),
        tags: Tags | None = TAGS,
        prob: Callable[[str], float] = lambda token: 0.5,
    ) -> None:
        self.script, self.after, self.prob = script, after, prob
        self.able, self.tags = frozenset(able), tags  # type: ignore[arg-type]
        self.numbers = itertools.count()
        self.asked: list[Messages] = []
        self.live = 0

    async def chain(self, messages: Messages, *, think: bool = True) -> ScriptedChain:
        self.asked.append(messages)
        whole = self.script(messages[-1]["content"], number := next(self.numbers))
        if not think and self.tags is not None:
            whole = whole.partition(self.tags.close)[2]
        return ScriptedChain(self, number, whole, len(str(messages).split()))

    def count(self, text: str) -> int:
        return len(_tokens(text))

    async def close(self) -> None:
        pass


class ScriptedChain:
    def __init__(self, sampler: Scripted, number: int, whole: str, prompt: int, text: str = "") -> None:
        self.sampler, self.number, self.text, self.prompt, self.read = sampler, number, text, prompt, prompt
        self.written, self.closed, self.stop = 0, False, ""
        self.left = _tokens(whole)
        self.settings: list[Settings] = []
        sampler.live += 1

    async def write(self, most: int, stop: Sequence[str] = (), settings: Settings = DEFAULT) -> Piece:
        assert not self.closed
        self.settings.append(settings)
        self.stop, start, said = "", len(self.text), []
        for _ in range(most):
            if not self.left:
                return Piece(self.text[start:], len(said), "end", logprobs=tuple(said))
            await asyncio.sleep(0)
            token = self.left.pop(0)
            self.written += 1
            self.text += token
            said.append(math.log(self.sampler.prob(token)))
            for s in stop:
                if self.text[start:].endswith(s):
                    self.text, self.stop = self.text.removesuffix(s), s
                    return Piece(self.text[start:], len(said), "stop", s, tuple(said))
        return Piece(self.text[start:], len(said), "length", logprobs=tuple(said))

    async def put(self, text: str) -> None:
        assert not self.closed
        self.text += text
        if text != self.stop:
            assert "prefix" in self.sampler.able
            if self.sampler.after is not None:
                self.left = _tokens(self.sampler.after(self.text, self.number))
        self.stop = ""

    async def fork(self) -> ScriptedChain:
        assert "prefix" in self.sampler.able
        other = ScriptedChain(self.sampler, self.number, "", self.prompt, self.text)
        other.left, other.read = list(self.left), 0
        return other

    async def layered(self, answers: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError

    async def close(self) -> None:
        self.sampler.live -= not self.closed
        self.closed = True


def _tokens(text: str) -> list[str]:
    """Tags and words, each with the blanks after it."""
    return re.findall(r"</?think>|[^\s<]+\s*|\s+|<", text)
