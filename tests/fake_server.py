"""An OpenAI-compatible server for tests, in a thread of its own, that says what a script tells it and can misbehave.

    with FakeServer(Reply(thinking="so two and two", answer="4")) as server:
        ...  # talk to server.url ("http://127.0.0.1:PORT/v1") with httpx, openai or the code under test
        assert server.seen[0].body["messages"][-1]["content"] == "2+2?"

The script is a `Reply`, a list of them (one for each request, the last for all that follow), or a function
`(body, number) -> Reply` of the request's JSON and its number from 0. `Reply` has the misbehaviours: error statuses,
stalls, dropped connections, malformed chunks, UTF-8 split between packets.

Paths: POST /v1/chat/completions and /v1/completions (streamed or whole), GET /v1/models. `max_tokens` is honoured;
usage comes with `stream_options.include_usage`, and with every chunk under `continuous_usage_stats`. Every connection
serves one request. `server.seen` tells of each request what was asked, how many tokens had been sent and how it ended
("disconnected": the client went away before all was sent); `server.wait(lambda: server.seen[0].ended)` waits for it
(blocking: in async code `await asyncio.to_thread(server.wait, ...)`).

Beside /v1 there are vLLM's /tokenize and /detokenize and llama.cpp's /apply-template: messages become
"[role]content" each and then "[assistant]" (with "<think>" after it where `opens`), tokens are `words`, and
`server.text(ids)` is the text of token ids. They are not in `seen`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

LOGPROB = -0.25


def words(text: str) -> list[str]:
    """Words, each with the blanks after it; tags are words of their own."""
    return re.findall(r"</?\w+>|[^\s<]+\s*|\s+|<", text)


@dataclass
class Reply:
    """What the server says to one request, and how.

    `style`: where the thinking goes: the delta's "reasoning_content" or "reasoning", "tags" (content, between <think>
    and </think>) or "opened" (content with the closing tag alone, as when the template opens the section).
    `tokens` cuts text into tokens, `per_chunk` of which make a chunk; `pause` seconds before each chunk.
    `logprobs` and `usage`: whether the server gives them where they are asked for.
    `status` other than 200: an error object with `error`, `code` and `param`, and `headers` (Retry-After).
    After that many tokens: `stall_after` sends nothing more and keeps the connection, `drop_after` breaks it,
    `malformed_after` sends a chunk that is no JSON, `error_after` an error object as a chunk.
    `split` > 0: bytes go out that many at a time, so packets end inside chunks and characters. `done` False: the stream
    ends without a finish reason and without [DONE]. `comments`: a comment before every chunk, and
    while it stalls. `eol`: line ends.
    `untaken`: parameters that are refused with a 400 in OpenAI's words. `silent` > 0: seconds before the headers.
    `finish`: the finish reason, "stop" or "length" unless given. `streams` False: streams are not known, the reply is
    always whole.
    """

    thinking: str = ""
    answer: str = "4"
    style: Literal["reasoning_content", "reasoning", "tags", "opened"] = "reasoning_content"
    tokens: Callable[[str], list[str]] = words
    per_chunk: int = 1
    pause: float = 0.0
    logprobs: bool = True
    usage: bool = True
    status: int = 200
    error: str = "something broke"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    stall_after: int | None = None
    drop_after: int | None = None
    malformed_after: int | None = None
    error_after: int | None = None
    split: int = 0
    done: bool = True
    comments: bool = False
    eol: str = "\n"
    untaken: Sequence[str] = ()
    silent: float = 0.0
    finish: str = ""
    streams: bool = True

    def said(self) -> list[tuple[str, str]]:
        """(the delta's field, token) in order."""
        if self.style in ("reasoning_content", "reasoning"):
            thought = [(self.style, t) for t in self.tokens(self.thinking)]
            return [*thought, *(("content", t) for t in self.tokens(self.answer))]
        opening = "<think>" if self.style == "tags" else ""
        return [("content", t) for t in self.tokens(f"{opening}{self.thinking}</think>{self.answer}")]


Script = Reply | Sequence[Reply] | Callable[[dict[str, Any], int], Reply]


@dataclass
class Seen:
    """One request. `ended`: "" while it runs, then "done", "refused", "disconnected" or "dropped"."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    begun: float
    sent: int = 0
    ended: str = ""


class FakeServer:
    """See the module's text. `live` is how many requests run now, `peak` the most that ever did at once."""

    def __init__(self, script: Script, model: str = "fake", *, opens: bool = False) -> None:
        self.script, self.model, self.opens = script, model, opens
        self.vocabulary: list[str] = []
        self.seen: list[Seen] = []
        self.live = self.peak = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def wait(self, until: Callable[[], object], seconds: float = 5.0) -> None:
        """Block until `until()` is true; AssertionError when it does not become so in time."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"waited {seconds} seconds in vain; seen: {self.seen}"
            time.sleep(0.005)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids that /tokenize gave."""
        return "".join(self.vocabulary[i] for i in ids)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text; new words get new ids."""
        self.vocabulary += [w for w in dict.fromkeys(words(text)) if w not in self.vocabulary]
        return [self.vocabulary.index(w) for w in words(text)]

    def _aside(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/detokenize":
            return {"prompt": self.text(body["tokens"])}
        said = "".join(f"[{m['role']}]{m['content']}" for m in body.get("messages", ()))
        prompt = body.get("prompt", f"{said}[assistant]{'<think>' if self.opens else ''}")
        if "prompt" in body and body.get("add_special_tokens", True):
            prompt = f"<s>{prompt}"
        return {"prompt": prompt} if path == "/apply-template" else {"tokens": self.ids(prompt), "max_model_len": 4096}

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen: Seen | None = None
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            raw = await reader.readexactly(int(headers.get("content-length", 0)))
            path = head[0].split()[1]
            if path.endswith("/models"):
                await _whole(writer, 200, {"object": "list", "data": [{"id": self.model, "object": "model"}]}, {})
                return
            if not path.startswith("/v1/"):
                await _whole(writer, 200, self._aside(path, json.loads(raw)), {})
                return
            seen = Seen(path, headers, json.loads(raw), time.monotonic())
            self.seen.append(seen)
            self.live += 1
            self.peak = max(self.peak, self.live)
            seen.ended = await self._serve(seen, self._reply(seen, len(self.seen) - 1), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            if seen is not None:
                seen.ended = "disconnected"
        except asyncio.CancelledError:
            pass  # the server is being closed
        finally:
            self.live -= seen is not None
            writer.close()

    def _reply(self, seen: Seen, number: int) -> Reply:
        if isinstance(self.script, Reply):
            return self.script
        if isinstance(self.script, Sequence):
            return self.script[min(number, len(self.script) - 1)]
        return self.script(seen.body, number)

    async def _serve(self, seen: Seen, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        body, gone = seen.body, asyncio.ensure_future(reader.read())
        try:
            if await _over(gone, reply.silent):
                return "disconnected"
            untaken = next((name for name in reply.untaken if name in body), None)
            if untaken:
                error = {"message": f"Unsupported parameter: '{untaken}'", "code": "unsupported_parameter"}
                await _whole(writer, 400, {"error": error | {"param": untaken}}, {})
                return "refused"
            if reply.status != 200:
                error = {"message": reply.error, "code": reply.code, "param": reply.param}
                await _whole(writer, reply.status, {"error": error}, reply.headers)
                return "refused"
            return await self._say(seen, reply, gone, writer)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _say(self, seen: Seen, reply: Reply, gone: asyncio.Future[bytes], writer: asyncio.StreamWriter) -> str:
        body, chat = seen.body, "/chat/" in seen.path
        said = reply.said()
        most = body.get("max_tokens", body.get("max_completion_tokens"))
        finish = reply.finish or ("length" if isinstance(most, int) and most < len(said) else "stop")
        said = said[:most]
        usage = {
            "prompt_tokens": len(str(body.get("messages", body.get("prompt", ""))).split()),
            "completion_tokens": len(said),
            "completion_tokens_details": {"reasoning_tokens": sum(name != "content" for name, _ in said)},
        }
        if not (body.get("stream") and reply.streams):
            if await _over(gone, reply.pause * len(said)) or reply.stall_after is not None:
                await gone
                return "disconnected"
            seen.sent = len(said)
            message: dict[str, Any] = {"role": "assistant"}
            for name, token in said:
                message[name] = message.get(name, "") + token
            choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
            choice |= {"message": message} if chat else {"text": message.get("content", "")}
            await _whole(writer, 200, self._object("chat.completion", choice) | {"usage": usage}, {})
            return "done"
        options = body.get("stream_options") or {}
        asked, always = reply.usage and options.get("include_usage"), options.get("continuous_usage_stats")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )

        async def send(event: str, *, bare: bool = False) -> None:
            lines = f": still here{reply.eol}{reply.eol}" if reply.comments else ""
            data = f"{lines}{'' if bare else 'data: '}{event}{reply.eol}{reply.eol}".encode()
            step = reply.split or len(data)
            for at in range(0, len(data), step):
                part = data[at : at + step]
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                await writer.drain()
                if reply.split:
                    await asyncio.sleep(0)

        async def chunk(delta: dict[str, Any], tokens: Sequence[str] = (), finish: str | None = None) -> None:
            choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
            choice |= {"delta": delta} if chat else {"text": delta.get("content", "")}
            if tokens and reply.logprobs and body.get("logprobs"):
                choice["logprobs"] = (
                    {"content": [{"token": t, "logprob": LOGPROB, "top_logprobs": []} for t in tokens]}
                    if chat
                    else {"tokens": list(tokens), "token_logprobs": [LOGPROB] * len(tokens)}
                )
            whole = self._object("chat.completion.chunk", choice)
            if asked and always:
                whole["usage"] = {"prompt_tokens": usage["prompt_tokens"], "completion_tokens": seen.sent}
            await send(json.dumps(whole, ensure_ascii=False))

        if chat:
            await chunk({"role": "assistant", "content": ""})
        left = list(said)
        while True:
            for limit in (reply.stall_after, reply.drop_after, reply.malformed_after, reply.error_after):
                if limit is None or seen.sent < limit:
                    continue
                if limit == reply.stall_after:
                    while reply.comments and not await _over(gone, 0.05):
                        await send(": still here", bare=True)
                    await gone
                    return "disconnected"
                if limit == reply.drop_after:
                    writer.transport.close()
                    return "dropped"
                await send(
                    '{"choices": [{' if limit == reply.malformed_after else '{"error": {"message": "no memory"}}'
                )
                return "dropped"
            if not left:
                break
            if await _over(gone, reply.pause):
                return "disconnected"
            taken = [left.pop(0)]
            while left and len(taken) < reply.per_chunk and left[0][0] == taken[0][0]:
                taken.append(left.pop(0))
            seen.sent += len(taken)
            await chunk({taken[0][0]: "".join(t for _, t in taken)}, [t for _, t in taken])
        if reply.done:
            await chunk({}, finish=finish)
            if asked:
                await send(json.dumps(self._object("chat.completion.chunk", None) | {"usage": usage}))
            await send("[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return "done"

    def _object(self, kind: str, choice: dict[str, Any] | None) -> dict[str, Any]:
        return {"id": "fake-1", "object": kind, "model": self.model, "choices": [choice] if choice else []}


async def _over(gone: asyncio.Future[bytes], seconds: float) -> bool:
    """Whether the client goes away within `seconds`."""
    if seconds <= 0:
        await asyncio.sleep(0)
    else:
        await asyncio.wait([gone], timeout=seconds)
    return gone.done()


async def _whole(writer: asyncio.StreamWriter, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
    data = json.dumps(body).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(data)), "Connection": "close"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data)
    await writer.drain()
