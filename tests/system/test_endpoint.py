"""A model behind a server: what is asked, what is tried again, and one line for everything that goes wrong."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import tiny
from lengthwise.bench.build import build
from lengthwise.bench.endpoint import Endpoint, Messages, clean
from lengthwise.bench.registry import parse
from lengthwise.bench.task import Sample
from lengthwise.core.remote import FRAME_TOKENS, address
from lengthwise.errors import BadInput, EndpointError, LengthwiseError, MissingExtra, StackRefused

pytest.importorskip("httpx")
SAMPLE = Sample(
    " A river ran. The pass key for lamp is 48213.",
    "What is the pass key for lamp?",
    " 48213.",
    ["48213"],
    prefix="The pass key for lamp is",
)
ECHO = "The pass key for lamp is 48213."


def said(content: Any, usage: Any = None, finish: str = "stop", **message: Any) -> tuple[int, dict[str, str], str]:
    """A 200 with a chat completion."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage or {"prompt_tokens": 40, "completion_tokens": 9}})


class Server(ThreadingHTTPServer):
    """Gives the replies it was handed, the last one for ever, and keeps the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Any] = [said(ECHO)]
        self.got: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append({"path": self.path, "key": self.headers.get("Authorization"), **json.loads(body)})
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if reply == "too slow":
            time.sleep(0.6)
            return
        status, headers, text = reply
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("LENGTHWISE_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def endpoint(server: Server, waits: list[float] | None = None, **given: Any) -> Endpoint:
    return Endpoint(server.url, "m", sleep=(waits if waits is not None else []).append, **given)


def refusal(server: Server, *replies: Any, **given: Any) -> str:
    """The one line of the error."""
    server.replies = list(replies)
    with pytest.raises(LengthwiseError) as caught:
        endpoint(server, **given).answer(SAMPLE, "dense", 12)
    line = str(caught.value)
    assert "\n" not in line
    assert isinstance(caught.value, BadInput if "too long" in line else EndpointError)
    return line


def test_asks_plainly_and_takes_off_the_prefix(server: Server) -> None:
    outcome = endpoint(server, seed=7).answer(SAMPLE, "dense", 12)
    assert outcome.answer == " 48213."
    assert outcome.prompt_tokens == 40
    assert outcome.ledger["tokens_read"] == 40
    assert outcome.ledger["tokens_written"] == 9
    assert 0 < outcome.ledger["decode_seconds"] < 5
    assert "prefill_seconds" not in outcome.ledger
    (got,) = server.got
    assert got["path"] == "/v1/chat/completions"
    assert got["key"] is None
    assert (got["model"], got["temperature"], got["seed"], got["max_tokens"], got["stop"]) == ("m", 0, 7, 12, ["\n"])
    (message,) = got["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith(f"{SAMPLE.document}\n\n{SAMPLE.question} ")
    assert message["content"].endswith(SAMPLE.prefix)


def test_key_from_argument_or_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "open")
    endpoint(server).answer(SAMPLE, "dense", 12)
    monkeypatch.setenv("LENGTHWISE_API_KEY", "ours\n")
    endpoint(server).answer(SAMPLE, "dense", 12)
    endpoint(server, api_key="given").answer(SAMPLE, "dense", 12)
    assert [g["key"] for g in server.got] == ["Bearer open", "Bearer ours", "Bearer given"]


def test_two_failures_then_an_answer(server: Server) -> None:
    waits: list[float] = []
    server.replies = [(500, {}, "oops"), "hang up", said(ECHO)]
    assert endpoint(server, waits).answer(SAMPLE, "dense", 12).answer == " 48213."
    assert len(server.got) == 3
    assert 0.5 <= waits[0] <= 1.0
    assert 1.0 <= waits[1] <= 2.0


def test_waits_as_long_as_asked(server: Server) -> None:
    waits: list[float] = []
    date = formatdate(time.time() + 50, usegmt=True)
    server.replies = [(429, {"Retry-After": "17"}, ""), (503, {"Retry-After": date}, ""), said(ECHO)]
    endpoint(server, waits).answer(SAMPLE, "dense", 12)
    assert waits[0] == 17
    assert 45 <= waits[1] <= 50


def test_too_long_a_wait_is_told_not_sat_out(server: Server) -> None:
    line = refusal(server, (429, {"Retry-After": "7200"}, "quota used up"))
    assert "7,200 seconds" in line
    assert "quota used up" in line
    assert len(server.got) == 1


def test_tries_are_bounded(server: Server) -> None:
    waits: list[float] = []
    server.replies = [(503, {}, "<html>\nbusy")]
    with pytest.raises(EndpointError, match=r"4 tries, at the last: status 503: <html>$"):
        endpoint(server, waits, tries=4).answer(SAMPLE, "dense", 12)
    assert len(server.got) == 4
    assert len(waits) == 3


def test_timeout_is_tried_again(server: Server) -> None:
    server.replies = ["too slow", said(ECHO)]
    assert endpoint(server, timeout=0.3).answer(SAMPLE, "dense", 12).answer == " 48213."
    assert "no answer in time" in refusal(server, "too slow", tries=1, timeout=0.2)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:\d+ gave no answer in 2 tries.*no connection"):
        Endpoint(url, "m", tries=2, sleep=lambda _: None).answer(SAMPLE, "dense", 12)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, '{"error": {"message": "Incorrect API key: sekret"}}', ["401", "Incorrect API key: …", "not accepted"]),
        (403, "no", ["403: no", "API key"]),
        (404, '{"detail": "no model m"}', ["404", "no model m", "model name 'm'", "/v1/chat/completions"]),
        (400, '{"message": "maximum context length is 4096 tokens"}', ["is 4096", "ask for a shorter length"]),
        (400, '{"error": "bad\\nvalue"}', ["status 400: bad;", "as it is"]),
        (302, "", ["302", "(an empty body)"]),
    ],
)
def test_refused_at_once_with_advice(server: Server, status: int, body: str, words: list[str]) -> None:
    line = refusal(server, (status, {}, body), api_key="sekret")
    assert len(server.got) == 1, "must not be tried again"
    assert "sekret" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "body", ['{"choices": [', "[]", '{"choices": []}', '{"choices": [{"message": 3}]}', "", "null"]
)
def test_answer_that_is_none(server: Server, body: str) -> None:
    assert "no chat completion" in refusal(server, (200, {}, body))


def test_error_inside_a_200(server: Server) -> None:
    assert "no chat completion: engine down" in refusal(server, (200, {}, '{"error": {"message": "engine down"}}'))


@pytest.mark.parametrize(
    "reply",
    [
        said(ECHO, reasoning_content="The lamp? 11111."),
        said(f"<think>\nThe lamp? 11111.\n</think>\n\n{ECHO}"),
        said(f"The lamp? 11111.</think>{ECHO}"),
        said([{"type": "text", "text": ECHO}], reasoning="The lamp? 11111."),
    ],
)
def test_thinking_is_counted_and_not_scored(server: Server, reply: Any) -> None:
    server.replies = [reply]
    outcome = endpoint(server, thinking=100).answer(SAMPLE, "dense", 12)
    assert outcome.answer == " 48213."
    assert outcome.ledger["tokens_written"] == 9
    assert any("thinking were taken off" in note for note in outcome.notes)
    assert server.got[0]["max_tokens"] == 112
    assert "stop" not in server.got[0], "a stop string would end the thoughts"


def test_thinking_that_never_ends_leaves_no_answer(server: Server) -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 12, "completion_tokens_details": {"reasoning_tokens": 12}}
    server.replies = [said("<think> 48213 48213", usage, "length")]
    outcome = endpoint(server).answer(SAMPLE, "dense", 12)
    assert outcome.answer == ""
    assert "12 tokens of thinking were taken off the answer" in outcome.notes
    assert "cut off at 12 tokens" in outcome.notes


def test_content_may_be_null_and_usage_missing(server: Server) -> None:
    reply = {"choices": [{"message": {"content": None}}], "usage": None}
    server.replies = [(200, {}, json.dumps(reply))]
    outcome = endpoint(server).answer(SAMPLE, "dense", 12)
    assert outcome.answer == ""
    assert set(outcome.ledger) == {"decode_seconds"}
    assert outcome.prompt_tokens > 0
    assert any("our own count" in note for note in outcome.notes)


def test_parameters_that_the_server_does_not_take(server: Server) -> None:
    def refuse(name: str) -> tuple[int, dict[str, str], str]:
        return 400, {}, json.dumps({"error": {"message": "no", "param": name, "code": "unsupported_parameter"}})

    server.replies = [refuse("max_tokens"), refuse("temperature"), said(ECHO)]
    subject = endpoint(server)
    outcome = subject.answer(SAMPLE, "dense", 12)
    assert outcome.answer == " 48213."
    assert "the server does not take 'temperature'" in outcome.notes
    assert server.got[-1]["max_completion_tokens"] == 12
    assert not {"max_tokens", "temperature"} & set(server.got[-1])
    subject.answer(SAMPLE, "dense", 12)
    assert len(server.got) == 4, "what was learned is kept"
    assert "as it is" in refusal(server, refuse("messages"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the pass  key for lamp IS 48213.\nAnything else?", " 48213."),
        ("\n\n**The pass key for lamp is** 48213.", "** 48213."),
        ("The pass key for lamp is\n48213", "48213"),
        ("48213\nx", "48213"),
        ("The pass key for lamp isn 48213", "The pass key for lamp isn 48213"),
        ("", ""),
    ],
)
def test_prefix_and_stop(text: str, answer: str) -> None:
    assert clean(text, SAMPLE.prefix, ("\n",)) == answer


def test_every_stop_cuts() -> None:
    assert clean('ab"; cd', "", ("e", ";", '"')) == "ab"


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("http://h:80", "http://h:80/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("https://h/api", "https://h/api/v1/chat/completions"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
    ],
)
def test_addresses(url: str, full: str) -> None:
    assert address(url)[0] == full


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://h", "http://", "http://h:99999", "http://a:b@h", "http://[1"]
)
def test_no_address(url: str) -> None:
    with pytest.raises(BadInput):
        address(url)


def test_bad_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (
        {"model": " "},
        {"tries": 0},
        {"timeout": 0},
        {"thinking": -1},
        {"api_key": "k\u2026"},
        {"url": "http://a b"},
        {"url": "http://-é"},
    ):
        with pytest.raises(BadInput):
            Endpoint(**{"url": "http://h", "model": "m", **given})  # type: ignore[arg-type]
    with pytest.raises(StackRefused):
        Endpoint("http://h", "m").answer(SAMPLE, "int8", 4)
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    with pytest.raises(MissingExtra, match=r"lengthwise\[endpoint\]"):
        Endpoint("http://h", "m")


def test_sizes_estimated_or_counted(tmp_path: Any) -> None:
    estimated = Endpoint("http://h:1", "m")
    assert estimated.about()["tokenizer"].startswith("estimate")
    assert "h:1" in estimated.about()["model_hash"]
    assert estimated.sizes.count("é" * 32) == 20
    tokenizer = tiny.tokenizer(["the pass key for a lamp is what a river ran"] * 4, 300, "</s>")
    tokenizer.save_pretrained(tmp_path)
    counted = Endpoint("http://h:1", "m", tokenizer=str(tmp_path))
    assert counted.about()["tokenizer"] == str(tmp_path)
    assert counted.sizes.digest() != estimated.sizes.digest()
    ids = tokenizer(counted.sizes.text(SAMPLE), add_special_tokens=False)["input_ids"]
    answer = tokenizer(SAMPLE.prefix + SAMPLE.answer, add_special_tokens=False)["input_ids"]
    assert counted.sizes.answer_tokens(SAMPLE) == len(answer) + SAMPLE.spare
    assert abs(counted.sizes.size(SAMPLE) - (len(ids) + FRAME_TOKENS + len(answer) + SAMPLE.spare)) <= 2


def test_a_task_end_to_end(server: Server) -> None:
    """Samples fill the length by the estimate, and the cleaned answer scores."""
    task, sizes = parse("needle"), Messages()
    sample = build(task, sizes, 2000, depth=0.5)
    assert 1500 < sizes.size(sample) <= 2000
    server.replies = [said(f"{sample.prefix}{sample.answer} Good luck!")]
    outcome = endpoint(server).answer(sample, "dense", sizes.answer_tokens(sample))
    assert task.score(outcome.answer, sample) == {"recall": 1.0}
