"""What is known of a chain while it thinks and after its end, and of a whole problem: texts, reasons, costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lengthwise.thinking.chain import Chain, Messages, Tags


@dataclass
class State:
    """A chain while it thinks, as strategies see it. `tokens` are thinking tokens so far, put text included.

    `stop` is the watched string that just came, not yet in the text; `closes` counts the ends of thinking that were
    turned away. `side` are tokens that a watcher had written beside the chain while the chain waited (trial answers).
    """

    messages: Messages
    chain: Chain
    tags: Tags | None
    tokens: int = 0
    stop: str = ""
    closes: int = 0
    side: int = 0
    memory: dict[str, int] = field(default_factory=dict)  # what watchers count for themselves, by their names

    @property
    def thinking(self) -> str:
        """The thinking so far."""
        return self.chain.text


@dataclass
class Written:
    """One chain after its end. Without a thinking section the whole text is both thinking and answer.

    `reason` is why the thinking ended: "closed" by the model, "budget", a watcher's reason, "not thinking",
    "cancelled", "never closed" (the model ended its turn inside the section: the answer is looked for there), or
    "unfinished" (at its limit, and the sampler cannot close it: no answer), "lost" (its server failed).
    `thinking_tokens` and `answer_tokens` were written by the model, `put_tokens` put in by strategies, `side_tokens`
    written beside the chain while it waited (they are among the work's `other_tokens`). `finished` is in
    seconds from the start of the work. `weight` is what the chain counted in the vote, 0 if it did not vote.
    """

    thinking: str = ""
    text: str = ""
    answer: str = ""
    reason: str = "cancelled"
    thinking_tokens: int = 0
    answer_tokens: int = 0
    put_tokens: int = 0
    side_tokens: int = 0
    finished: float = 0.0
    weight: float = 0.0
    logprobs: tuple[float, ...] = field(default=(), repr=False)

    @property
    def tokens(self) -> int:
        """Tokens written by the model."""
        return self.thinking_tokens + self.answer_tokens

    @property
    def waited(self) -> int:
        """Tokens written one after another until the answer."""
        return self.tokens + self.side_tokens


@dataclass
class Solved:
    """What a "solve" strategy returns. `confidence` is the winner's share of the votes, or what the strategy says."""

    answer: str
    chains: list[Written]
    confidence: float | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Spent:
    """What a problem cost. Tokens of cancelled chains are in `thinking_tokens`, too; `other_tokens` are those of
    anything but chains (verifying, choosing). `waiting_tokens` are those written one after another until the answer:
    parallel chains wait for the longest that counts. `prompt_tokens` are those read, a shared prompt once.
    """

    thinking_tokens: int = 0
    answer_tokens: int = 0
    cancelled_tokens: int = 0
    other_tokens: int = 0
    put_tokens: int = 0
    prompt_tokens: int = 0
    waiting_tokens: int = 0
    chains: int = 0
    cancelled_chains: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}
