"""The endpoint sampler against a server that says what it is told to, and misbehaves: exact texts, counts and ends."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_server import LOGPROB, FakeServer, Reply, Script, Seen, words
from lengthwise.core.remote import KEYS, Remote, unsupported
from lengthwise.errors import BadInput, EndpointError, LengthwiseError, MissingExtra
from lengthwise.thinking import Settings, Thought, think
from lengthwise.thinking._reply import Reply as Chunks
from lengthwise.thinking._sse import Events
from lengthwise.thinking.chain import Tags
from lengthwise.thinking.endpoint import EndpointSampler

pytest.importorskip("httpx")
ASK = [{"role": "user", "content": "2+2?"}]
LONG = Reply(thinking="w " * 400, pause=0.004)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def run(server: FakeServer, use: Callable[[EndpointSampler], Awaitable[Any]], **options: Any) -> Any:
    """What `use` gives for a sampler, which does not wait between tries."""

    async def work() -> Any:
        sampler = EndpointSampler(server.url, "fake", **({"sleep": _at_once} | options))
        try:
            return await asyncio.wait_for(use(sampler), 20)
        finally:
            await sampler.close()

    return asyncio.run(work())


async def _at_once(seconds: float) -> None:
    await asyncio.sleep(0)


def thought(script: Script, strategy: str = "plain", **options: Any) -> Thought:
    """`think` over a server of its own."""
    asked = {n: options.pop(n) for n in ("most_thinking", "most_answer", "settings") if n in options}
    with FakeServer(script) as server:
        result = run(server, lambda sampler: think("2+2?", sampler, strategy, **asked), **options)
    assert isinstance(result, Thought)
    return result


def trouble(script: Script, **options: Any) -> tuple[str, list[Seen]]:
    """The one line of the error that `think` raises, and what the server saw."""
    asked = {"settings": options.pop("settings")} if "settings" in options else {}
    with FakeServer(script) as server, pytest.raises(EndpointError) as error:
        run(server, lambda sampler: think("2+2?", sampler, **asked), **options)
    assert "\n" not in str(error.value)
    return str(error.value), server.seen


def letters(text: str) -> list[str]:
    return list(text)


# --- the event stream


@given(
    st.lists(st.text("aé漢:\u2028 ", min_size=1, max_size=9), max_size=5),
    st.sampled_from("\n|\r\n|\r".split("|")),
    st.data(),
)
def test_events_are_the_same_however_the_bytes_are_split(said: list[str], eol: str, data: st.DataObject) -> None:
    whole = "".join(f": comment{eol}data: {text}{eol}id: 4{eol}data:+{eol}{eol}" for text in said).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    events, got = Events(), []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        got += events.feed(whole[start:end])
    assert got + events.end() == [f"{text}\n+" for text in said]


def test_an_event_without_its_empty_line_is_given_at_the_end() -> None:
    events = Events()
    assert events.feed("\ufeffdata: one\n\nevent: x\ndata:two".encode()) == ["one"]
    assert events.end() == ["two"]


# --- one text, whatever the server calls its parts


@pytest.mark.parametrize("style", ["reasoning_content", "reasoning", "tags", "opened"])
@pytest.mark.parametrize(
    "how", [{}, {"per_chunk": 3}, {"tokens": letters}, {"split": 2, "comments": True, "eol": "\r\n"}]
)
def test_a_chain_is_thinking_and_answer_in_every_style(style: Any, how: dict[str, Any]) -> None:
    reply = Reply(thinking="so é 漢 < two", answer="it is 4", style=style, **how)
    result = thought(reply, opened=style == "opened")
    (chain,) = result.chains
    assert (chain.thinking, chain.text, chain.reason) == ("so é 漢 < two", "it is 4", "closed")
    assert chain.tokens == len(reply.said())  # as the server counts, its tags included
    assert (result.answer, result.notes) == ("it is 4", [])
    assert result.spent.prompt_tokens == len(str([{"role": "user", "content": "2+2?"}]).split())


@pytest.mark.parametrize("answer", ["4 apples", "< 5", " <thin air"])
def test_a_model_that_does_not_think_has_an_empty_section(answer: str) -> None:
    (chain,) = thought(Reply(answer=answer, tokens=letters)).chains
    assert (chain.thinking, chain.text, chain.reason, chain.thinking_tokens) == ("", answer, "closed", 0)
    assert chain.answer_tokens == len(answer)


def test_nothing_said_at_all() -> None:
    (chain,) = thought(Reply(answer="")).chains
    assert (chain.thinking, chain.text, chain.reason, chain.tokens) == ("", "", "closed", 0)


def test_thinking_that_never_ends_is_looked_through_for_an_answer() -> None:
    (chain,) = thought(Reply(thinking="so it is 4", answer="")).chains
    assert (chain.reason, chain.answer) == ("never closed", "so it is 4")


def test_a_section_that_the_prompt_opened_must_be_said() -> None:
    line, _ = trouble(Reply(thinking="so", style="opened", tokens=letters))
    assert "opened=True" in line


def test_other_tags_and_those_of_the_probe() -> None:
    reply = Reply(thinking="so [/T", answer="4", style="tags", tokens=letters)
    reply.said = lambda: [("content", t) for t in "[T] so </think> [/T]4"]  # type: ignore[method-assign]
    (chain,) = thought(reply, tags=Tags("[T]", "[/T]")).chains
    assert (chain.thinking, chain.text) == (" so </think> ", "4")

    async def probed(sampler: EndpointSampler) -> tuple[Any, ...]:
        await sampler.probe()
        return sampler.tags, sampler.opened, "logprobs" in sampler.able

    for text, tags, opened in (
        ("<thinking>so</thinking>4", Tags("<thinking>", "</thinking>"), False),
        ("so[/THINK]4", Tags("[THINK]", "[/THINK]"), True),
        ("just 4", Tags("<think>", "</think>"), False),
    ):
        reply.said = lambda text=text: [("content", t) for t in text]  # type: ignore[method-assign, misc]
        with FakeServer(reply) as server:
            assert run(server, probed) == (tags, opened, True)
            assert server.seen[0].body["max_tokens"] == 256


# --- writing on, stopping, waiting


def test_writing_pauses_and_goes_on_in_the_same_stream() -> None:
    async def use(sampler: EndpointSampler) -> None:
        chain = await sampler.chain(ASK)
        assert len(server.seen) == 0
        one = await chain.write(2, ["</think>"])
        assert (one.text, one.tokens, one.reason, chain.text) == ("one two ", 2, "length", "one two ")
        two = await chain.write(9, ["four", "</think>"])
        assert (two.text, two.reason, two.stop, chain.text) == ("three ", "stop", "four", "one two three ")
        await chain.put("four")
        three = await chain.write(9, ["</think>"])
        assert (three.text, three.stop, chain.text) == (" five", "</think>", "one two three four five")
        await chain.put("</think>")
        last = await chain.write(9)
        assert (last.text, last.reason, chain.text) == ("4 5", "end", "one two three four five</think>4 5")
        assert (await chain.write(9)).reason == "end"
        assert chain.written == 7
        assert chain.recount(5, 2) == (5, 2)
        await chain.close()

    with FakeServer(Reply(thinking="one two three four five", answer="4 5")) as server:
        run(server, use)
        assert [seen.ended for seen in server.seen] == ["done"]


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("per_chunk", [1, 4])
def test_a_stop_is_found_across_chunks_and_writes(most: int, per_chunk: int) -> None:
    async def use(sampler: EndpointSampler) -> tuple[str, str, int]:
        chain, pieces = await sampler.chain(ASK), []
        while True:
            pieces.append(await chain.write(most, ["\n\nBut", "\n\nWait"]))
            assert not chain.text.endswith("\n")  # what may be the beginning of a stop is kept back
            if pieces[-1].reason == "stop":
                return "".join(p.text for p in pieces), pieces[-1].stop, sum(p.tokens for p in pieces)

    reply = Reply(
        thinking="so\tit is 4\n\nWait, no", tokens=letters, per_chunk=per_chunk, style="reasoning", usage=False
    )
    with FakeServer(reply) as server:
        text, stop, tokens = run(server, use)
    assert (text, stop) == ("so\tit is 4", "\n\nWait")
    assert tokens == math.ceil(len("so\tit is 4\n\nWait") / per_chunk)  # a chunk is one token where nobody counts


def test_without_a_continuation_text_cannot_be_put_in() -> None:
    async def use(sampler: EndpointSampler) -> None:
        chain = await sampler.chain(ASK)
        with pytest.raises(EndpointError, match="continuation"):
            await chain.put("Wait")
        with pytest.raises(EndpointError, match="continuation"):
            await chain.fork()
        with pytest.raises(EndpointError, match="layers"):
            await chain.layered(["4"])
        with pytest.raises(EndpointError, match="logits"):
            await chain.write(1, (), Settings(logits=lambda logits, ids: logits))
        assert (await chain.write(9, ["two"])).stop == "two"
        with pytest.raises(EndpointError, match="as if 'two' had not come"):
            await chain.write(9)
        assert "prefix" not in sampler.able
        await chain.close()
        with pytest.raises(EndpointError, match="closed"):
            await chain.write(9)

    with FakeServer(Reply(thinking="one two three")) as server:
        run(server, use)
        server.wait(lambda: server.seen[0].ended)


def test_thinking_over_the_limit_is_unfinished_and_the_server_stops() -> None:
    with FakeServer(LONG) as server:
        result = run(server, lambda sampler: think("2+2?", sampler, most_thinking=5))
        server.wait(lambda: server.seen[0].ended)
        assert (result.chains[0].reason, result.chains[0].thinking_tokens, result.answer) == ("unfinished", 5, "")
        assert server.seen[0].ended == "disconnected"
        assert server.seen[0].sent < 100


# --- cancelling


def test_cancelled_chains_stop_costing() -> None:
    lengths = [400, 3, 400, 400]
    with FakeServer(lambda body, n: Reply(thinking="w " * lengths[n], answer=str(n), pause=0.004)) as server:
        result = run(server, lambda sampler: think("2+2?", sampler, "short-m@k:m=1,k=4"))
        server.wait(lambda: all(seen.ended for seen in server.seen))
        assert sorted(seen.ended for seen in server.seen) == ["disconnected"] * 3 + ["done"]
        assert max(seen.sent for seen in server.seen) < 100
    assert result.answer == "1"
    cancelled = [c for c in result.chains if c.reason == "cancelled"]
    assert len(cancelled) == 3
    assert result.spent.cancelled_tokens == sum(c.thinking_tokens for c in cancelled) > 0


def test_a_cancelled_write_keeps_what_came_and_a_paused_chain_can_be_closed() -> None:
    async def use(sampler: EndpointSampler) -> None:
        chain = await sampler.chain(ASK)
        await chain.write(3)
        task = asyncio.create_task(chain.write(999))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert chain.text == "w " * chain.written
        assert chain.written > 3
        with pytest.raises(EndpointError, match="broken off"):
            await chain.write(1)
        paused = await sampler.chain(ASK)
        await paused.write(2)
        await paused.close()
        await paused.close()
        await asyncio.to_thread(server.wait, lambda: [s.ended for s in server.seen] == ["disconnected"] * 2)
        assert server.seen[1].sent < 100

    with FakeServer(LONG) as server:
        run(server, use)


def test_cancelling_while_the_server_has_not_answered_frees_the_connection() -> None:
    async def use(sampler: EndpointSampler) -> None:
        for _ in range(3):
            task = asyncio.create_task((await sampler.chain(ASK)).write(9))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(server.wait, lambda: len(server.seen) == 3 and server.live == 0)

    with FakeServer(Reply(silent=60)) as server:
        run(server, use, connections=1)


# --- what goes wrong


@pytest.mark.parametrize(
    "first",
    [Reply(status=s) for s in (408, 409, 425, 429, 500, 503)] + [Reply(drop_after=0), Reply(answer="", done=False)],
)
def test_tried_again_while_nothing_has_come(first: Reply) -> None:
    with FakeServer([first, first, Reply(thinking="so")]) as server:
        result = run(server, lambda sampler: think("2+2?", sampler))
        assert (result.answer, result.chains[0].thinking, len(server.seen)) == ("4", "so", 3)


def test_waits_double_and_are_as_long_as_the_server_asks_for() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    line, seen = trouble([Reply(status=429, headers={"Retry-After": "7"}), Reply(status=500)], tries=3, sleep=sleep)
    assert "no answer in 3 tries, at the last: status 500: something broke" in line
    assert len(seen) == 3
    assert waits[0] == 7.0
    assert 1.0 <= waits[1] <= 2.0
    line, _ = trouble(Reply(status=429, headers={"Retry-After": "3600"}), sleep=sleep)
    assert "asks to wait 3,600 seconds" in line


def test_no_server_there() -> None:
    async def use() -> None:
        sampler = EndpointSampler("http://127.0.0.1:9", "fake", tries=2, sleep=_at_once)
        await think("2+2?", sampler)

    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9 gave no answer in 2 tries, at the last: no connection"):
        asyncio.run(use())


@pytest.mark.parametrize(
    ("status", "says"),
    [(400, "does not take the request"), (401, "API key was not accepted"), (404, "model name 'fake'")],
)
def test_refusals_are_not_tried_again_and_never_show_the_key(status: int, says: str) -> None:
    line, seen = trouble(Reply(status=status, error="no: s3kr3t\nis bad"), api_key="s3kr3t")
    assert says in line
    assert "s3kr3t" not in line
    assert len(seen) == 1
    assert seen[0].headers["authorization"] == "Bearer s3kr3t"


def test_a_prompt_that_is_too_long_is_the_users_to_change() -> None:
    with (
        FakeServer(Reply(status=400, error="maximum context length is 9")) as server,
        pytest.raises(BadInput, match="9"),
    ):
        run(server, lambda sampler: think("2+2?", sampler))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"drop_after": 2}, "broke the connection"),
        ({"stall_after": 2, "comments": True}, "sent no text for 0.3 seconds"),
        ({"malformed_after": 2}, "malformed chunk"),
        ({"error_after": 2}, "no memory"),
        ({"finish": "content_filter"}, "withholds"),
        ({"done": False}, "ended the stream before its reply after 5 tokens"),
        ({"streams": False}, "does not stream"),
        ({"silent": 60}, "did not answer in 0.3 seconds"),
    ],
)
def test_once_it_has_begun_trouble_is_an_error(how: dict[str, Any], says: str) -> None:
    line, seen = trouble(Reply(thinking="a b c d", **how), timeout=0.3)
    assert says in line
    assert len(seen) == 1
    if says[0] in "bs":
        assert "after 2 tokens" in line


def test_a_server_that_stalls_after_its_last_word_has_ended() -> None:
    class Quiet(FakeServer):
        async def _say(self, seen: Seen, reply: Reply, gone: Any, writer: Any) -> str:
            write = writer.write

            def kept(data: bytes) -> None:
                if b"[DONE]" not in data and data != b"0\r\n\r\n":
                    write(data)

            writer.write = kept
            await super()._say(seen, reply, gone, writer)
            await gone
            return "disconnected"

    with Quiet(Reply(thinking="a b")) as server:
        result = run(server, lambda sampler: think("2+2?", sampler), timeout=0.3)
    assert (result.answer, result.chains[0].thinking_tokens) == ("4", 2)


@pytest.mark.parametrize("chunk", [[], 3, {"choices": 3}, {"choices": [3]}, {"choices": [{"delta": {"content": 3}}]}])
def test_chunks_that_are_none(chunk: Any) -> None:
    remote = Remote.at("http://h", "m", "k3y")
    with pytest.raises(EndpointError, match="chunk"):
        list(Chunks(None, opened=False, count=len, remote=remote).read(chunk))
    with pytest.raises(EndpointError) as error:
        list(Chunks(None, opened=False, count=len, remote=remote).read({"error": {"message": "key k3y"}}))
    assert "k3y" not in str(error.value)


def test_parameters_that_the_server_does_not_take() -> None:
    async def use(sampler: EndpointSampler) -> Thought:
        await think("2+2?", sampler)
        return await think("2+2?", sampler, settings=Settings(seed=3))

    with FakeServer(Reply(thinking="a b", untaken=("max_tokens", "seed", "stream_options"))) as server:
        result = run(server, use)
        bodies = [seen.body for seen in server.seen]
        assert [seen.ended for seen in server.seen] == ["refused", "refused", "done", "refused", "done"]
    assert bodies[-1]["max_completion_tokens"] == 8192
    assert not {"max_tokens", "stream_options", "seed"} & set(bodies[-1])
    assert sorted(result.notes) == ["the server does not take 'seed'", "the server does not take 'stream_options'"]
    assert result.answer == "4"


def test_the_names_of_parameters_in_refusals() -> None:
    detail = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}
    assert unsupported(json.dumps(detail)) == "seed"
    assert unsupported(json.dumps({"error": {"code": "unknown_parameter", "param": "x"}})) == "x"
    assert unsupported(json.dumps({"error": {"code": 400, "param": "x"}})) == ""
    assert [unsupported(body) for body in ("", "[]", '"x"', '{"detail": [3]}', '{"detail": []}')] == [""] * 5


# --- counting


def test_tokens_are_counted_by_the_server_or_by_log_probabilities_or_by_chunks() -> None:
    reply = {"thinking": "a b c d e f", "answer": "g h", "per_chunk": 4}
    (chain,) = thought(Reply(**reply)).chains  # type: ignore[arg-type]
    assert (chain.thinking_tokens, chain.answer_tokens) == (6, 2)
    (chain,) = thought(Reply(**reply, usage=False)).chains  # type: ignore[arg-type]
    assert (chain.thinking_tokens, chain.answer_tokens) == (2, 1)
    (chain,) = thought(Reply(**reply, usage=False), settings=Settings(logprobs=True)).chains  # type: ignore[arg-type]
    assert (chain.thinking_tokens, chain.answer_tokens) == (6, 2)
    assert chain.logprobs == (LOGPROB,) * 2
    (chain,) = thought(Reply(**reply, style="tags")).chains  # type: ignore[arg-type]
    assert (chain.thinking_tokens, chain.answer_tokens) == (7, 3)  # 10 in the shares 2 to 1 of the chunks


def test_a_tokenizer_counts_texts_and_chunks() -> None:
    class Tokenizer:
        chat_template = "{{ '[THINK]' }}{{ '[/THINK]' }}"

        def encode(self, text: str, add_special_tokens: bool) -> list[str]:
            assert not add_special_tokens
            return words(text)

    reply = Reply(thinking="a b c d e f", answer="g h", per_chunk=4, usage=False)
    (chain,) = thought(reply, tokenizer=Tokenizer()).chains
    assert (chain.thinking_tokens, chain.answer_tokens) == (6, 2)
    sampler = EndpointSampler("http://h", "m", tokenizer=Tokenizer())
    assert (sampler.count("a b c"), sampler.tags) == (3, Tags("[THINK]", "[/THINK]"))
    assert EndpointSampler("http://h", "m").count("é" * 8) == 5


def test_thinking_that_is_not_shown_is_counted() -> None:
    reply = Reply(answer="4 5")
    said = reply.said
    reply.said = lambda: [("reasoning_content", "")] * 90 + said()  # type: ignore[method-assign]
    (chain,) = thought(reply).chains
    assert (chain.thinking, chain.thinking_tokens, chain.answer_tokens) == ("", 90, 2)


def test_log_probabilities_that_do_not_come() -> None:
    line, _ = trouble(Reply(thinking="a", logprobs=False), settings=Settings(logprobs=True))
    assert "no log-probabilities" in line

    async def able(sampler: EndpointSampler) -> bool:
        await sampler.probe()
        return "logprobs" in sampler.able

    for gives in (False, True):
        with FakeServer(Reply(thinking="a", logprobs=gives)) as server:
            assert run(server, able) is gives
    with FakeServer(lambda body, n: Reply(status=400 if "logprobs" in body else 200)) as server:
        assert run(server, able) is False


def test_a_server_that_cuts_off() -> None:
    async def use(sampler: EndpointSampler) -> None:
        chain = await sampler.chain(ASK)
        piece = await chain.write(4)
        assert (piece.text, piece.tokens, piece.reason) == ("a b c d ", 4, "length")
        assert (await chain.write(1)).reason == "length"
        with pytest.raises(EndpointError, match=r"after 4 tokens: raise max_tokens \(4 now\)"):
            await chain.write(9)

    with FakeServer(Reply(thinking="a b c d e f")) as server:
        run(server, use, max_tokens=4)
        run(server, lambda sampler: think("2+2?", sampler, most_thinking=9), max_tokens=4)
        assert [seen.body["max_tokens"] for seen in server.seen] == [4, 9]


def test_not_thinking_is_asked_for_and_noted_where_it_does_not_help() -> None:
    async def use(sampler: EndpointSampler) -> tuple[Any, ...]:
        chain = await sampler.chain(ASK, think=False)
        piece = await chain.write(2)
        await chain.close()
        return piece.text, chain.written, sampler.notes

    with FakeServer(Reply(answer="4 5 6")) as server:
        assert run(server, use) == ("4 5 ", 2, [])
        assert server.seen[0].body["chat_template_kwargs"] == {"enable_thinking": False}
    for style in ("reasoning", "tags"):
        with FakeServer(Reply(thinking="a b c", answer="4 5 6", style=style)) as server:  # type: ignore[arg-type]
            text, written, notes = run(server, use)
        assert text == "4 5 "
        assert written >= 5
        assert "asked not to" in notes[0]


def test_settings_that_change_after_the_request_are_noted() -> None:
    async def use(sampler: EndpointSampler) -> list[str]:
        chain = await sampler.chain(ASK)
        await chain.write(1, (), Settings(temperature=0.5, top_p=0.9, seed=7))
        await chain.write(1, (), Settings(temperature=0.0, seed=7))
        await chain.close()
        return sampler.notes

    with FakeServer(Reply(thinking="a b c")) as server:
        (note,) = run(server, use)
        body = server.seen[0].body
    assert "no other settings" in note
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.5, 0.9, 7)


# --- going on from a text


class Words:
    """A tokenizer whose tokens are words."""

    chat_template = "<think></think>"

    def __init__(self) -> None:
        self.vocabulary: list[str] = []

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        self.vocabulary += [w for w in dict.fromkeys(words(text)) if w not in self.vocabulary]
        return [self.vocabulary.index(w) for w in words(text)]


def continued(server: FakeServer, at: int, tokenizer: Words | None = None) -> str:
    """The prompt of a request as text."""
    prompt = server.seen[at].body["prompt"]
    if isinstance(prompt, str):
        return prompt
    return "".join((tokenizer or server).vocabulary[i] for i in prompt)


WAYS = [("vllm", None), ("llama.cpp", None), ("tokenizer", Words())]


@pytest.mark.parametrize(("kind", "tokenizer"), WAYS)
@pytest.mark.parametrize("opens", [False, True])
def test_putting_text_in_begins_a_new_request_from_the_whole_text(kind: str, tokenizer: Any, opens: bool) -> None:
    async def use(sampler: EndpointSampler) -> None:
        assert "prefix" in sampler.able
        chain = await sampler.chain(ASK)
        assert (await chain.write(9, ["</think>"])).stop == "</think>"
        await chain.put("</think>")
        assert (await chain.write(1)).text == "4 "
        assert len(server.seen) == 1  # the stop string was put back: the same stream
        await chain.put("or rather ")
        other = await chain.fork()
        assert (await chain.write(9)).text == "five"
        assert chain.text == "a b</think>4 or rather five"
        assert (await other.write(9)).text == "five"
        assert other.text == chain.text
        assert (other.written, chain.written) == (1, 5)  # the closing tag is a token
        closed = await sampler.chain(ASK, think=False)
        assert (await closed.write(1)).text == "five"
        for each in (chain, other, closed):
            await each.close()

    script = [Reply(thinking="a b", answer="4 5 6", style="opened"), Reply(answer="five")]
    with FakeServer(script, opens=opens) as server:
        run(server, use, continuation=kind, tokenizer=tokenizer)
        start = "[user]2+2?[assistant]<think>"
        assert [continued(server, i, tokenizer) for i in range(4)] == [
            start,
            f"{start}a b</think>4 or rather ",
            f"{start}a b</think>4 or rather ",
            f"{start}</think>",
        ]
        assert {seen.path for seen in server.seen} == {"/v1/completions"}
        assert server.seen[0].ended in ("disconnected", "done")


@pytest.mark.parametrize(("kind", "tokenizer"), WAYS)
def test_thinking_is_closed_at_its_limit_and_the_answer_follows(kind: str, tokenizer: Any) -> None:
    script = [Reply(thinking="w " * 400, style="opened", pause=0.004), Reply(answer="4 5")]
    with FakeServer(script) as server:
        options = {"continuation": kind, "tokenizer": tokenizer}
        result = run(server, lambda sampler: think("2+2?", sampler, most_thinking=3), **options)
        server.wait(lambda: all(seen.ended for seen in server.seen))
        assert continued(server, 1, tokenizer).endswith("<think>w w w </think>")
        assert server.seen[0].ended == "disconnected"
        assert server.seen[0].sent < 100
    (chain,) = result.chains
    assert (chain.reason, chain.thinking, chain.text) == ("budget", "w w w ", "4 5")
    assert (chain.thinking_tokens, chain.answer_tokens) == (3, 2)


def test_with_a_continuation_other_settings_a_lost_stop_and_a_cut_begin_a_new_request() -> None:
    async def use(sampler: EndpointSampler) -> list[str]:
        chain = await sampler.chain(ASK)
        await chain.write(1, (), Settings(temperature=1.0))
        await chain.write(1, (), Settings(temperature=0.0))
        assert (await chain.write(1, ["b"], Settings(temperature=0.0))).stop == "b"
        assert (await chain.write(4, (), Settings(temperature=0.0))).tokens == 4
        assert (await chain.write(1, (), Settings(temperature=0.0))).reason == "length"  # all four are read
        await chain.write(1, (), Settings(temperature=0.0))
        await chain.close()
        return sampler.notes

    with FakeServer(Reply(thinking="a b c d e f", style="opened", answer="")) as server:
        assert run(server, use, continuation="llama.cpp", max_tokens=4) == []
        said = [continued(server, i).partition("<think>")[2] for i in range(len(server.seen))]
        assert said == ["", "a ", "a a ", "a a a b c d "]
        assert [seen.body["temperature"] for seen in server.seen] == [1.0, 0.0, 0.0, 0.0]


def test_what_may_begin_a_stop_is_not_lost_between_requests() -> None:
    script = [Reply(thinking="a <", answer="", style="opened"), Reply(answer="/think>4")]
    script[0].said = lambda: [("content", "a "), ("content", "</th")]  # type: ignore[method-assign]
    script[1].said = lambda: [("content", "ink>"), ("content", "4")]  # type: ignore[method-assign]
    for most, last in ((2, Settings(temperature=0.0)), (9, Settings(temperature=1.0))):  # other settings; a cut

        async def use(sampler: EndpointSampler, most: int = most, last: Settings = last) -> None:
            chain = await sampler.chain(ASK)
            piece = await chain.write(most, ["</think>"], Settings(temperature=1.0))
            assert (piece.text, piece.reason) == ("a ", "length")
            assert (await chain.write(9, ["</think>"], last)).stop == "</think>"
            assert chain.text == "a "
            await chain.close()

        script[0].finish = "length"
        with FakeServer(script) as server:
            run(server, use, continuation="llama.cpp")
            assert continued(server, 1).endswith("<think>a </th")


def test_blank_content_before_the_thinking_is_part_of_it() -> None:
    reply = Reply()
    reply.said = lambda: [("content", " "), ("reasoning", "so"), ("content", "4")]  # type: ignore[method-assign]
    (chain,) = thought(reply).chains
    assert (chain.thinking, chain.text) == (" so", "4")
    reply.said = lambda: [("reasoning", "so"), ("content", "4"), ("reasoning", "but")]  # type: ignore[method-assign]
    result = thought(reply)
    assert (result.chains[0].thinking, result.chains[0].text) == ("so", "4")
    assert "thought again" in result.notes[0]


def test_log_probabilities_of_plain_completions() -> None:
    async def use(sampler: EndpointSampler) -> tuple[float, ...]:
        chain = await sampler.chain(ASK)
        piece = await chain.write(9, ["</think>"], Settings(logprobs=True))
        await chain.close()
        return piece.logprobs

    with FakeServer(Reply(thinking="a b", style="opened", per_chunk=2)) as server:
        assert run(server, use, continuation="vllm") == (LOGPROB,) * 3
        assert server.seen[0].body["logprobs"] == 1


def test_the_server_is_not_what_the_continuation_says() -> None:
    class Other(FakeServer):
        def _aside(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            return {"detail": "Not Found"}

    for kind in ("vllm", "llama.cpp"):
        with Other(Reply()) as server, pytest.raises(EndpointError, match=kind):
            run(server, lambda sampler: think("2+2?", sampler), continuation=kind)


# --- many at once


def test_no_more_streams_at_once_than_allowed() -> None:
    with FakeServer(Reply(thinking="a b c", pause=0.005)) as server:
        result = run(server, lambda sampler: think("2+2?", sampler, "majority:k=7"), connections=2)
        assert (result.answer, len(server.seen), server.peak) == ("4", 7, 2)


def test_waiting_for_connections_that_never_get_free_is_an_error() -> None:
    async def use(sampler: EndpointSampler) -> None:
        paused = await sampler.chain(ASK)
        await paused.write(1)
        with pytest.raises(EndpointError, match=r"all 1 connections .* are taken"):
            await (await sampler.chain(ASK)).write(1)
        await paused.close()
        other = await sampler.chain(ASK)
        assert (await other.write(1)).text == "a "
        await other.close()

    with FakeServer(Reply(thinking="a b c d")) as server:
        run(server, use, connections=1, timeout=0.2)


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "ftp://h"}, "no address"),
        ({"model": " "}, "name the model"),
        ({"api_key": "k\u2026"}, "API key"),
        ({"max_tokens": 0}, "at least 1"),
        ({"tries": 0}, "at least 1"),
        ({"connections": 0}, "at least 1"),
        ({"timeout": 0}, "above 0"),
        ({"continuation": "deepseek"}, "no continuation 'deepseek': it is one of none, tokenizer, vllm, llama.cpp"),
        ({"continuation": "tokenizer"}, "needs the model's tokenizer"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        EndpointSampler(**({"url": "http://h", "model": "m"} | options))


def test_httpx_is_asked_for_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, lengthwise.thinking.endpoint; print(*{'httpx', 'torch', 'openai'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtra, match=r"lengthwise\[endpoint\]"):
        EndpointSampler("http://h", "m")
    assert issubclass(MissingExtra, LengthwiseError)
