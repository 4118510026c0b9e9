"""Chunks of a streamed completion -> parts of one text, in which a thinking section ends with its closing tag."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lengthwise.core.remote import Remote
from lengthwise.errors import EndpointError
from lengthwise.thinking.chain import Tags

REASONING = ("reasoning_content", "reasoning")  # what servers call the thinking in a delta


@dataclass(frozen=True)
class Part:
    """A bit of text, the tokens counted for it, and their log-probabilities where they came."""

    text: str
    tokens: int = 0
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What the server counted for one request. `thinking` is None where it does not say."""

    read: int
    cached: int
    written: int
    thinking: int | None


class Reply:
    """Reads the chunks of one request; the text begins inside the thinking section, as chains do.

    Thinking comes as deltas of their own (`REASONING`), after which the closing tag is put before the first content; or
    in the content, whose opening tag is then taken off. Content that begins otherwise: with `opened` the section was
    opened in the prompt; else the model does not think, and the closing tag is put first. Without `tags` all is text.

    Tokens of a chunk: as many as it has log-probabilities, or what its running usage adds, or `count` of its text.
    """

    def __init__(self, tags: Tags | None, *, opened: bool, count: Callable[[str], int], remote: Remote) -> None:
        self.tags, self.opened, self.count, self.remote = tags, opened, count, remote
        self.state: Literal["start", "thinking", "text"] = "text" if tags is None else "start"
        self.finish = ""
        self.usage: Usage | None = None
        self.counted = 0  # tokens of all parts
        self.apart = False  # thinking came in deltas of its own
        self.again = False  # thinking came after the answer had begun
        self._lead: list[Part] = []  # content of which it is not yet known what it is
        self._unopened: str | None = None  # the last of an answer before which there was no thinking

    def read(self, chunk: Any) -> Iterator[Part]:
        """The parts of one chunk. Raises EndpointError for an error object, and for what is no chunk."""
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            what = "an error" if isinstance(chunk, dict) and "error" in chunk else "a chunk that is none"
            raise EndpointError(f"{self.remote.host} sent {what}: {self.remote.line(json.dumps(chunk))}")
        usage = _usage(chunk.get("usage"))
        for choice in choices[:1]:
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                delta = {"content": choice.get("text")}
            thought = next((delta[n] for n in REASONING if delta.get(n)), "")
            said = delta.get("content") or delta.get("refusal") or ""
            if not (isinstance(thought, str) and isinstance(said, str)):
                raise EndpointError(f"{self.remote.host} sent a chunk whose text is none")
            if choice.get("finish_reason"):
                self.finish = str(choice["finish_reason"])
            if thought or said:
                drawn = _drawn(choice.get("logprobs"))
                tokens = self._tokens(thought + said, usage, drawn)
                if thought:
                    yield from self._thinking(thought, 0 if said else tokens, [] if said else drawn)
                if said:
                    yield from self._content(said, tokens, drawn)
        if usage is not None:
            self.usage = usage

    def end(self) -> Iterator[Part]:
        """The stream has ended: what was held back."""
        if self.state == "start" and self.tags is not None:
            if not self.opened:
                yield Part(self.tags.close)
            yield from self._lead

    def _tokens(self, text: str, usage: Usage | None, drawn: list[tuple[str, float]]) -> int:
        tokens = len(drawn) or self.count(text)
        if usage is not None and usage.written >= self.counted:
            tokens = usage.written - self.counted
        self.counted += tokens
        return tokens

    def _thinking(self, thought: str, tokens: int, drawn: list[tuple[str, float]]) -> Iterator[Part]:
        self.apart = True
        if self.state == "text" and self.tags is not None:
            self.again, thought = True, ""
        elif self.state == "start":
            self.state = "thinking"
            yield from self._lead
        yield from _single(thought, tokens, drawn)

    def _content(self, said: str, tokens: int, drawn: list[tuple[str, float]]) -> Iterator[Part]:
        parts = list(_single(said, tokens, drawn))
        if self.tags is not None and self.state == "thinking":
            self.state = "text"
            yield Part(self.tags.close)
        elif self.tags is not None and self.state == "start":
            self._lead += parts
            text = "".join(p.text for p in self._lead).lstrip()
            if self.tags.open.startswith(text) and text != self.tags.open:
                return
            self.state, parts, self._lead = "text", self._lead, []
            if text.startswith(self.tags.open):
                yield Part(text.removeprefix(self.tags.open), sum(p.tokens for p in parts))
                return
            if not self.opened:
                self._unopened = ""
                yield Part(self.tags.close)
        self._watch("".join(p.text for p in parts))
        yield from parts

    def _watch(self, text: str) -> None:
        """A section that is closed, and was not opened: what was taken for the answer was thinking."""
        if self._unopened is None or self.tags is None:
            return
        if self.tags.close in self._unopened + text:
            raise EndpointError(
                f"{self.remote.host} closes a thinking section that its text did not open: the prompt opens it "
                "(say so with opened=True)"
            )
        self._unopened = (self._unopened + text)[-len(self.tags.close) :]


def _single(text: str, tokens: int, drawn: list[tuple[str, float]]) -> Iterator[Part]:
    """Token by token where the log-probabilities' tokens are the text, else in one part."""
    if len(drawn) == tokens > 1 and "".join(t for t, _ in drawn) == text:
        yield from (Part(t, 1, (p,)) for t, p in drawn)
    else:
        yield Part(text, tokens, tuple(p for _, p in drawn))


def _drawn(logprobs: Any) -> list[tuple[str, float]]:
    """(token, log-probability) of a choice, in the form of chat completions or that of completions."""
    if not isinstance(logprobs, dict):
        return []
    try:
        if isinstance(content := logprobs.get("content"), list):
            return [(str(t["token"]), float(t["logprob"])) for t in content]
        pairs = zip(logprobs.get("tokens") or (), logprobs.get("token_logprobs") or (), strict=True)
        return [(str(t), float(p)) for t, p in pairs]
    except (LookupError, TypeError, ValueError):
        return []


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict) or not isinstance(usage.get("completion_tokens"), int):
        return None
    read, written = usage.get("prompt_tokens"), usage["completion_tokens"]
    thinking = _inner(usage, "completion_tokens_details", "reasoning_tokens")
    cached = _inner(usage, "prompt_tokens_details", "cached_tokens")
    return Usage(read if isinstance(read, int) else 0, cached or 0, written, thinking)


def _inner(usage: dict[str, Any], name: str, key: str) -> int | None:
    details = usage.get(name)
    value = details.get(key) if isinstance(details, dict) else None
    return value if isinstance(value, int) else None
