"""What a strategy declares, and the parts of thinking that strategies may own.

A strategy is a frozen dataclass with a class-level `spec`, in a file of `thinking/strategies`; its file name is its
name, with `_at_` for '@' and '_' for '-'. A sum of strategies is written as a stack is, and a bare value sets a
strategy's main parameter: `short-m@k:m=3,k=8 + budget:2048`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lengthwise.core.spec import Configured
from lengthwise.thinking.chain import Ability, Chain, Messages, Sampler, Settings, Tags

if TYPE_CHECKING:
    from lengthwise.thinking.work import Solved, State, Work

Part = Literal["problem", "mode", "open", "limit", "close", "watch", "draw", "solve"]

PARTS: dict[Part, str] = {
    "problem": "what the model is asked (any number, in the order given)",
    "mode": "whether the model thinks at all (one owner)",
    "open": "the first words of the thinking (one owner)",
    "limit": "how many tokens the thinking may take (one owner)",
    "close": "whether the thinking may end when the model ends it (one owner)",
    "watch": "looks at the thinking on its way; may end it or put words in (any number)",
    "draw": "how tokens are drawn (one owner)",
    "solve": "how many chains are written, and which answer is taken (one owner)",
}
SHARED_PARTS: frozenset[Part] = frozenset({"problem", "watch"})


@dataclass(frozen=True, kw_only=True)
class StrategySpec:
    """The facts about a strategy that the command line, the docs and the contract tests are made from.

    `main` is the parameter that a bare value sets (`budget:2048`); `needs` are abilities of the sampler;
    `needs_tags` says that it needs a thinking section.
    """

    name: str
    summary: str
    formula: str
    parts: tuple[Part, ...]
    papers: tuple[int, ...] = ()
    source: str = ""
    main: str = ""
    needs: tuple[Ability, ...] = ()
    needs_tags: bool = False
    simplified: str = "nothing"
    test: str = ""


@dataclass(frozen=True)
class Strategy(Configured):
    """A strategy. Subclasses are of one or more of the classes below, one for each part that they claim."""

    spec: ClassVar[StrategySpec]

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """Further reasons why this strategy cannot run with `sampler` or beside `others`; [] means it can."""
        return []


class Asks(Strategy):
    """Part "problem"."""

    def messages(self, messages: Messages) -> Messages:
        """The messages that are put before the model in place of these."""
        raise NotImplementedError


class Modes(Strategy):
    """Part "mode"."""

    async def thinks(self, work: Work, messages: Messages) -> bool:
        """Whether the model shall think about these messages."""
        raise NotImplementedError


class Opens(Strategy):
    """Part "open"."""

    def opening(self, tags: Tags) -> str:
        """Text that is put at the beginning of the thinking section."""
        raise NotImplementedError


class Limits(Strategy):
    """Part "limit"."""

    def most_thinking(self) -> int:
        """The most tokens of thinking; then the section is closed and the answer asked for."""
        raise NotImplementedError

    def elicitation(self) -> str:
        """Text that is put after a section that was closed at its limit."""
        return ""


class Closes(Strategy):
    """Part "close"."""

    def instead(self, state: State) -> str | None:
        """The model has ended its thinking: text to put in place of that, or None to let it end."""
        raise NotImplementedError


@dataclass(frozen=True)
class End:
    """A watcher's wish: close the thinking now. `why` becomes the chain's stop reason."""

    why: str


@dataclass(frozen=True)
class Put:
    """A watcher's wish: go on after this text."""

    text: str


class Watches(Strategy):
    """Part "watch"."""

    def every(self) -> int | None:
        """Tokens between two looks; None: only where one of `stops` comes."""
        return None

    def stops(self, tags: Tags) -> tuple[str, ...]:
        """Strings at which this watcher wants to look: just before the string, which is put back unless it ends."""
        return ()

    async def look(self, work: Work, state: State) -> End | Put | None:
        """What to do now. `state.stop` is the string that came (maybe another watcher's), '' otherwise."""
        raise NotImplementedError


class Draws(Strategy):
    """Part "draw"."""

    def settings(self, base: Settings, sampler: Sampler) -> Settings:
        """How the thinking is drawn, from how it would be."""
        raise NotImplementedError

    def chain(self, work: Work, chain: Chain) -> Chain:
        """The chain that is written in place of a new one."""
        return chain


class Solves(Strategy):
    """Part "solve"."""

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """An answer, from chains that `work` writes."""
        raise NotImplementedError


CLASSES: dict[Part, type[Strategy]] = {
    "problem": Asks,
    "mode": Modes,
    "open": Opens,
    "limit": Limits,
    "close": Closes,
    "watch": Watches,
    "draw": Draws,
    "solve": Solves,
}
