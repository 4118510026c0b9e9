"""The application: who may ask, how many at once, for how long, and what ends early."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from lengthwise.errors import EndpointError
from lengthwise.serve.answering import GONE, Answering, log, stopping, where
from lengthwise.serve.asked import Asked, Failure, read
from lengthwise.serve.options import Options
from lengthwise.serve.replies import Reply
from lengthwise.thinking import Sampler, Strategy, Thought, registry, think
from lengthwise.thinking.samplers import prepare

FIRST = 60.0  # seconds for an endpoint's first answer
CLEANUP = 5.0  # seconds for cancelled work to close its connections


class Proxy:
    """The work under way. A job holds a place until it has really ended; `stop` ends all."""

    def __init__(self, sampler: Sampler, strategies: Sequence[Strategy], options: Options) -> None:
        registry.check(strategies, sampler)
        self.sampler, self.strategies, self.options = sampler, strategies, options
        self.model = options.model or sampler.name
        self.created = int(time.time())
        self.jobs: set[asyncio.Task[Thought]] = set()
        self.running, self.stopped = 0, False
        self._places = asyncio.Semaphore(options.concurrency)
        self._pace = 1.0  # seconds of a request, a moving mean

    async def begin(self) -> None:
        """Ask an endpoint what it can do, once, and refuse a strategy that needs more.

        Raises EndpointError when it does not answer, StackRefused for the strategy.
        """
        seconds = min(FIRST, self.options.timeout)
        try:
            await asyncio.wait_for(prepare(self.sampler), seconds)
        except TimeoutError:
            raise EndpointError(f"{self.sampler.name} did not answer a first question in {seconds:g} seconds") from None
        registry.check(self.strategies, self.sampler)

    def start(self, asked: Asked) -> asyncio.Task[Thought]:
        """Begin, or queue. Raises Failure when the queue is full or the proxy stops."""
        if self.stopped:
            raise stopping()
        if len(self.jobs) >= self.options.concurrency + self.options.queue:
            seconds = str(min(max(math.ceil(self._pace), 1), 60))
            message = f"{self.running} requests run and {len(self.jobs) - self.running} wait: try again later"
            raise Failure(
                429, message, "rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": seconds}
            )
        job = asyncio.create_task(self._work(asked))
        self.jobs.add(job)
        job.add_done_callback(self._ended)
        return job

    async def _work(self, asked: Asked) -> Thought:
        async with self._places:
            self.running += 1
            begun = time.perf_counter()
            try:
                return await think(
                    asked.messages,
                    self.sampler,
                    self.strategies,
                    settings=asked.settings,
                    most_thinking=asked.most_thinking,
                    most_answer=asked.most_answer,
                    extract=self.options.extract,
                )
            finally:
                self.running -= 1
                self._pace += 0.1 * (time.perf_counter() - begun - self._pace)

    def _ended(self, job: asyncio.Task[Thought]) -> None:
        self.jobs.discard(job)
        if not job.cancelled():
            job.exception()  # seen, so that asyncio does not write it (and what is in it) to the log

    def stop(self) -> None:
        """End all that runs or waits; clients are told."""
        self.stopped = True
        for job in self.jobs:
            job.cancel()

    async def close(self) -> None:
        """Stop, wait for what closes its connections, close the sampler; each for a bounded time."""
        self.stop()
        if self.jobs:
            await asyncio.wait(self.jobs, timeout=CLEANUP)
        try:
            await asyncio.wait_for(self.sampler.close(), CLEANUP)
        except Exception as error:
            log.warning("closing the sampler: %s", where(error))

    def admit(self, request: Request) -> None:
        """Raise Failure unless the request has the token. How long that takes does not tell how much was right."""
        if self.options.token is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(token.strip().encode(), self.options.token.encode())
        if scheme.lower() != "bearer" or not right:
            message = "the bearer token is missing or wrong"
            raise Failure(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def body(self, request: Request) -> bytes:
        """The request's body, within its limits of size and time."""
        most, got = self.options.most_bytes, bytearray()
        length = request.headers.get("content-length", "")
        try:
            async with asyncio.timeout(min(self.options.patience, self.options.timeout)):
                if length.isdecimal() and int(length) > most:
                    raise _too_large(most)
                async for chunk in request.stream():
                    got += chunk
                    if len(got) > most:
                        raise _too_large(most)
        except TimeoutError:
            raise Failure(408, "the body did not arrive in time", "timeout_error", code="timeout") from None
        except ClientDisconnect:
            raise Failure(GONE, "the client went away") from None
        return bytes(got)


def build(sampler: Sampler, strategies: str | Sequence[Strategy], options: Options) -> FastAPI:
    """The application. Raises StackRefused and the like; see `lengthwise.serve.app`."""
    proxy = Proxy(sampler, registry.parse(strategies) if isinstance(strategies, str) else list(strategies), options)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await proxy.close()

    app = FastAPI(title="Lengthwise", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.proxy = proxy

    @app.post("/v1/chat/completions", response_model=None)
    async def completions(request: Request) -> Response:
        begun = time.perf_counter()
        proxy.admit(request)
        asked = read(await proxy.body(request), proxy.model, options, sampler.tags is not None)
        reply = Reply(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), proxy.model, asked)
        return Answering(proxy, reply, proxy.start(asked), begun + options.timeout)

    @app.get("/v1/models", response_model=None)
    async def models(request: Request) -> Response:
        proxy.admit(request)
        return JSONResponse({"object": "list", "data": [_model(proxy)]})

    @app.get("/v1/models/{name:path}", response_model=None)
    async def model(request: Request, name: str) -> Response:
        proxy.admit(request)
        if name != proxy.model:
            raise Failure(404, f"the model here is '{proxy.model}'", param="model", code="model_not_found")
        return JSONResponse(_model(proxy))

    @app.get("/health", response_model=None)
    async def health() -> Response:
        waiting = len(proxy.jobs) - proxy.running
        status = "stopping" if proxy.stopped else "ok"
        return JSONResponse({"status": status, "running": proxy.running, "waiting": waiting})

    @app.exception_handler(Failure)
    async def failed(request: Request, failure: Failure) -> Response:
        log.info("%s %d %s", request.url.path, failure.status, failure.kind)
        return JSONResponse(failure.to_json(), failure.status, failure.headers)

    @app.exception_handler(StarletteHTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        served = "POST /v1/chat/completions, GET /v1/models and GET /health"
        failure = Failure(error.status_code, f"{request.method} {request.url.path}: served are {served}")
        return JSONResponse(failure.to_json(), error.status_code, error.headers)

    return app


def _model(proxy: Proxy) -> dict[str, Any]:
    strategy = registry.format_strategies(proxy.strategies)
    about = {"strategy": strategy, "behind": proxy.sampler.name}
    return {"id": proxy.model, "object": "model", "created": proxy.created, "owned_by": "lengthwise", **about}


def _too_large(most: int) -> Failure:
    headers = {"Connection": "close"}
    return Failure(413, f"the body is larger than {most:,} bytes", code="request_too_large", headers=headers)
