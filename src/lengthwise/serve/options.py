"""What the owner of a proxy decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from lengthwise.errors import BadInput
from lengthwise.thinking.answers import Extract


@dataclass(frozen=True)
class Options:
    """Limits and names of a proxy; times are in seconds.

    `model` is the name that clients ask for (by default the sampler's); `token` the bearer token that they must send.
    `concurrency` requests are worked on at once and `queue` more wait; the next one gets a 429. `timeout` bounds a
    request from its first byte to its answer, waiting included. `most_thinking` and `most_answer` bound each chain in
    tokens; `extract` says how answers are found when they are counted (`thinking.answer_in`). `keep_alive` is the time
    between two signs of life in a stream, `most_bytes` the largest body of a request. `patience` bounds each read from
    and each write to a client. At a shutdown running requests have `grace` to end.
    """

    model: str | None = None
    token: str | None = None
    concurrency: int = 64
    queue: int = 256
    timeout: float = 600.0
    most_thinking: int = 8_192
    most_answer: int = 2_048
    extract: Extract = "auto"
    keep_alive: float = 10.0
    most_bytes: int = 32 << 20
    patience: float = 30.0
    grace: float = 30.0

    def __post_init__(self) -> None:
        for name in ("concurrency", "most_thinking", "most_answer", "most_bytes"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name.replace('_', ' ')} must be at least 1, it is {getattr(self, name)}")
        for name in ("queue", "grace"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} must not be below 0, it is {getattr(self, name)}")
        for name in ("timeout", "keep_alive", "patience"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadInput(f"{name.replace('_', ' ')} must be a number of seconds above 0")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise BadInput("the token must be plain characters that fit a header, and not empty")
        if self.extract not in get_args(Extract):
            raise BadInput(f"'{self.extract}' is no way to find answers ({', '.join(get_args(Extract))})")
