"""Load on a proxy: many clients at once before an endpoint that misbehaves, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from fake_server import FakeServer, Reply, Seen
from lengthwise.thinking.endpoint import EndpointSampler
from served import Served

ANSWER = "The answer is 42"
LONG = 5000  # tokens of a reply that nobody waits for
LEAVE_AT = 20  # tokens that have come when a client leaves
KINDS = ("fine", "flaky", "500", "drop", "malformed", "error", "stall", "endless", "leave")
# What a request may end with: "answer", or the status of a clear error.
ENDS: dict[str, tuple[str, ...]] = {
    "fine": ("answer",),
    "flaky": ("answer",),
    "500": ("502",),
    "drop": ("502",),
    "malformed": ("502",),
    "error": ("502",),
    "stall": ("502", "504"),
    "endless": ("504",),
    "leave": ("left",),
}


@dataclass
class Ended:
    """One request. `paid` tokens were sent by the server for it, `told` by the usage of its answer."""

    kind: str
    how: str
    seconds: float
    question: str
    told: int = 0
    sent_at_leave: int = 0
    paid: int = 0


@dataclass
class Load:
    """What came of it all."""

    ended: list[Ended] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the proxy, the endpoint and the clients
    sent_later: int = 0  # tokens that the server sent after every request had ended
    peak: int = 0

    @property
    def wrong(self) -> list[Ended]:
        """Requests that hung, or did not end as their kind must."""
        return [e for e in self.ended if e.how not in ENDS[e.kind]]

    @property
    def after_cancel(self) -> int:
        """Tokens that the server sent for requests whose client had left, after it had left."""
        return sum(e.paid - e.sent_at_leave for e in self.ended if e.kind == "leave")

    def to_json(self) -> dict[str, Any]:
        """One line of the benchmark."""
        times = sorted(e.seconds for e in self.ended if e.how == "answer") or [0.0]
        left = [e for e in self.ended if e.kind == "leave"]
        errors = Counter(f"{e.kind}: {e.how}" for e in self.ended if e.how not in ("answer", "left"))
        return {
            "requests": len(self.ended),
            "answers": sum(e.how == "answer" for e in self.ended),
            "errors": dict(sorted(errors.items())),
            "left": len(left),
            "hung": sum(e.how == "hung" for e in self.ended),
            "wrong": len(self.wrong),
            "p50_seconds": round(times[len(times) // 2], 3),
            "p95_seconds": round(times[int(len(times) * 0.95)], 3),
            "tokens_told": sum(e.told for e in self.ended),
            "tokens_paid_for_answers": sum(e.paid for e in self.ended if e.how == "answer"),
            "tokens_after_cancel": self.after_cancel,
            "tokens_after_all_ended": self.sent_later,
            "tokens_not_written": sum(LONG - e.paid for e in left),
            "peak_streams": self.peak,
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
        }


def script(pause: float, seen: Counter[str]) -> Any:
    """Replies by the question's kind; lengths differ from chain to chain."""

    def reply(body: dict[str, Any], number: int) -> Reply:
        question = body["messages"][-1]["content"]
        kind = question.partition(" ")[0]
        seen[question] += 1
        thinking = "so " * (4 + 7 * number % 13)
        usual = Reply(thinking=thinking, answer=ANSWER, pause=pause)
        usual.status = 500 if kind == "500" or (kind == "flaky" and seen[question] == 1) else 200
        usual.drop_after = 3 if kind == "drop" else None
        usual.malformed_after = 3 if kind == "malformed" else None
        usual.error_after = 3 if kind == "error" else None
        usual.stall_after = 3 if kind == "stall" else None
        if kind in ("endless", "leave"):
            usual.thinking, usual.pause = "so " * LONG, 0.02
        return usual

    return reply


def load(
    clients: int = 64,
    each: int = 1,
    strategy: str = "short-m@k:m=1,k=2",
    *,
    kinds: Sequence[str] = KINDS,
    timeout: float = 6.0,
    pause: float = 0.002,
) -> Load:
    """`clients` at once, `each` asks that many times, one after another; kinds take turns, half of them stream."""
    got = Load()
    with FakeServer(script(pause, Counter())) as server:
        sampler = EndpointSampler(
            server.url, "fake", tries=2, timeout=timeout / 2, connections=1024, sleep=lambda _: asyncio.sleep(0.01)
        )
        with Served(sampler, strategy, model="fake", timeout=timeout, keep_alive=0.2) as proxy:
            begun, cpu = time.monotonic(), time.process_time()
            asyncio.run(_all(got, server, proxy.url, clients, each, kinds, timeout))
            got.seconds, got.cpu_seconds = time.monotonic() - begun, time.process_time() - cpu
            server.wait(lambda: all(s.ended for s in server.seen))
            proxy.wait(lambda: not proxy.state.jobs)
            sent = sum(s.sent for s in server.seen)
            time.sleep(0.2)
            got.sent_later, got.peak = sum(s.sent for s in server.seen) - sent, server.peak
        for ended in got.ended:
            ended.paid = sum(s.sent for s in _of(server, ended.question))
    return got


async def _all(
    got: Load, server: FakeServer, url: str, clients: int, each: int, kinds: Sequence[str], timeout: float
) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=timeout + 5) as asker:

        async def client(number: int) -> None:
            for turn in range(each):
                index = turn * clients + number
                question = f"{kinds[index % len(kinds)]} {index}"
                stream = index // len(kinds) % 2 == 1
                got.ended.append(await _one(asker, server, question, stream))

        await asyncio.gather(*map(client, range(clients)))


async def _one(asker: Any, server: FakeServer, question: str, stream: bool) -> Ended:
    begun, kind, told = time.monotonic(), question.partition(" ")[0], 0
    asked = asyncio.ensure_future(_ask(asker, question, stream))
    if kind == "leave":
        sent = 0
        while not asked.done() and (sent := sum(s.sent for s in _of(server, question))) < LEAVE_AT:
            await asyncio.sleep(0.02)
        asked.cancel()
        done = await asyncio.gather(asked, return_exceptions=True)
        how = "left" if isinstance(done[0], asyncio.CancelledError) else f"too soon: {done[0]!r}"
        return Ended(kind, how, time.monotonic() - begun, question, sent_at_leave=sent)
    try:
        text, told = await asked
        how = "answer" if text == ANSWER else f"wrong: {text!r}"
    except openai.APITimeoutError:
        how = "hung"
    except openai.APIStatusError as error:
        how = str(error.status_code)
    except openai.APIConnectionError as error:
        how = f"no connection: {error}"
    except openai.APIError as error:  # in a stream that had begun
        how = {"upstream_error": "502", "timeout_error": "504"}.get(error.type or "", f"unclear: {error}")
    return Ended(kind, how, time.monotonic() - begun, question, told)


async def _ask(asker: Any, question: str, stream: bool) -> tuple[str, int]:
    """(the answer, the tokens that the usage tells)."""
    fields: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": question}]}
    if not stream:
        whole = await asker.chat.completions.create(**fields)
        return whole.choices[0].message.content, whole.usage.completion_tokens
    text, told = "", 0
    chunks = await asker.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    async for chunk in chunks:
        text += "".join(c.delta.content or "" for c in chunk.choices)
        told = chunk.usage.completion_tokens if chunk.usage else told
    return text, told


def _of(server: FakeServer, question: str) -> list[Seen]:
    return [s for s in server.seen if json.dumps(s.body["messages"][-1]["content"]) == json.dumps(question)]
