"""A model behind an OpenAI-compatible server as a sampler: chains are streamed, and cancelled mid-stream.

A chain is one streamed chat completion, read as far as it is asked for; closing it closes the connection, which is how
servers learn to stop. What a paused chain does not read, the server may already have written: it is paid for there, and
not counted here. Putting text into a chain needs a `continuation` (see `_prefix`): then a chain is a plain completion,
and every text that was put begins a new request, which reads the prompt again where the server keeps no cache of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from lengthwise.core.remote import BYTES_PER_TOKEN, Refused, Remote
from lengthwise.errors import BadInput
from lengthwise.thinking._connection import Connection
from lengthwise.thinking._prefix import CONTINUATIONS, Prefix
from lengthwise.thinking._streamed import EndpointChain
from lengthwise.thinking.chain import KNOWN_TAGS, Ability, Messages, Settings, Tags
from lengthwise.thinking.tags import find_tags

PROBE: Messages = [{"role": "user", "content": "What is 1 + 1?"}]
PROBE_TOKENS = 256


class EndpointSampler:
    """Chains of a server's model. A sampler belongs to one event loop.

    `url` is the server's address, with or without /v1. The key is `api_key`, else LENGTHWISE_API_KEY, else
    OPENAI_API_KEY; none is fine for a local server. `tokenizer` (a name, a folder or a tokenizer) counts tokens;
    without one a text is estimated at 3.2 bytes a token, and a streamed chunk is one token. Where the server counts
    (usage), a chain's `written` is what it says, from the end of the turn on; vLLM says it with every chunk of a
    continuation.

    `tags` are what the model writes around its thinking, those of the tokenizer's template or <think> unless given;
    servers that send the thinking apart need none. `opened`: the server's prompt opens the section, and its text has
    the closing tag alone. `continuation` says how the server is made to go on from a text that is put in (ability
    "prefix"; one of CONTINUATIONS). `max_tokens` bounds a request, thinking and answer together, unless one `write`
    asks for more. `window` is the model's, where known. While nothing has come, a request is tried `tries` times in
    all; a stream that stays without text for `timeout` seconds is given up. At most `connections` streams are open at
    once.

    `notes` says what the server did otherwise than it was asked to. Raises BadInput for what cannot be, MissingExtra
    without httpx.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        *,
        tokenizer: Any = None,
        tags: Tags | None = None,
        opened: bool = False,
        continuation: str = "none",
        max_tokens: int = 8192,
        window: int | None = None,
        tries: int = 4,
        timeout: float = 120.0,
        connections: int = 64,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if min(max_tokens, tries, connections) < 1 or timeout <= 0:
            raise BadInput("max_tokens, tries and connections must be at least 1 and the timeout above 0 seconds")
        kind = next((c for c in CONTINUATIONS if c == continuation), None)
        if kind is None:
            raise BadInput(f"there is no continuation '{continuation}': it is one of {', '.join(CONTINUATIONS)}")
        self.remote = Remote.at(url, model, api_key)
        self.connection = Connection(self.remote, tries=tries, timeout=timeout, connections=connections, sleep=sleep)
        if isinstance(tokenizer, str):
            from lengthwise.models import load_tokenizer

            tokenizer = load_tokenizer(tokenizer)
        self.tokenizer, self.opened, self.max_tokens, self.window = tokenizer, opened, max_tokens, window
        found = tags or (find_tags(tokenizer) if tokenizer is not None else None)
        self.tags: Tags | None = found or KNOWN_TAGS[0]
        self.name = f"{model} at {self.remote.host}"
        self.prefix: Prefix | None = None
        if kind != "none":
            self.prefix = Prefix(kind, model, self.tags or KNOWN_TAGS[0], tokenizer, self.connection.post)
        self.able: frozenset[Ability] = frozenset(("logprobs", "prefix") if self.prefix else ("logprobs",))
        self._notes: dict[str, None] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def notes(self) -> list[str]:
        """What the server did otherwise than it was asked to; [] when nothing."""
        untaken = [f"the server does not take '{n}'" for n, now in self.connection.untaken.items() if not now]
        return [*self._notes, *untaken]

    def note(self, text: str) -> None:
        """Remember something for `notes`, once."""
        self._notes[text] = None

    async def chain(self, messages: Messages, *, think: bool = True) -> EndpointChain:
        """A new chain; its request is made at the first `write`."""
        head = await self.prefix.head(messages, think) if self.prefix else None
        return EndpointChain(self, messages, think, head)

    def count(self, text: str) -> int:
        """Tokens of a text: by the tokenizer, or estimated."""
        if self.tokenizer is not None:
            return len(self.tokenizer.encode(text, add_special_tokens=False))
        return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)

    def count_chunk(self, text: str) -> int:
        """Tokens of what one chunk brought, where the server does not count: one without a tokenizer."""
        return max(1, self.count(text)) if self.tokenizer is not None else 1

    async def probe(self) -> None:
        """Ask one tiny question, and set `able`, `tags` and `opened` from what comes.

        Raises as `write` does when the server cannot be asked at all.
        """
        try:
            said, apart, logprobs = await self._look(logprobs=True)
        except Refused:  # maybe for the log-probabilities
            said, apart, logprobs = await self._look(logprobs=False)
        self.able = self.able | {"logprobs"} if logprobs else self.able - {"logprobs"}
        for tags in () if apart or self.prefix else KNOWN_TAGS:
            opens = said.lstrip().startswith(tags.open)
            if opens or tags.close in said:
                self.tags, self.opened = tags, not opens
                return

    async def _look(self, logprobs: bool) -> tuple[str, bool, bool]:
        chain = await self.chain(PROBE)
        try:
            return await chain.look(PROBE_TOKENS, Settings(temperature=0.0, logprobs=logprobs))
        finally:
            await chain.close()

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self.connection.client.aclose()

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that goes on when the one who asked for it is cancelled."""
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task
