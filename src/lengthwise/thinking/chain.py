"""What a sampler gives: chains of text that can be written on, added to, forked and closed.

Two samplers are built in: `thinking.local` (a Hugging Face model in this process) and `thinking.endpoint` (an
OpenAI-compatible server). Strategies know this protocol alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Ability = Literal["prefix", "logprobs", "logits", "layers"]
Messages = Sequence[Mapping[str, str]]  # {"role": ..., "content": ...}, the last one of the user

ABILITIES: dict[Ability, str] = {
    "prefix": "text can be put into a chain, and the model goes on from there",
    "logprobs": "log-probabilities of the tokens written",
    "logits": "the logits of the next token can be changed before it is drawn",
    "layers": "answers can be read off at every layer",
}


@dataclass(frozen=True)
class Tags:
    """What begins and ends a thinking section in the model's own text."""

    open: str
    close: str


KNOWN_TAGS = (
    Tags("<think>", "</think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("<thought>", "</thought>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|begin_of_thought|>", "<|end_of_thought|>"),
    Tags("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)


@dataclass(frozen=True)
class Settings:
    """How tokens are drawn. `seed` makes one chain repeatable.

    `logits` maps next-token logits [V] (float32) and the ids written so far in this chain to other logits, before the
    temperature (ability "logits"). What it raises ends the `write` before the token is drawn, and is raised there.
    """

    temperature: float = 0.6
    top_p: float = 1.0
    seed: int | None = None
    logprobs: bool = False
    logits: Callable[[Tensor, Sequence[int]], Tensor] | None = None

    def but(self, **changes: Any) -> Settings:
        """These settings with some of them changed."""
        return replace(self, **changes)


DEFAULT = Settings()


@dataclass(frozen=True)
class Piece:
    """What one call of `write` added to a chain.

    `reason`: "stop" (one of the stop strings came, `stop`; it is neither in `text` nor in the chain's text, and is
    forgotten unless it is put back, which costs nothing and which every sampler can), "length" (`most` tokens) or "end"
    (the model ended its turn). `logprobs` are natural logarithms of the tokens' probabilities under the model at
    temperature 1, where asked for.
    """

    text: str
    tokens: int
    reason: Literal["stop", "length", "end"]
    stop: str = ""
    logprobs: tuple[float, ...] = ()


class Chain(Protocol):
    """One text after a prompt, being written. A cancelled `write` stops the model and keeps what was written.

    `text` is all text after the prompt, put text included; `written` the tokens that the model wrote, those of stop
    strings and of cancelled writing included; `prompt` the tokens of its prompt, `read` those of them that were read
    for this chain (0 where another chain's reading was shared).
    When the sampler has tags, a chain begins inside its thinking section: the opening tag is no part of `text`.
    """

    written: int
    prompt: int

    @property
    def text(self) -> str:
        """All text after the prompt."""
        ...

    @property
    def read(self) -> int:
        """Tokens of the prompt that were read for this chain."""
        ...

    async def write(self, most: int, stop: Sequence[str] = (), settings: Settings = ...) -> Piece:
        """Go on for at most `most` tokens, up to a stop string or the end of the turn. Raises LengthwiseError."""
        ...

    async def put(self, text: str) -> None:
        """Add text as if the model had written it (ability "prefix")."""
        ...

    async def fork(self) -> Chain:
        """Another chain with the same text so far, that shares its cache (ability "prefix")."""
        ...

    async def layered(self, answers: Sequence[str]) -> list[list[float]]:
        """log P(answer's tokens | the text so far) as read off after each layer: [layers][answers] ("layers")."""
        ...

    async def close(self) -> None:
        """Free what the chain holds; a request that still runs is cancelled. May be called twice."""
        ...


@runtime_checkable
class Recounts(Protocol):
    """A chain whose tokens are counted elsewhere, too, and more exactly."""

    def recount(self, thinking: int, answer: int) -> tuple[int, int]:
        """What was counted as (thinking, answer) while it came, as it is known after the end of the turn."""
        ...


@runtime_checkable
class Waits(Protocol):
    """A chain beside which others were written: `side` tokens of theirs came while it waited."""

    side: int


class Sampler(Protocol):
    """A model that thinks. `tags` is None when no thinking section is known: then all it writes is its answer.

    `window` is the most tokens of prompt and chain together, None when not known.
    """

    name: str
    able: frozenset[Ability]
    tags: Tags | None
    window: int | None

    async def chain(self, messages: Messages, *, think: bool = True) -> Chain:
        """A new chain after `messages`; without `think` it begins after an empty thinking section.

        Chains of equal messages share one reading of the prompt where the sampler can. Raises LengthwiseError.
        """
        ...

    def count(self, text: str) -> int:
        """Tokens of a text, estimated where the tokenizer is not known."""
        ...

    async def close(self) -> None:
        """Free the model or the connections."""
        ...
