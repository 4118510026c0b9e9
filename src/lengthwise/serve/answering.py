"""The reply to one request: waits, shows signs of life, and says in one way or another how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lengthwise.errors import EndpointError, LengthwiseError
from lengthwise.serve.asked import Failure
from lengthwise.serve.replies import Reply
from lengthwise.thinking import Thought

if TYPE_CHECKING:
    from lengthwise.serve.proxy import Proxy

log = logging.getLogger("lengthwise.serve")
GONE = 499  # the status in the log of a client that went away


class Answering(Response):
    """The reply to one request: waits for its job, watches the client, and ends the job with the reply."""

    def __init__(self, proxy: Proxy, reply: Reply, job: asyncio.Task[Thought], deadline: float) -> None:
        super().__init__()
        self.proxy, self.reply, self.job, self.deadline = proxy, reply, job, deadline
        self.begun = time.perf_counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply, as an ASGI application."""
        self.send, self.gone = send, asyncio.create_task(_gone(receive))
        try:
            await (self._stream() if self.reply.asked.stream else self._whole())
        except TimeoutError:
            self._log(GONE, "the client does not read")
        finally:
            self.job.cancel()
            self.gone.cancel()

    async def _whole(self) -> None:
        await self._wait(math.inf)
        if self._left():
            return
        try:
            thought = self._result()
        except Failure as failure:
            await self._fail(failure)
            return
        self._log(200, _cost(thought))
        await self._json(200, self.reply.completion(thought, self.proxy.sampler))

    async def _stream(self) -> None:
        """What fails at once has a status of its own; later, the error is an event of the stream."""
        pause = self.proxy.options.keep_alive
        await self._wait(pause)
        if self._left():
            return
        if self._over():
            try:
                self._result()
            except Failure as failure:
                await self._fail(failure)
                return
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
        }
        await self._start(200, headers)
        await self._event(self.reply.opening())
        while not self._over():
            await self._bytes(b": thinking\n\n")
            await self._wait(pause)
            if self._left():
                return
        try:
            thought = self._result()
            self._log(200, _cost(thought))
            for chunk in self.reply.chunks(thought, self.proxy.sampler):
                await self._event(chunk)
        except Failure as failure:
            self._log(failure.status, failure.kind)
            await self._event(failure.to_json())
        await self._bytes(b"data: [DONE]\n\n", more=False)

    async def _wait(self, seconds: float) -> None:
        """Until the job has ended or the client is gone, for `seconds` and up to the deadline."""
        left = max(min(seconds, self.deadline - time.perf_counter()), 0)
        await asyncio.wait({self.job, self.gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    def _over(self) -> bool:
        return self.job.done() or time.perf_counter() >= self.deadline

    def _left(self) -> bool:
        """Whether the client went away."""
        if self.gone.done() and not self.job.done():
            self._log(GONE, "the client went away")
            return True
        return False

    def _result(self) -> Thought:
        """The job's, or a Failure."""
        if not self.job.done():
            message = f"no answer within {self.proxy.options.timeout:g} seconds"
            raise Failure(504, message, "timeout_error", code="timeout")
        if self.job.cancelled():
            raise stopping()
        error = self.job.exception()
        if error is None:
            return self.job.result()
        if isinstance(error, EndpointError):
            raise Failure(502, f"the model's server: {error}", "upstream_error", code="upstream_error")
        if isinstance(error, LengthwiseError):
            raise Failure(400, str(error))
        log.error("%s %s", self.reply.id, where(error))
        raise Failure(500, f"unexpected {type(error).__name__} in the proxy (a bug)", "server_error")

    async def _fail(self, failure: Failure) -> None:
        self._log(failure.status, failure.kind)
        await self._json(failure.status, failure.to_json(), failure.headers)

    async def _json(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        await self._start(
            status, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
        )
        await self._bytes(data, more=False)

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        raw = [(k.lower().encode(), v.encode()) for k, v in {**headers, "x-request-id": self.reply.id}.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _event(self, data: dict[str, Any]) -> None:
        await self._bytes(f"data: {json.dumps(data)}\n\n".encode())

    async def _bytes(self, data: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _send(self, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self.proxy.options.patience):
            await self.send(message)

    def _log(self, status: int, what: str) -> None:
        """One line a request, without a word of what was asked or answered."""
        log.info("%s %d %.2f s %s", self.reply.id, status, time.perf_counter() - self.begun, what)


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _cost(thought: Thought) -> str:
    spent = thought.spent
    tokens = spent.thinking_tokens + spent.answer_tokens + spent.other_tokens
    return f"{spent.chains} chains, {tokens} tokens, {spent.cancelled_tokens} of them cancelled"


def where(error: BaseException) -> str:
    """An exception's kind and place, without its text, which may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
    return f"{type(error).__name__} at {place}"


def stopping() -> Failure:
    """What a client is told at a shutdown."""
    return Failure(503, "the proxy is stopping", "server_error", code="stopping", headers={"Retry-After": "5"})
