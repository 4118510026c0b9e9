"""The proxy, asked by the real `openai` client: answers, their cost, refusals, and requests that end early."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

import lengthwise.cli as cli  # noqa: E402
from fake_server import FakeServer, Reply  # noqa: E402
from lengthwise.errors import BadInput, EndpointError, MissingExtra, StackRefused  # noqa: E402
from lengthwise.serve import Options, app  # noqa: E402
from lengthwise.serve.server import listening  # noqa: E402
from lengthwise.thinking import Strategy  # noqa: E402
from lengthwise.thinking.endpoint import EndpointSampler  # noqa: E402
from lengthwise.thinking.strategy import StrategySpec  # noqa: E402
from scripted import Scripted  # noqa: E402
from served import Served, Slow  # noqa: E402

ASK: list[Any] = [{"role": "user", "content": "2+2?"}]
LENGTHS = [9, 3, 6, 30]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY", "LENGTHWISE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def chains() -> Scripted:
    """Four chains of 9, 3, 6 and 30 words; the second and the third agree."""
    return Scripted(lambda q, n: "w " * LENGTHS[n % 4] + f"</think>The answer is {(7, 4, 4, 9)[n % 4]}")


def client(url: str, key: str = "none", **options: Any) -> Any:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=20, **options)


def post(url: str, body: Any = None, **fields: Any) -> Any:
    body = {"model": "scripted", "messages": ASK, **fields} if body is None else body
    kind = {"json": body} if isinstance(body, dict) else {"content": body}
    return httpx.post(f"{url}/chat/completions", timeout=20, **kind)


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with Served(Scripted(lambda q, n: "so it is</think>The answer is 4")) as proxy:
        yield proxy


def test_an_unchanged_client_gets_the_strategy_and_all_tokens_are_told() -> None:
    with Served(chains(), "short-m@k:m=2,k=4") as proxy:
        got = client(proxy.url).chat.completions.create(model="scripted", messages=ASK)
    choice, told = got.choices[0], got.lengthwise
    assert (choice.message.content, choice.finish_reason) == ("The answer is 4", "stop")
    assert not hasattr(choice.message, "reasoning_content")
    assert (told["strategy"], told["answer"]) == ("short-m@k:m=2,k=4", "4")
    assert [c["reason"] for c in told["chains"]].count("cancelled") == told["spent"]["cancelled_chains"] == 2
    assert told["spent"]["cancelled_tokens"] > 0
    written = sum(c["thinking_tokens"] + c["answer_tokens"] for c in told["chains"])
    assert got.usage.completion_tokens == written > 2 * (7 + 4)  # two whole chains, and what was cancelled
    assert got.usage.completion_tokens_details.reasoning_tokens == written - 4  # "The answer is 4"
    assert got.usage.total_tokens == got.usage.prompt_tokens + written
    assert proxy.sampler.live == 0


def test_a_stream_is_the_answer_in_chunks_and_ends_with_the_cost() -> None:
    long = "word " * 60 + "end"

    async def ask(url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as asker:
            options = {"include_usage": True}
            stream = await asker.chat.completions.create(
                model="scripted", messages=ASK, stream=True, stream_options=options
            )
            return [chunk async for chunk in stream]

    with Served(Scripted(lambda q, n: "so it is</think>" + long), "majority:k=2") as proxy:
        *chunks, last = asyncio.run(ask(proxy.url))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content or "" for c in chunks]
    assert "".join(pieces) == long
    assert sum(map(bool, pieces)) > 3
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].lengthwise["spent"]["chains"] == 2
    assert last.choices == []
    assert last.usage.completion_tokens == 2 * (4 + 61)
    assert last.usage.completion_tokens_details.reasoning_tokens == 2 * 4 + 61
    assert len({c.id for c in [*chunks, last]}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_told_when_asked_for(plain: Served, stream: bool) -> None:
    asked = client(plain.url).chat.completions.create(
        model="scripted", messages=ASK, stream=stream, extra_body={"include_reasoning": True}
    )
    if not stream:
        assert asked.choices[0].message.reasoning_content == "so it is"
        return
    deltas = [c.choices[0].delta for c in asked]
    told = [getattr(d, "reasoning_content", None) for d in deltas]
    assert "".join(filter(None, told)) == "so it is"
    assert next(i for i, t in enumerate(told) if t) < next(i for i, d in enumerate(deltas) if d.content)


def test_a_stream_shows_signs_of_life_while_the_strategy_works() -> None:
    with Served(slow := Slow(), keep_alive=0.02) as proxy:
        body = {"model": "scripted", "messages": ASK, "stream": True}
        lines = []
        with httpx.stream("POST", f"{proxy.url}/chat/completions", json=body, timeout=20) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            for line in reply.iter_lines():
                lines.append(line)
                if lines.count(": thinking") == 3:
                    slow.go.set()
    said = [line for line in lines if line]
    assert said[-1] == "data: [DONE]"
    assert '"content": "four"' in "".join(said[said.index(": thinking") :])


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}], "tools"),
        ("tool_choice", "required", "tool_choice"),
        ("functions", [{"name": "f"}], "functions"),
        ("n", 2, "n"),
        ("logprobs", True, "logprobs"),
        ("response_format", {"type": "json_object"}, "response_format"),
        ("stop", ["\n"], "stop"),
        ("frequency_penalty", 0.5, "frequency_penalty"),
        ("logit_bias", {"1": 3}, "logit_bias"),
        ("reasoning_effort", "low", "reasoning_effort"),
        ("store", True, "store"),
        ("top_k", 5, "top_k"),
        ("temperature", 2.5, "temperature"),
        ("temperature", "hot", "temperature"),
        ("temperature", True, "temperature"),
        ("top_p", 0, "top_p"),
        ("seed", 1.5, "seed"),
        ("seed", 2**70, "seed"),
        ("max_tokens", 0, "max_tokens"),
        ("max_completion_tokens", 1, "max_completion_tokens"),
        ("stream", "yes", "stream"),
        ("stream_options", {"include_usage": True}, "stream_options"),
        ("user", 3, "user"),
        ("include_reasoning", 1, "include_reasoning"),
        ("messages", [], "messages"),
        ("messages", [{"role": "user", "content": " "}], "messages"),
        ("messages", [{"role": "assistant", "content": "so"}], "messages"),
        ("messages", [{"role": "tool", "content": "so"}], "messages[0].role"),
        ("messages", [{"role": "user", "content": None}], "messages[0].content"),
        ("messages", [{"role": "user", "content": "a", "name": "Ada"}], "messages[0].name"),
        ("messages", [{"role": "user", "content": "\ud800"}], "messages[0].content"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0]",
        ),
        ("model", 3, "model"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(plain: Served, field: str, value: Any, param: str) -> None:
    asked = len(plain.sampler.asked)
    reply = post(plain.url, json.dumps({"model": "scripted", "messages": ASK, field: value}))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param
    assert param.partition("[")[0] in error["message"]
    assert len(plain.sampler.asked) == asked  # nothing was paid


@pytest.mark.parametrize("body", ["", "[]", "{", '{"a":' * 5000, "null", b"\xff\xfe"])
def test_a_body_that_is_no_request(plain: Served, body: str | bytes) -> None:
    reply = post(plain.url, body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


def test_fields_that_ask_for_nothing_are_taken(plain: Served) -> None:
    neutral = {
        "n": 1, "tools": [], "tool_choice": "auto", "logprobs": False, "response_format": {"type": "text"},
        "stop": None, "presence_penalty": 0.0, "logit_bias": {}, "stream": False, "user": "ada", "store": False,
        "temperature": None, "max_tokens": None, "modalities": ["text"], "stream_options": None, "top_logprobs": None,
    }  # fmt: skip
    assert post(plain.url, **neutral).status_code == 200
    streamed = post(plain.url, stream=True, stream_options={"include_usage": False, "include_obfuscation": False})
    assert streamed.status_code == 200
    assert '"usage"' not in streamed.text


def test_settings_and_messages_reach_the_sampler() -> None:
    kept: list[Any] = []

    class Keeping(Scripted):
        async def chain(self, messages: Any, *, think: bool = True) -> Any:
            kept.append(await super().chain(messages, think=think))
            return kept[-1]

    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "refusal": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "2+2?"}]},
    ]
    with Served(sampler := Keeping(lambda q, n: "w " * 50 + "</think>" + "a " * 50), "majority:k=2") as proxy:
        ask = client(proxy.url).chat.completions.create
        got = ask(model="scripted", messages=messages, temperature=0.3, top_p=0.9, seed=5, max_completion_tokens=12)
        again = ask(model="scripted", messages=messages, seed=5, max_tokens=12)
        other = ask(model="scripted", messages=messages, seed=6)
    assert sampler.asked[0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And\n2+2?"},
    ]
    first = kept[0].settings[0]
    assert (first.temperature, first.top_p) == (0.3, 0.9)
    seeds = [chain.settings[0].seed for chain in kept]
    assert seeds[:2] == seeds[2:4] != seeds[4:]
    assert len(set(seeds[:2])) == 2
    for reply in (got, again):  # 12 tokens: nine to think, three to answer
        assert [(c["thinking_tokens"], c["answer_tokens"]) for c in reply.lengthwise["chains"]] == [(9, 3)] * 2
        assert reply.choices[0].finish_reason == "length"
    assert other.choices[0].finish_reason == "stop"


def test_a_limit_holds_for_a_model_without_thinking_sections() -> None:
    with Served(Scripted(lambda q, n: "w " * 30, tags=None)) as proxy:
        short = post(proxy.url, max_tokens=7).json()
        whole = post(proxy.url).json()
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (7, "length")
    assert (whole["usage"]["completion_tokens"], whole["choices"][0]["finish_reason"]) == (30, "stop")
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0  # all of it is the answer


def test_one_model_is_served_under_its_name() -> None:
    with Served(chains(), "majority:k=3", model="org/small") as proxy:
        asker = client(proxy.url)
        (listed,) = asker.models.list().data
        assert (listed.id, listed.strategy) == ("org/small", "majority:k=3")
        assert asker.models.retrieve("org/small").id == "org/small"
        with pytest.raises(openai.NotFoundError, match="the model is 'org/small'"):
            asker.chat.completions.create(model="scripted", messages=ASK)
        with pytest.raises(openai.NotFoundError, match="the model here"):
            asker.models.retrieve("large")
        assert httpx.get(proxy.url.removesuffix("/v1") + "/health").json()["status"] == "ok"
        missing = httpx.post(f"{proxy.url}/completions", json={})
        assert "POST /v1/chat/completions" in missing.json()["error"]["message"]
        assert (missing.status_code, httpx.get(f"{proxy.url}/chat/completions").status_code) == (404, 405)


def test_a_token_is_asked_for() -> None:
    with Served(chains(), token="sesame") as proxy:
        for key in ("none", "Sesame", "sesame2"):
            with pytest.raises(openai.AuthenticationError) as caught:
                client(proxy.url, key).chat.completions.create(model="scripted", messages=ASK)
            assert caught.value.code == "invalid_api_key"
        assert httpx.get(f"{proxy.url}/models").status_code == 401
        assert httpx.get(f"{proxy.url}/models", headers={"Authorization": "Basic sesame"}).status_code == 401
        assert proxy.sampler.asked == []
        client(proxy.url, "sesame").chat.completions.create(model="scripted", messages=ASK)
        assert httpx.get(proxy.url.removesuffix("/v1") + "/health").status_code == 200


def test_a_body_has_a_largest_size() -> None:
    text = [{"role": "user", "content": "x" * 5000}]
    with Served(chains(), most_bytes=2000) as proxy:
        with pytest.raises(openai.APIStatusError, match="larger than 2,000 bytes") as caught:
            client(proxy.url).chat.completions.create(model="scripted", messages=text)
        assert caught.value.status_code == 413
        pieces = (b'{"model": "scripted", ', b" " * 1500, b" " * 1500)
        assert post(proxy.url, (p for p in pieces)).status_code == 413  # sent without its length
        assert post(proxy.url).status_code == 200
        assert len(proxy.sampler.asked) == 1


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    with Served(chains(), patience=0.1) as proxy, socket.create_connection(_address(proxy.url)) as wire:
        wire.settimeout(5)
        wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{")
        assert wire.recv(4096).startswith(b"HTTP/1.1 408")


def test_more_than_the_queue_holds_is_sent_away_and_the_rest_is_answered() -> None:
    with Served(slow := Slow(), concurrency=2, queue=3) as proxy, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(post, proxy.url) for _ in range(5)]
        proxy.wait(lambda: len(proxy.state.jobs) == 5)
        assert (slow.begun, proxy.state.running) == (2, 2)  # the bound on what runs
        health = httpx.get(proxy.url.removesuffix("/v1") + "/health").json()
        assert (health["running"], health["waiting"]) == (2, 3)
        for extra in ({}, {"stream": True}):
            full = post(proxy.url, **extra)
            assert (full.status_code, full.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert 1 <= int(full.headers["retry-after"]) <= 60
        with pytest.raises(openai.RateLimitError):
            client(proxy.url).chat.completions.create(model="scripted", messages=ASK)
        slow.go.set()
        assert [job.result().status_code for job in asked] == [200] * 5
        assert post(proxy.url).status_code == 200  # places are free again


def test_a_request_that_takes_too_long_is_ended() -> None:
    with Served(slow := Slow(), timeout=0.15, concurrency=1, keep_alive=0.05) as proxy:
        with pytest.raises(openai.InternalServerError, match=r"no answer within 0\.15 seconds") as caught:
            client(proxy.url).chat.completions.create(model="scripted", messages=ASK)
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        proxy.wait(lambda: slow.live == 0)
        with pytest.raises(openai.APIError, match="no answer within"):  # in a stream that has begun
            list(client(proxy.url).chat.completions.create(model="scripted", messages=ASK, stream=True))
        proxy.wait(lambda: slow.live == 0 and not proxy.state.jobs)
        slow.go.set()
        assert post(proxy.url).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_client_no_longer_waits_for_is_cancelled(stream: bool) -> None:
    with Served(slow := Slow(), "majority:k=3", concurrency=1, keep_alive=0.02) as proxy:
        body = json.dumps({"model": "scripted", "messages": ASK, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        first, second = (socket.create_connection(_address(proxy.url)) for _ in range(2))
        first.sendall(head + body)
        proxy.wait(lambda: slow.live == 3)
        second.sendall(head + body)
        proxy.wait(lambda: len(proxy.state.jobs) == 2)
        second.close()  # while it waits
        proxy.wait(lambda: len(proxy.state.jobs) == 1)
        first.close()  # while it is worked on
        proxy.wait(lambda: slow.live == 0 and not proxy.state.jobs)
        assert len(slow.asked) == 3  # the second never cost anything


def test_a_client_that_does_not_read_is_given_up() -> None:
    sampler = Scripted(lambda q, n: "y" * 3_000_000, tags=None)  # more than the buffers between us hold
    with Served(sampler, patience=0.2) as proxy:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(_address(proxy.url))
        body = json.dumps({"model": "scripted", "messages": ASK, "stream": True}).encode()
        wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        proxy.wait(lambda: sampler.asked, 10)
        proxy.wait(lambda: not proxy.state.jobs, 10)
        proxy.wait(lambda: not proxy.server.server_state.tasks, 5)  # the reply has been given up
        wire.close()


def test_an_unexpected_error_is_told_without_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Scripted):
        async def chain(self, messages: Any, *, think: bool = True) -> Any:
            raise ValueError(f"cannot read {messages}")

    _capture(caplog)
    with Served(Broken(lambda q, n: "")) as proxy:
        reply = post(proxy.url, messages=[{"role": "user", "content": "canary"}])
        streamed = post(proxy.url, messages=[{"role": "user", "content": "canary"}], stream=True)
    assert (reply.status_code, streamed.status_code) == (500, 500)
    assert "ValueError" in reply.json()["error"]["message"]
    assert "canary" not in reply.text + streamed.text + caplog.text
    assert "test_proxy.py" in caplog.text  # the place is known


def test_no_text_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    _capture(caplog)
    asked = [{"role": "user", "content": "canary"}]
    with Served(Scripted(lambda q, n: f"so {q}</think>{q} is it"), "majority:k=2", timeout=5) as proxy:
        assert "canary" in post(proxy.url, messages=asked).text
        assert "canary" in post(proxy.url, messages=asked, stream=True).text
        assert post(proxy.url, messages=asked, canary=1).status_code == 400
        assert post(proxy.url, messages=asked, model="canary").status_code == 404
        assert httpx.get(f"{proxy.url}/canary?canary=1").status_code == 404
    assert "200" in caplog.text
    assert "2 chains, 12 tokens" in caplog.text  # it does log
    assert "canary" not in caplog.text


def test_a_strategy_that_cannot_run_is_refused_at_the_start() -> None:
    with pytest.raises(StackRefused, match="both decide how many chains"):
        app(chains(), "majority + short-m@k")

    class Layers(Strategy):
        spec = StrategySpec(name="layers", summary="", formula="", parts=(), needs=("layers",))

    with pytest.raises(StackRefused, match="scripted cannot give"):
        app(chains(), [Layers()])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"queue": -1}, "queue must not be below 0"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds"),
        ({"token": " "}, "token"),
        ({"token": "naïve"}, "token"),
        ({"extract": "guess"}, "no way to find answers"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Options(**wrong)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lengthwise.serve.proxy", "lengthwise.serve.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtra, match=r"lengthwise\[serve\]"):
        app(chains())


# Before an endpoint.


@pytest.mark.parametrize(
    ("reply", "status", "says"),
    [
        (Reply(status=401, error="no such key"), 502, "no such key"),
        (Reply(status=500, error="out of paper"), 502, "out of paper"),
        (Reply(thinking="so it", drop_after=1), 502, "broke the connection|ended"),
        (Reply(thinking="so it", malformed_after=1), 502, "malformed"),
        (Reply(status=400, error="maximum context length is 9 tokens"), 400, "context length"),
    ],
)
def test_what_goes_wrong_behind_is_told(reply: Reply, status: int, says: str) -> None:
    with FakeServer(reply) as server:
        sampler = EndpointSampler(server.url, "fake", tries=1)
        sampler.probe = _nothing  # type: ignore[method-assign]
        with Served(sampler, "majority:k=2", model="fake", keep_alive=0.5) as proxy:
            with pytest.raises(openai.APIStatusError, match=says) as caught:
                client(proxy.url).chat.completions.create(model="fake", messages=ASK)
            assert caught.value.status_code == status
            with pytest.raises(openai.APIError, match=says):
                list(client(proxy.url).chat.completions.create(model="fake", messages=ASK, stream=True))
            proxy.wait(lambda: not proxy.state.jobs)


def test_an_error_in_a_stream_that_has_begun_is_an_event() -> None:
    with FakeServer(Reply(thinking="so it " * 9, pause=0.03, error_after=8)) as server:
        sampler = EndpointSampler(server.url, "fake", tries=1)
        sampler.probe = _nothing  # type: ignore[method-assign]
        with Served(sampler, model="fake", keep_alive=0.05) as proxy:
            body = {"model": "fake", "messages": ASK, "stream": True}
            whole = httpx.post(f"{proxy.url}/chat/completions", json=body, timeout=20)
    assert whole.status_code == 200
    *_, error, end = [line for line in whole.text.splitlines() if line.startswith("data:")]
    assert "no memory" in json.loads(error.removeprefix("data: "))["error"]["message"]
    assert end == "data: [DONE]"


def test_a_stream_that_is_left_closes_those_of_the_endpoint() -> None:
    with FakeServer([Reply(), Reply(thinking="so " * 5000, pause=0.01)]) as server:
        sampler = EndpointSampler(server.url, "fake")
        with Served(sampler, "majority:k=3", model="fake", keep_alive=0.05) as proxy:
            stream = client(proxy.url).chat.completions.create(model="fake", messages=ASK, stream=True)
            server.wait(lambda: len(server.seen) == 4 and all(s.sent > 3 for s in server.seen[1:]))
            stream.close()
            server.wait(lambda: all(s.ended == "disconnected" for s in server.seen[1:]))
            assert all(s.sent < 2500 for s in server.seen[1:])


def test_an_endpoint_is_asked_once_what_it_can_do() -> None:
    class Needy(Strategy):
        spec = StrategySpec(name="needy", summary="", formula="", parts=(), needs=("logprobs",))

    with FakeServer(Reply(style="tags", logprobs=False)) as server:
        proxy = app(EndpointSampler(server.url, "fake"), [Needy()]).state.proxy
        with pytest.raises(StackRefused, match="needy needs what fake at"):
            asyncio.run(proxy.begin())
        assert len(server.seen) == 1
    with FakeServer(Reply(silent=5)) as server:
        proxy = app(EndpointSampler(server.url, "fake"), "plain", Options(timeout=0.1)).state.proxy
        with pytest.raises(EndpointError, match=r"did not answer a first question in 0\.1 seconds"):
            asyncio.run(proxy.begin())


def test_notes_on_the_endpoint_are_told() -> None:
    with (
        FakeServer(Reply(untaken=("seed",))) as server,
        Served(EndpointSampler(server.url, "fake"), model="fake") as proxy,
    ):
        reply = post(proxy.url, {"model": "fake", "messages": ASK, "seed": 3}).json()
    assert reply["choices"][0]["message"]["content"] == "4"
    assert any("seed" in note for note in reply["lengthwise"]["notes"])


# The command.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "missing option '--model'"),
        (["--model", "m", "--endpoint", "http://x", "--strategy", "short-m@k:m=3,k=2"], "k=2"),
        (["--model", "m", "--endpoint", "http://x", "--strategy", "shirt"], "no strategy 'shirt'"),
        (["--model", "m", "--endpoint", "http://x", "--strategy", "majority + short-m@k"], "both decide"),
        (["--model", "m", "--endpoint", "http://x", "--strategy", "internal-consistency"], "needs"),
        (["--model", "m", "--endpoint", "http://x", "--think-open", "<a>"], "--think-close"),
        (["--model", "m", "--endpoint", "http://x", "--stack", "int8"], "are for a local model"),
        (["--model", "m", "--endpoint", "http://x", "--concurrency", "0"], "concurrency must be at least 1"),
        (["--model", "m", "--endpoint", "http://x", "--port", "70000"], "70000 is no port"),
        (["--model", "m", "--continuation", "vllm"], "for an endpoint"),
        (["--model", "pocket-raisoner"], "did you mean 'pocket-reasoner'"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["proxy", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with listening("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["proxy", "--model", "m", "--endpoint", "http://x", "--port", port]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in line
    assert "--port" in line


class Command:
    """`lengthwise proxy` as a process before a fake server."""

    def __init__(self, server: FakeServer, *arguments: str) -> None:
        command = [sys.executable, "-m", "lengthwise", "proxy", "--endpoint", server.url, "--model", "fake"]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        self.lines: list[str] = []
        self.listens = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.listens.wait(60), self.lines

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "http://127.0.0.1:" in line and "Ctrl-C" in line:
                self.url = next(word for word in line.split() if word.startswith("http"))
                self.listens.set()

    def end(self) -> int:
        code = self.process.wait(20)
        self.reader.join(5)
        return code


def test_the_command_serves_and_ends_what_runs_when_told_to_stop() -> None:
    reply = Reply(thinking="so two and two make", answer="canary four", pause=0.05)
    with FakeServer(reply) as server:
        command = Command(server, "--strategy", "majority:k=2")
        with ThreadPoolExecutor(1) as pool:
            ask = [{"role": "user", "content": "canary?"}]
            asked = pool.submit(post, command.url, {"model": "fake", "messages": ask})
            server.wait(lambda: len(server.seen) == 3 and server.seen[2].sent > 1)  # the first was to see what it can
            command.process.send_signal(signal.SIGTERM)
            got = asked.result()
        assert command.end() == 0
    assert got.json()["choices"][0]["message"]["content"] == "canary four"
    assert got.json()["usage"]["completion_tokens"] >= 2 * 7
    assert any(" 200 " in line and "2 chains" in line for line in command.lines)
    assert "canary" not in "".join(command.lines)


def test_a_stop_does_not_wait_for_ever() -> None:
    with FakeServer([Reply(), Reply(thinking="so two and two", stall_after=2)]) as server:
        command = Command(server, "--grace", "0.2")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(post, command.url, {"model": "fake", "messages": ASK})
            server.wait(lambda: len(server.seen) == 2 and server.seen[1].sent == 2)
            begun = time.monotonic()
            command.process.send_signal(signal.SIGTERM)
            got = asked.result()
        assert (command.end(), got.status_code) == (0, 503)
        assert time.monotonic() - begun < 10
        server.wait(lambda: server.seen[1].ended == "disconnected")
    assert got.json()["error"]["code"] == "stopping"


async def _nothing() -> None:
    pass


def _address(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rsplit(":", 1)[1].partition("/")[0])


def _capture(caplog: pytest.LogCaptureFixture) -> None:
    """All that the server's side logs, at every level."""
    for name in ("lengthwise", "uvicorn", "uvicorn.error", "fastapi", "asyncio", "starlette"):
        caplog.set_level(logging.DEBUG, name)
