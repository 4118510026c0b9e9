"""Requests to one server: tried again while nothing has come, a bounded number at once, read chunk by chunk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from lengthwise.core.remote import AGAIN, FIRST_WAIT, MOST_WAIT, Remote, first_line, retry_after, unsupported
from lengthwise.errors import EndpointError, MissingExtra
from lengthwise.thinking._sse import Events

KEPT = ("model", "messages", "prompt", "stream")  # a request without these would be another one
LAST_BYTES = 0.5  # seconds that the end of a response may take after its last chunk
SHORTER = "shorten the problem, or lower max_tokens"


class Dropped(EndpointError):
    """The connection broke, or ended before the reply did."""


class Patience:
    """The tries of one request."""

    def __init__(self, host: str, tries: int, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.host, self.tries, self.sleep, self.tried = host, tries, sleep, 0

    async def again(self, trouble: str, asked: float = 0.0) -> None:
        """Wait before another try, at least the `asked` seconds. Raises EndpointError when there is none left."""
        self.tried += 1
        if self.tried >= self.tries:
            raise EndpointError(f"{self.host} gave no answer in {self.tries} tries, at the last: {trouble}")
        if asked > MOST_WAIT:
            raise EndpointError(f"{self.host} asks to wait {asked:,.0f} seconds: try again later ({trouble})")
        backoff = min(MOST_WAIT, FIRST_WAIT * 2 ** (self.tried - 1)) * random.uniform(0.5, 1.0)
        await self.sleep(max(asked, backoff))


class Connection:
    """An httpx client for one server. `untaken` are parameters that it refuses: name -> what is sent instead."""

    def __init__(
        self,
        remote: Remote,
        *,
        tries: int,
        timeout: float,
        connections: int,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtra("httpx", "endpoint", "thinking with a model behind a server") from error
        self.remote, self.tries, self.timeout, self.connections, self.sleep = remote, tries, timeout, connections, sleep
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=connections)
        times = httpx.Timeout(timeout, connect=min(timeout, 20.0))
        self.client = httpx.AsyncClient(headers=remote.headers, timeout=times, limits=limits)
        self.untaken: dict[str, str] = {}
        self.heard = time.monotonic()
        self._slots = asyncio.Semaphore(connections)

    def patience(self) -> Patience:
        """For one request."""
        return Patience(self.remote.host, self.tries, self.sleep)

    async def slot(self) -> None:
        """Wait until fewer than `connections` streams are open; `release` gives the place back.

        Raises EndpointError when all of them have been silent for `timeout` seconds: then none will end.
        """
        while True:
            try:
                async with asyncio.timeout(self.timeout):
                    await self._slots.acquire()
                    return
            except TimeoutError:
                if time.monotonic() - self.heard > self.timeout:
                    raise EndpointError(
                        f"all {self.connections} connections to {self.remote.host} are taken, and nothing came over "
                        f"them for {self.timeout:g} seconds: allow more connections, or write fewer chains at once"
                    ) from None

    def release(self) -> None:
        """A stream has ended."""
        self._slots.release()

    async def open(self, url: str, request: dict[str, Any], patience: Patience) -> Any:
        """The response to a request, status 200, its body not yet read. Raises EndpointError or BadInput."""
        import httpx

        while True:
            body = {self.untaken.get(name, name): value for name, value in request.items()}
            send = self.client.build_request("POST", url, json={n: v for n, v in body.items() if n})
            try:
                response = await self.client.send(send, stream=True)
                if response.status_code == 200:
                    return response
                try:
                    text = (await response.aread()).decode("utf-8", "replace")
                finally:
                    await response.aclose()
            except httpx.ConnectTimeout:
                await patience.again("no connection in time")
                continue
            except httpx.TimeoutException as error:
                raise EndpointError(f"{self.remote.host} did not answer in {self.timeout:g} seconds") from error
            except httpx.RequestError as error:
                await patience.again(f"no connection ({first_line(str(error)) or type(error).__name__})")
                continue
            refused = unsupported(text) if response.status_code in (400, 422) else ""
            if refused in request and refused not in (*KEPT, *self.untaken):
                self.untaken[refused] = "max_completion_tokens" if refused == "max_tokens" else ""
                continue
            trouble = f"status {response.status_code}: {self.remote.line(text)}"
            if response.status_code not in AGAIN and response.status_code < 500:
                raise self.remote.refusal(response.status_code, trouble, SHORTER)
            await patience.again(trouble, retry_after(response.headers.get("retry-after")))

    async def stream(self, url: str, request: dict[str, Any], patience: Patience) -> Stream:
        """The response to a request as a stream. Raises as `open` does, and EndpointError when it is none."""
        response = await self.open(url, request, patience)
        kind = response.headers.get("content-type", "")
        if "json" in kind:
            await response.aclose()
            raise EndpointError(f"{self.remote.host} does not stream its replies: it sent {kind}")
        return Stream(response, self)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that a path from the server's root answers with. Raises EndpointError or BadInput."""
        import httpx

        url = self.remote.url.removesuffix("/chat/completions").rstrip("0123456789").removesuffix("/v") + path
        response = await self.open(url, body, self.patience())
        try:
            reply = json.loads(await response.aread())
        except (ValueError, httpx.HTTPError) as error:
            raise EndpointError(f"{self.remote.host} gave no JSON at {path}") from error
        finally:
            await response.aclose()
        if not isinstance(reply, dict):
            raise EndpointError(f"{self.remote.host} gave no JSON object at {path}")
        return reply


class Stream:
    """The chunks of a streamed response."""

    def __init__(self, response: Any, connection: Connection) -> None:
        self.response, self.connection, self.done = response, connection, False
        self._bytes: AsyncIterator[bytes] = response.aiter_bytes()
        self._events, self._waiting, self._ended = Events(), deque[str](), False

    async def next(self) -> Any:
        """The next chunk, None at the end. Raises Dropped, and EndpointError for what is no JSON or too late."""
        import httpx

        host = self.connection.remote.host
        while not self._waiting:
            if self._ended:
                return None
            try:
                self._waiting.extend(self._events.feed(await anext(self._bytes)))
                self.connection.heard = time.monotonic()
            except StopAsyncIteration:
                self._ended = True
                self._waiting.extend(self._events.end())
            except httpx.TimeoutException:
                raise TimeoutError from None
            except httpx.RequestError as error:
                raise Dropped(
                    f"{host} broke the connection ({first_line(str(error)) or type(error).__name__})"
                ) from error
        data = self._waiting.popleft()
        if data.strip() == "[DONE]":
            self.done = self._ended = True
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            line = self.connection.remote.line(data)[:80]
            raise EndpointError(f"{host} sent a malformed chunk: {line}") from error

    async def close(self) -> None:
        """Close the connection, by which the server knows to stop; after the last chunk it is kept for the next one."""
        import httpx

        if self.done:
            with contextlib.suppress(StopAsyncIteration, TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(LAST_BYTES):
                    while True:
                        await anext(self._bytes)
        with contextlib.suppress(httpx.HTTPError):
            await self.response.aclose()
