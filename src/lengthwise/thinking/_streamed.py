"""One streamed chain of an endpoint: read as far as it is asked for, left waiting, cancelled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lengthwise.core.remote import FRAME_TOKENS
from lengthwise.errors import EndpointError
from lengthwise.thinking._connection import Dropped, Stream
from lengthwise.thinking._prefix import CONTINUATIONS, Head
from lengthwise.thinking._reply import Part, Reply
from lengthwise.thinking.chain import DEFAULT, Messages, Piece, Settings
from lengthwise.thinking.tags import SWITCH

if TYPE_CHECKING:
    from lengthwise.thinking.endpoint import EndpointSampler


class EndpointChain:
    """One chain of an EndpointSampler; see `Chain`."""

    def __init__(self, sampler: EndpointSampler, messages: Messages, think: bool, head: Head | None) -> None:
        self.sampler, self.messages, self.think, self.head = sampler, messages, think, head
        self.text, self.written, self.read = "", 0, 0
        self.prompt = self._estimate()
        self._tags = None if head else sampler.tags  # those to be read out of the reply
        self._settings = DEFAULT  # of the request that runs
        self._limit = sampler.max_tokens
        self._stream: Stream | None = None
        self._reply: Reply | None = None
        self._parts: deque[Part] = deque()
        self._over = self._closed = False
        self._begun = 0  # requests so far
        self._estimated = 0  # what the request that runs was taken to read
        self._stop = self._held = ""  # a stop string that just came; text that may be the beginning of one
        self._skipped = None if think or head else ""  # thinking that came though it was not asked for
        self._guess = 0  # tokens as they were counted part by part, those that were skipped left out
        self._thought: int | None = None  # tokens of thinking, where the server says so

    async def write(self, most: int, stop: Sequence[str] = (), settings: Settings = DEFAULT) -> Piece:
        """Go on; see `Chain.write`. A chunk is not divided: the piece may exceed `most` by the rest of one.

        Raises EndpointError when the server refuses, stays silent, breaks off or sends what is no completion; BadInput
        when the prompt is too long for it.
        """
        if self._closed:
            raise EndpointError("the chain is closed")
        await self._align(settings)
        start, begun, logprobs = len(self.text), self._guess, list[float]()
        try:
            while True:
                new = self._held
                found = min(((at + len(s), at, s) for s in stop if s and (at := new.find(s)) >= 0), default=None)
                if found is not None:
                    end, at, self._stop = found
                    self.text, self._held = self.text + new[:at], ""
                    if new[end:]:
                        self._parts.appendleft(Part(new[end:]))
                    return self._piece(start, begun, "stop", logprobs)
                sure = len(new) - _partial(new, stop)
                self.text, self._held = self.text + new[:sure], new[sure:]
                if self._guess - begun >= most:
                    return self._piece(start, begun, "length", logprobs)
                part = await self._next(most)
                if part is None and self._cut and self.head is not None:
                    return self._piece(start, begun, "length", logprobs)
                if part is None:
                    self.text, self._held = self.text + self._held, ""
                    return self._piece(start, begun, "length" if self._cut else "end", logprobs)
                if settings.logprobs and part.tokens and not part.logprobs:
                    raise EndpointError(
                        f"{self.sampler.remote.host} sends no log-probabilities of its tokens: take a strategy that "
                        "needs none, or a server that gives them"
                    )
                logprobs += part.logprobs
                self._held += part.text
        except BaseException:
            self.text, self._held = self.text + self._held, ""
            await self._drop()
            raise

    async def put(self, text: str) -> None:
        """Add text. The stop string that just came costs nothing; anything else needs a continuation."""
        if self._stop and text == self._stop:
            self.text, self._stop = self.text + text, ""
            return
        if not text:
            return
        if self.head is None:
            raise EndpointError(
                f"{self.sampler.name} cannot go on from a text that is put in: say how it is made to, if it can "
                f"(continuation: {', '.join(c for c in CONTINUATIONS if c != 'none')})"
            )
        if not text.startswith(self._held):
            self.text += self._held
        self.text += text
        self._stop = self._held = ""
        await self._drop()

    async def fork(self) -> EndpointChain:
        """Another chain with the same text, which the server reads again, or has in its cache."""
        if self.head is None:
            raise EndpointError(f"{self.sampler.name} cannot fork a chain: that needs a continuation")
        other = EndpointChain(self.sampler, self.messages, self.think, self.head)
        other.text = self.text + self._held
        return other

    async def layered(self, answers: Sequence[str]) -> list[list[float]]:
        """A server shows no layers."""
        raise EndpointError(f"{self.sampler.name} does not show its layers: that needs a model in this process")

    async def close(self) -> None:
        """Close the connection, now."""
        self._closed = True
        await self._drop()

    def recount(self, thinking: int, answer: int) -> tuple[int, int]:
        """What was counted as thinking and as answer, `written` together, as the server counted it where it did.

        Its own figure for the thinking, else its total in the shares of our count.
        """
        if self._thought is not None:
            return self._thought, self.written - self._thought
        if self._guess == self.written or not thinking or not answer:
            return thinking, answer
        share = round(self.written * min(1.0, thinking / self._guess))
        return share, self.written - share

    async def look(self, most: int, settings: Settings) -> tuple[str, bool, bool]:
        """(all that is said in `most` tokens, whether thinking came apart from it, whether log-probabilities came)."""
        self._limit, self._tags, self._settings = most, None, settings
        text, logprobs = "", False
        while self._guess < most and (part := await self._next(most)) is not None:
            text, logprobs = text + part.text, logprobs or bool(part.logprobs)
        return text, self._reply is not None and self._reply.apart, logprobs

    @property
    def _cut(self) -> bool:
        """Whether the server ended the request because it was long."""
        return self._over and self._reply is not None and self._reply.finish == "length"

    def _piece(
        self, start: int, begun: int, reason: Literal["stop", "length", "end"], logprobs: Sequence[float]
    ) -> Piece:
        return Piece(self.text[start:], self._guess - begun, reason, self._stop, tuple(logprobs))

    async def _align(self, settings: Settings) -> None:
        """Make sure that what comes next is what was asked for: from this text, and drawn like this."""
        host, changed = self.sampler.remote.host, False
        if settings.logits is not None:
            raise EndpointError(f"{self.sampler.name} does not let its logits be changed")
        if self._begun:
            old = self._settings
            changed = (old.temperature, old.top_p) != (settings.temperature, settings.top_p)
            changed |= settings.logprobs and not old.logprobs
        cut = self._cut and not self._parts
        if self.head is not None:
            if self._stop or cut or (changed and not self._over):
                self._stop = ""
                await self._drop()
        elif self._stop:
            raise EndpointError(f"{host} cannot go on as if '{self._stop}' had not come: that needs a continuation")
        elif cut:
            raise EndpointError(
                f"{host} cut the chain off after {self.written:,} tokens: raise max_tokens ({self._limit:,} now), or "
                "bound the thinking below that"
            )
        elif changed and not self._over:
            self.sampler.note("a chain is drawn to its end as its thinking is: the server takes no other settings then")
            return
        if not self._over:
            self._settings = settings

    async def _next(self, most: int) -> Part | None:
        """The next part, None at the end of the turn."""
        while True:
            if self._parts:
                part = self._parts.popleft()
                self.written += part.tokens
                if self._skipped is not None and self.sampler.tags is not None:
                    before, close, after = (self._skipped + part.text).partition(self.sampler.tags.close)
                    self._skipped = None if close else before
                    if close and before.strip():
                        self.sampler.note("the model thinks though it was asked not to; that is counted, and left out")
                    if not (close and after):
                        continue
                    part = Part(after)
                self._guess += part.tokens
                return part
            if self._over:
                if self._skipped:
                    self.sampler.note("the model thought though it was asked not to, and came to no answer")
                return None
            if self._reply is None:
                await self._start(most)
            else:
                await self._receive()

    async def _start(self, most: int) -> None:
        """A request, up to its first part. Tried again as long as nothing has come."""
        sampler, connection = self.sampler, self.sampler.connection
        if self._begun and self.head is None:
            raise EndpointError(f"the chain from {sampler.remote.host} was broken off: begin another one")
        self._begun += 1
        url, body = await self._request(max(self._limit, most))
        patience = connection.patience()
        await connection.slot()
        try:
            while True:
                self._stream = await connection.stream(url, body, patience)
                self._reply = Reply(self._tags, opened=sampler.opened, count=sampler.count_chunk, remote=sampler.remote)
                try:
                    return await self._receive()
                except Dropped as error:
                    stream, self._stream = self._stream, None
                    await stream.close()
                    await patience.again(str(error))
        except BaseException:
            if self._stream is None:
                connection.release()
            raise

    async def _request(self, limit: int) -> tuple[str, dict[str, Any]]:
        """(URL, body) of a request for all that comes after the text so far."""
        sampler, settings, url = self.sampler, self._settings, self.sampler.remote.url
        usage = {"include_usage": True}
        body: dict[str, Any] = {"model": sampler.remote.model, "stream": True, "temperature": settings.temperature}
        if self.head is not None and sampler.prefix is not None:
            url = url.removesuffix("/chat/completions") + "/completions"
            prompt = body["prompt"] = await sampler.prefix.whole(self.head, self.text + self._held)
            self._estimated = sampler.count(prompt) if isinstance(prompt, str) else len(prompt)
            if sampler.prefix.kind == "vllm":
                usage["continuous_usage_stats"] = True
        else:
            body["messages"] = [dict(m) for m in self.messages]
            self._estimated = self.prompt
            if not self.think:
                body["chat_template_kwargs"] = {SWITCH: False}
        self.read += self._estimated
        room = limit if sampler.window is None else sampler.window - self._estimated
        body |= {"max_tokens": max(1, min(limit, room)), "stream_options": usage}
        if settings.top_p != 1.0:
            body["top_p"] = settings.top_p
        if settings.seed is not None:
            body["seed"] = settings.seed
        if settings.logprobs:
            body["logprobs"] = True if self.head is None else 1
        return url, body

    async def _receive(self) -> None:
        """Read on until there is a part, or the end."""
        stream, reply, sampler = self._stream, self._reply, self.sampler
        assert stream is not None
        assert reply is not None
        try:
            async with asyncio.timeout(sampler.connection.timeout):
                while not self._parts:
                    chunk = await stream.next()
                    if chunk is None:
                        if not (stream.done or reply.finish):
                            raise Dropped(f"{sampler.remote.host} ended the stream before its reply")
                        break
                    self._parts += (p for p in reply.read(chunk) if p.text or p.tokens)
                else:
                    return
        except TimeoutError:
            if not reply.finish:
                raise EndpointError(
                    f"{sampler.remote.host} sent no text for {sampler.connection.timeout:g} seconds, "
                    f"after {self.written:,} tokens"
                ) from None
        except Dropped as error:
            if not reply.finish and reply.counted:
                raise EndpointError(f"{error} after {self.written:,} tokens") from None
            if not reply.finish:
                raise
        if reply.finish == "content_filter":
            raise EndpointError(f"{sampler.remote.host} withholds the rest of the reply (content_filter)")
        if reply.again:
            sampler.note("the model thought again after its answer had begun; that is counted, and left out")
        self._parts += reply.end()
        self._over = True
        if reply.usage is not None:
            self.written += reply.usage.written - reply.counted
            if self._begun == 1:
                self._thought = reply.usage.thinking or None
        await self._hang_up()

    async def _drop(self) -> None:
        """End the request that runs; the next one begins from the text."""
        await self._hang_up()
        self._reply, self._over = None, False
        self._parts.clear()

    async def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        usage = self._reply.usage if self._reply is not None else None
        if usage is not None and usage.read:
            self.read += usage.read - usage.cached - self._estimated
            self.prompt = self.prompt if self.head else usage.read
        await asyncio.shield(self.sampler.later(self._release(stream)))

    async def _release(self, stream: Stream) -> None:
        try:
            await stream.close()
        finally:
            self.sampler.connection.release()

    def _estimate(self) -> int:
        """Tokens of the prompt."""
        if self.head is None:
            return sum(self.sampler.count(m["content"]) for m in self.messages) + FRAME_TOKENS
        prompt, lead = self.head.prompt, self.head.lead
        if isinstance(prompt, str):
            return self.sampler.count(prompt + lead)
        return len(prompt) + self.sampler.count(lead)


def _partial(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    longest = max((len(s) for s in stops), default=1) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)
