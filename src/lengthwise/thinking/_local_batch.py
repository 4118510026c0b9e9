"""Continuous batching: every chain that wants a token gets one from the next step, whoever came and went before it.

One thread owns the model and the rows; the event loop only hands it steps. A step reads what its chains have not read
yet, in one forward pass for each class of lengths (1, 2, 3-4, 5-8, ... tokens), so that padding never doubles the work.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lengthwise.core.compat import logits_of
from lengthwise.errors import LengthwiseError
from lengthwise.thinking._local_draw import Draw, Drawn, draw
from lengthwise.thinking._local_rows import Row, Rows
from lengthwise.thinking._local_text import Script
from lengthwise.thinking.chain import Settings

T = TypeVar("T")
TURNS = 3  # of the event loop between two steps, in which chains that were served can ask again


@dataclass(eq=False)
class Root:
    """A prompt, read once for all its chains: `row` has read all of `ids` but the last, once it is `ready`."""

    ids: list[int]
    row: Row | None = None
    ready: bool = False


@dataclass(eq=False)
class Held:
    """What a chain holds of the model: its row (None before the first step) of which `valid` ids are still right."""

    number: int
    root: Root
    script: Script
    row: Row | None = None
    valid: int = 1 << 62
    read: int = 0  # tokens of the prompt that were read for this chain
    closed: bool = False


@dataclass(eq=False)
class Request:
    """A chain that wants tokens. `take` is given each one and says whether that was the last."""

    held: Held
    settings: Settings
    source: random.Random
    take: Callable[[Drawn], bool]
    done: asyncio.Future[None]
    flying: bool = False  # whether a token for it is being computed
    ids: list[int] = field(default_factory=list)  # all of them, as of this step
    drawn: Drawn | None = None


class Batcher:
    """Runs steps as long as somebody wants a token. `most` chains have a place in a step, the others wait.

    `passes` and `tokens` count forward passes and the tokens that they read.
    """

    def __init__(self, model: Any, rows: Rows, most: int) -> None:
        self.model, self.rows, self.most = model, rows, most
        self.passes = self.tokens = 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="lengthwise-local")
        self._wanting: list[Request] = []
        self._driver: asyncio.Task[None] | None = None
        self.closed = False

    def ask(self, request: Request) -> None:
        """Serve the request from the next step on."""
        if self.closed:
            raise LengthwiseError("this sampler was closed")
        loop = asyncio.get_running_loop()
        driver = self._driver
        if driver is not None and not driver.done() and driver.get_loop() is not loop:
            if not driver.get_loop().is_closed():
                raise LengthwiseError("a local sampler serves one event loop at a time")
            driver = None
        self._wanting.append(request)
        if driver is None or driver.done():
            self._driver = loop.create_task(self._drive())

    def leave(self, request: Request) -> None:
        """Serve the request no more."""
        with contextlib.suppress(ValueError):
            self._wanting.remove(request)

    async def call(self, work: Callable[[], T]) -> T:
        """Something else for the thread that owns the model, between two steps."""
        if self.closed:
            raise LengthwiseError("this sampler was closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def drop(self, held: Held) -> None:
        """Free a chain's row before the next step."""
        held.closed = True
        if not self.closed:
            self._thread.submit(self._free, held)

    async def close(self) -> None:
        """End the thread; requests that are left fail."""
        if self.closed:
            return
        self.closed = True
        self._fail(LengthwiseError("this sampler was closed"))
        self._thread.submit(self.rows.clear)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def _drive(self) -> None:
        try:
            while True:
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                batch = self._pick()
                if not batch:
                    return
                step = self._thread.submit(self._step, batch)
                try:
                    await asyncio.wrap_future(step)
                except asyncio.CancelledError:
                    if not step.cancel():
                        concurrent.futures.wait([step])
                    raise
                finally:
                    self._serve(batch)
        except Exception as error:  # of the model: nobody can go on
            self._fail(error)

    def _pick(self) -> list[Request]:
        """Who takes part: those that already hold something first, then the oldest."""
        self._wanting.sort(key=lambda r: (r.held.row is None, r.held.number))
        batch = self._wanting[: self.most]
        for request in batch:
            held, request.ids, request.drawn = request.held, list(request.held.script.ids), None
            begun = held.row.read if held.row is not None else len(held.root.ids) - 1 if held.root.ready else 0
            request.flying = begun > 0 and len(request.ids) - begun <= self.rows.most
        return batch

    def _serve(self, batch: Sequence[Request]) -> None:
        for request in batch:
            request.flying, drawn = False, request.drawn
            if drawn is None or request not in self._wanting:
                continue
            try:
                if drawn.error is not None:
                    raise drawn.error
                over = request.take(drawn)
            except Exception as error:
                self.leave(request)
                if not request.done.done():
                    request.done.set_exception(error)
                continue
            if over:
                self.leave(request)
                if not request.done.done():
                    request.done.set_result(None)

    def _fail(self, error: Exception) -> None:
        for request in self._wanting:
            if not request.done.done():
                request.done.set_exception(error)
        self._wanting.clear()

    # in the thread that owns the model

    def fork(self, held: Held) -> Row:
        """Another row that has read what the chain's has."""
        if held.closed or held.row is None:
            raise LengthwiseError("this chain was closed")
        return self.rows.fork(held.row)

    def _step(self, batch: Sequence[Request]) -> None:
        try:
            self._read(batch)
        except Exception:  # rows may hold half of a pass: who goes on after this reads again
            for request in batch:
                self._free(request.held)
                root = request.held.root
                if root.row is not None and not root.ready:
                    self.rows.drop(root.row)
                    root.row = None
            raise

    @torch.no_grad()
    def _read(self, batch: Sequence[Request]) -> None:
        reading: list[tuple[Row, list[int], Request | None]] = []
        roots: set[int] = set()
        for request in batch:
            held = request.held
            if held.closed or not self._place(held, len(request.ids) - 1, reading, roots):
                continue
            assert held.row is not None
            waiting = request.ids[held.row.read :]
            some = waiting[: self.rows.most]
            reading.append((held.row, some, request if len(some) == len(waiting) else None))
        wanted: list[Request] = []
        ends: list[Tensor] = []
        classes: dict[int, list[tuple[Row, list[int], Request | None]]] = {}
        for one in reading:
            classes.setdefault((len(one[1]) - 1).bit_length(), []).append(one)
        for _, some_rows in sorted(classes.items(), reverse=True):
            hidden = self.forward([row for row, _, _ in some_rows], [ids for _, ids, _ in some_rows])
            for i, (_, ids, asked) in enumerate(some_rows):
                if asked is not None:
                    wanted.append(asked)
                    ends.append(hidden[i, len(ids) - 1])
        if wanted:
            logits = logits_of(self.model, torch.stack(ends))
            draws = [Draw(r.settings, r.source, r.ids[r.held.script.start :]) for r in wanted]
            for request, drawn in zip(wanted, draw(logits, draws), strict=True):
                request.drawn = drawn

    def forward(self, rows: Sequence[Row], ids: Sequence[Sequence[int]]) -> Tensor:
        """Read ids[i] with rows[i], in one pass: last hidden states [B, C, H], of the first len(ids[i]) columns."""
        lengths = [len(some) for some in ids]
        padded = torch.zeros(len(ids), max(lengths), dtype=torch.long)
        for i, some in enumerate(ids):
            padded[i, : len(some)] = torch.tensor(some)
        self.passes += 1
        self.tokens += sum(lengths)
        return self.rows.forward(rows, padded, lengths)

    def catch_up(self, held: Held, ids: Sequence[int]) -> Row:
        """The chain's row, once it has read all of `ids` but the last."""
        most = self.rows.most
        reading: list[Any] = []
        while not self._place(held, len(ids) - 1, reading, set()):
            self.forward([reading[-1][0]], [reading[-1][1]])
        assert held.row is not None
        while held.row.read < len(ids) - 1:
            self.forward([held.row], [ids[held.row.read : -1][:most]])
        return held.row

    def _place(self, held: Held, limit: int, reading: list[Any], roots: set[int]) -> bool:
        """Have the chain's row stand where its ids are right, at most at `limit`.

        False while its prompt is not read: what to read of it next is then put into `reading`, once for all chains.
        """
        if held.row is not None:
            right = min(held.row.read, held.valid, limit)
            held.valid = 1 << 62
            if self.rows.cut(held.row, right):
                return True
            self.rows.drop(held.row)  # it cannot go back: read again from the prompt on
            held.row = None
        root = held.root
        if root.row is None:
            root.row, held.read = self.rows.new(), len(root.ids)
        if not root.ready and root.row.read == len(root.ids) - 1:
            root.ready = True
            self.rows.rest(root.row)
        if root.ready:
            held.row = self.rows.fork(root.row)
            return True
        if id(root) not in roots:
            roots.add(id(root))
            reading.append((root.row, root.ids[root.row.read : -1][: self.rows.most], None))
        return False

    def _free(self, held: Held) -> None:
        if held.row is not None:
            self.rows.drop(held.row)
            held.row = None
