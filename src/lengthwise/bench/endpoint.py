"""A model behind an OpenAI-compatible server (`/v1/chat/completions`) as the thing measured."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from lengthwise.bench.messages import Messages
from lengthwise.bench.subject import Outcome
from lengthwise.bench.task import Sample
from lengthwise.core.remote import (
    AGAIN,
    BYTES_PER_TOKEN,
    FIRST_WAIT,
    FRAME_TOKENS,
    MOST_WAIT,
    Remote,
    first_line,
    retry_after,
    unsupported,
)
from lengthwise.errors import BadInput, EndpointError, MissingExtra, StackRefused
from lengthwise.models import load_tokenizer

MOST_STOPS = 4  # the protocol's limit
THINKING = re.compile(r"\A.*</think(?:ing)?>|\A\s*<think(?:ing)?>.*\Z", re.DOTALL)
WHOLE_REQUEST = "decode_seconds is the whole request: the server does not say how long it read"


class Endpoint:
    """A server's model, asked one sample at a time, at temperature 0 with a fixed seed.

    `url` is the server's address, with or without /v1. The key is `api_key`, else LENGTHWISE_API_KEY, else
    OPENAI_API_KEY; none is fine for a local server. `tokenizer` (a model name or folder) counts tokens when samples are
    built; without one their length is estimated. `thinking` are tokens a reasoning model may write on top of the
    answer; they do not count as length. Its thoughts are taken off before scoring, and are in `tokens_written`.
    The ledger has tokens as the server counts them, and the wall time of the answered request as `decode_seconds`.

    Connection errors, timeouts and the statuses 408, 409, 425, 429 and 5xx are tried again, `tries` times in all, after
    waits that double, with jitter, or as long as the server asks for. Raises BadInput for an address or a key that
    cannot be one, MissingExtra without httpx.
    """

    stacks = False

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        tokenizer: str | None = None,
        *,
        thinking: int = 0,
        seed: int = 0,
        tries: int = 6,
        timeout: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtra("httpx", "endpoint", "measuring a model behind a server") from error
        if thinking < 0 or tries < 1 or timeout <= 0:
            raise BadInput("thinking must be at least 0, tries at least 1 and the timeout above 0 seconds")
        self.remote = Remote.at(url, model, api_key)
        self.url, self.host = self.remote.url, self.remote.host
        self.model, self.thinking, self.seed, self.tries = model, thinking, seed, tries
        self.tokenizer = tokenizer
        self.sizes = Messages(load_tokenizer(tokenizer) if tokenizer else None)
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise BadInput(f"'{url}' is no address of a server: {error}") from error
        limits = httpx.Timeout(timeout, connect=min(timeout, 20.0))
        self._client = httpx.Client(headers=self.remote.headers, timeout=limits)
        self._sleep, self._draw = sleep, random.Random()
        self._untaken: dict[str, str] = {}  # parameters that the server does not take: name -> what is sent instead

    def about(self) -> dict[str, Any]:
        """What a row says of the model. The weights cannot be seen, so `model_hash` is the place they are asked at."""
        place = hashlib.sha256(self.url.encode()).hexdigest()[:8]
        return {
            "model": self.model,
            "model_hash": f"endpoint {self.host} {place}",
            "tokenizer": self.tokenizer or f"estimate: {BYTES_PER_TOKEN} bytes a token",
            "template": "the server's",
        }

    def answer(self, sample: Sample, stack: str, max_new_tokens: int) -> Outcome:
        """Ask the server.

        Raises EndpointError when it gives no answer, BadInput when it says that the prompt is too long for it, and
        StackRefused for any stack but 'dense'.
        """
        if stack != "dense":
            raise StackRefused(stack, ["a model behind a server cannot be given a stack; only 'dense' can be measured"])
        text = self.sizes.text(sample)
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": max_new_tokens + self.thinking,
            "seed": self.seed,
        }
        if sample.stop and not self.thinking:  # a stop string would end the thoughts; the answer is cut below
            request["stop"] = list(sample.stop[:MOST_STOPS])
        reply, seconds = self._ask(request)
        said, thought, reason = _said(reply)
        notes = [WHOLE_REQUEST]
        usage: dict[str, Any] = reply["usage"] if isinstance(reply.get("usage"), dict) else {}
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        ledger = {"decode_seconds": seconds}
        if isinstance(read, int):
            ledger["tokens_read"] = read
        else:
            notes.append("the server did not say how many tokens it read; prompt_tokens is our own count")
            read = self.sizes.count(text) + FRAME_TOKENS
        if isinstance(written, int):
            ledger["tokens_written"] = written
        if thought:
            details = usage.get("completion_tokens_details")
            exact = details.get("reasoning_tokens") if isinstance(details, dict) else None
            count = f"{exact:,}" if isinstance(exact, int) and exact else f"about {self.sizes.count(thought):,}"
            notes.append(f"{count} tokens of thinking were taken off the answer")
        if reason == "length":
            notes.append(f"cut off at {request['max_tokens']:,} tokens")
        notes += [f"the server does not take '{name}'" for name in self._untaken]
        return Outcome(clean(said, sample.prefix, sample.stop), ledger, read, notes=notes)

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """(the reply, the wall seconds of the request that got it)."""
        import httpx

        trouble, asked = "", 0.0
        for attempt in range(self.tries):
            if attempt:
                backoff = min(MOST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * self._draw.uniform(0.5, 1.0)
                self._sleep(max(asked, backoff))
            asked, start = 0.0, time.perf_counter()
            try:
                response = self._send(request)
            except httpx.TimeoutException as error:
                trouble = f"no answer in time ({type(error).__name__})"
                continue
            except httpx.RequestError as error:
                trouble = f"no connection ({first_line(str(error)) or type(error).__name__})"
                continue
            seconds = time.perf_counter() - start
            if response.status_code == 200:
                return self._reply(response.text), seconds
            trouble = f"status {response.status_code}: {self.remote.line(response.text)}"
            if response.status_code not in AGAIN and response.status_code < 500:
                raise self.remote.refusal(response.status_code, trouble, "ask for a shorter length")
            asked = retry_after(response.headers.get("retry-after"))
            if asked > MOST_WAIT:
                raise EndpointError(f"{self.host} asks to wait {asked:,.0f} seconds: try again later ({trouble})")
        raise EndpointError(f"{self.host} gave no answer in {self.tries} tries, at the last: {trouble}")

    def _send(self, request: dict[str, Any]) -> Any:
        """One request, without the parameters that this server has been seen to refuse."""
        while True:
            body = {self._untaken.get(name, name): value for name, value in request.items()}
            response = self._client.post(self.url, json={name: value for name, value in body.items() if name})
            refused = unsupported(response.text) if response.status_code == 400 else ""
            if refused not in request or refused in ("model", "messages", *self._untaken):
                return response
            self._untaken[refused] = "max_completion_tokens" if refused == "max_tokens" else ""

    def _reply(self, text: str) -> dict[str, Any]:
        try:
            reply = json.loads(text)
            if isinstance(reply["choices"][0]["message"], dict):
                return dict(reply)
        except (ValueError, LookupError, TypeError):
            pass
        raise EndpointError(f"{self.host} answered with no chat completion: {self.remote.line(text)}")


def clean(said: str, prefix: str, stop: Sequence[str]) -> str:
    """The answer in what a model said: after the sample's prefix, if it repeats that, and up to the first stop."""
    text = _unpad(said)
    if prefix.strip():
        words = r"\s+".join(re.escape(word) for word in prefix.split())
        edge = r"(?!\w)" if prefix.rstrip()[-1].isalnum() else ""
        echo = re.match(rf"[\s\"'`*]*{words}{edge}", text, re.IGNORECASE)
        if echo:
            text = _unpad(text[echo.end() :])
    return text[: min((at for s in stop if s and (at := text.find(s)) >= 0), default=len(text))]


def _unpad(text: str) -> str:
    """Without blank lines at the start, at which a stop of '\\n' would leave nothing."""
    return re.sub(r"\A(?:\s*\n)+", "", text)


def _said(reply: dict[str, Any]) -> tuple[str, str, str]:
    """(what was said, the thinking before it, why it ended)."""
    choice = reply["choices"][0]
    message = choice["message"]
    content = message.get("content")
    if isinstance(content, list):  # parts
        content = "".join(p.get("text") or "" for p in content if isinstance(p, dict))
    content = content if isinstance(content, str) else ""
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    block = THINKING.match(content)
    if block:
        thought, content = f"{thought}{block[0]}", content[block.end() :]
    return content, thought if isinstance(thought, str) else str(thought), str(choice.get("finish_reason") or "")
