"""A proxy in a thread of its own, and a scripted sampler that can be slow, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from lengthwise.serve import Options, app
from lengthwise.serve.server import Server, listening
from lengthwise.thinking import Messages, Sampler
from scripted import Script, Scripted, ScriptedChain


class Served:
    """`with Served(sampler, "majority:k=3", queue=4) as proxy:` ... `proxy.url` is the base URL for clients."""

    def __init__(self, sampler: Sampler, strategy: str = "plain", **options: Any) -> None:
        application = app(sampler, strategy, Options(**options))
        self.sampler, self.state = sampler, application.state.proxy
        self._listener = listening("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._ready = threading.Event()
        self.server = Server(application, self._ready.set)
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],), daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(10), "the proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the proxy did not stop"

    def wait(self, until: Callable[[], object], seconds: float = 5.0) -> None:
        """Block until `until()` is true; AssertionError when it does not become so in time."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"waited {seconds} seconds in vain"
            time.sleep(0.005)


class Slow(Scripted):
    """Chains begin to write when `go` is set; `begun` counts those that wait for it or have passed."""

    def __init__(self, script: Script = lambda q, n: "so it is</think>four", **options: Any) -> None:
        super().__init__(script, **options)
        self.go, self.begun = threading.Event(), 0

    async def chain(self, messages: Messages, *, think: bool = True) -> ScriptedChain:
        chain = await super().chain(messages, think=think)
        try:
            self.begun += 1
            while not self.go.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            await chain.close()
            raise
        return chain
