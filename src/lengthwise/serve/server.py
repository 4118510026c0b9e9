"""Listens and stops: one clear line when it cannot listen, a bounded time to end when it is told to."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from lengthwise.errors import BadInput

BACKLOG = 2048
AFTER_GRACE = 5  # seconds for replies that say that the proxy stops


class Server(uvicorn.Server):
    """Calls `said` when it listens; at a shutdown, running requests have their grace and are then told to end."""

    def __init__(self, app: FastAPI, said: Callable[[], object] = lambda: None) -> None:
        self.proxy, self.said = app.state.proxy, said
        ends = math.ceil(self.proxy.options.grace) + AFTER_GRACE
        config = uvicorn.Config(app, log_config=None, access_log=False, backlog=BACKLOG, timeout_graceful_shutdown=ends)
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, once the sampler has shown that it can do what the strategies need."""
        await self.proxy.begin()
        await super().startup(sockets)
        if self.started:
            self.said()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new requests; those that run may end."""
        later = asyncio.get_running_loop().call_later(self.proxy.options.grace, self.proxy.stop)
        try:
            await super().shutdown(sockets)
        finally:
            later.cancel()


def serve(app: FastAPI, host: str, port: int, said: Callable[[str], object]) -> None:
    """See `lengthwise.serve.run`."""
    with listening(host, port) as listener, _quiet_signals():
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}/v1"
        Server(app, lambda: said(url)).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises BadInput in one line."""
    if not 0 <= port <= 65_535:
        raise BadInput(f"{port} is no port: a port is from 0 (any that is free) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = error.strerror or str(error)
        raise BadInput(f"cannot listen on {host}, port {port}: {why}; choose others with --host and --port") from error


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn raises the signal that stopped it again; here that is a normal end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
