"""Requests of the chat completions protocol: every field is honoured, or refused with its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lengthwise.errors import LengthwiseError
from lengthwise.serve.options import Options
from lengthwise.thinking.chain import DEFAULT, Settings

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# Fields that cannot be honoured, the values that ask for nothing (null is always one), and why.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "tools are not called under a strategy"),
    "tool_choice": (("none", "auto"), "tools are not called under a strategy"),
    "parallel_tool_calls": ((True, False), "tools are not called under a strategy"),
    "functions": (([],), "functions are not called under a strategy"),
    "function_call": (("none", "auto"), "functions are not called under a strategy"),
    "n": ((1,), "a strategy gives one answer: ask again for another"),
    "logprobs": ((False,), "an answer that was chosen from several chains has no log-probabilities"),
    "top_logprobs": ((0,), "an answer that was chosen from several chains has no log-probabilities"),
    "response_format": (({"type": "text"},), "the form of the answer is not enforced: ask for it in words"),
    "stop": (([], ""), "chains end by the strategy, not at a stop string"),
    "frequency_penalty": ((0,), "penalties are not applied"),
    "presence_penalty": ((0,), "penalties are not applied"),
    "logit_bias": (({},), "logits are the strategy's"),
    "reasoning_effort": ((), "the strategy decides how long the model thinks"),
    "verbosity": ((), "the length of the answer is not controlled: ask for it in words"),
    "modalities": ((["text"],), "the answer is text"),
    "audio": ((), "the answer is text"),
    "prediction": ((), "predicted output is not used"),
    "web_search_options": ((), "there is no search"),
    "store": ((False,), "nothing is stored"),
    "metadata": (({},), "nothing is stored"),
    "service_tier": (("auto", "default"), "there is one tier"),
}
# Fields that change nothing in what is written: who asks, and hints for a provider's caches.
TAKEN = ("user", "safety_identifier", "prompt_cache_key")
# Fields that clients echo from an answer; empty ones are let through.
ECHOED = ("name", "refusal", "audio", "annotations", "tool_calls", "function_call", "reasoning_content")
SEEDS = 2**32


class Failure(LengthwiseError):
    """What a client is told instead of an answer: an HTTP status and the protocol's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request that can be honoured. `reasoning`: the thinking of the chosen chain is wanted, too."""

    messages: list[dict[str, str]]
    settings: Settings
    most_thinking: int
    most_answer: int
    stream: bool = False
    include_usage: bool = False
    reasoning: bool = False


def read(body: bytes, model: str, options: Options, sections: bool) -> Asked:
    """The request in `body`. `sections`: the model has thinking sections, so that its answer is bounded by itself.

    `max_completion_tokens` (or `max_tokens`) bounds each chain, thinking and answer together; of it at most a quarter
    is kept for the answer. Raises Failure with status 400, or 404 for another model than `model`.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise _refused(None, "the body is not JSON") from None
    if not isinstance(given, dict):
        raise _refused(None, "the body must be a JSON object")
    fields = {name: value for name, value in given.items() if value is not None}
    for name, (nothing, why) in REFUSED.items():
        if name in fields and fields.pop(name) not in nothing:
            raise _refused(name, f"'{name}' is not supported here: {why}", "unsupported_parameter")
    for name in TAKEN:
        _typed(fields, name, str, "text")
    if _typed(fields, "model", str, "text") is None:
        raise _refused("model", f"'model' is missing: the model here is '{model}'")
    if given["model"] != model:
        message = f"the model '{given['model']}' does not exist here: the model is '{model}'"
        raise Failure(404, message, param="model", code="model_not_found")
    messages = _messages(fields.pop("messages", None))
    stream = _typed(fields, "stream", bool, "true or false") or False
    include_usage = _stream_options(fields.pop("stream_options", None), stream)
    settings = Settings(
        temperature=_number(fields, "temperature", DEFAULT.temperature, 0, 2),
        top_p=_number(fields, "top_p", DEFAULT.top_p, 1e-6, 1),
        seed=_whole(fields, "seed", 1 - SEEDS, SEEDS - 1),
    )
    thinking, answer = _most(fields, options, sections)
    reasoning = _typed(fields, "include_reasoning", bool, "true or false") or False
    if fields:
        name = next(iter(fields))
        raise _refused(name, f"'{name}' is not known here, and nothing is ignored: leave it out", "unknown_parameter")
    return Asked(messages, settings, thinking, answer, stream, include_usage, reasoning)


def _refused(param: str | None, message: str, code: str | None = None) -> Failure:
    return Failure(400, message, param=param, code=code)


def _typed(fields: dict[str, Any], name: str, kind: type, words: str) -> Any:
    value = fields.pop(name, None)
    if value is not None and not isinstance(value, kind):
        raise _refused(name, f"'{name}' must be {words}")
    return value


def _number(fields: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = fields.pop(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        bound = "above 0" if low else "from 0"
        raise _refused(name, f"'{name}' must be a number {bound} to {high}")
    return float(value)


def _whole(fields: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = fields.pop(name, None)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise _refused(name, f"'{name}' must be a whole number from {low} to {high}")
    return value


def _most(fields: dict[str, Any], options: Options, sections: bool) -> tuple[int, int]:
    """(most tokens of thinking, most tokens of the answer) of each chain."""
    new, old = (_whole(fields, name, 1, 2**40) for name in ("max_completion_tokens", "max_tokens"))
    if new is not None and old is not None and new != old:
        raise _refused("max_tokens", "'max_tokens' and 'max_completion_tokens' differ: give one of them")
    most = old if new is None else new
    if most is None:
        return options.most_thinking, options.most_answer
    if not sections:  # all text counts as thinking
        return min(options.most_thinking, most), options.most_answer
    if most < 2:
        name = "max_tokens" if new is None else "max_completion_tokens"
        raise _refused(name, f"'{name}' must be at least 2: one token to think, one to answer")
    answer = min(options.most_answer, max(1, most // 4))
    return min(options.most_thinking, most - answer), answer


def _stream_options(given: Any, stream: bool) -> bool:
    """Whether usage is wanted at the end of a stream."""
    if given is None:
        return False
    if not stream:
        raise _refused("stream_options", "'stream_options' is for streams alone: leave it out, or set 'stream'")
    wanted = {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else None
    if wanted is None or not all(isinstance(v, bool) for v in wanted.values()):
        raise _refused("stream_options", "'stream_options' must be an object of true or false")
    usage = wanted.pop("include_usage", False)
    for name, value in wanted.items():
        if value or name != "include_obfuscation":
            raise _refused(f"stream_options.{name}", f"'stream_options.{name}' is not supported here")
    return bool(usage)


def _messages(given: Any) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise _refused("messages", "'messages' must be a list with at least one message")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise _refused("messages", "the last of 'messages' must be the user's, and not empty")
    return messages


def _message(given: Any, where: str) -> dict[str, str]:
    if not isinstance(given, dict):
        raise _refused(where, f"{where} must be an object")
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _refused(f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}")
    for name, value in given.items():
        if name not in ("role", "content") and not (name in ECHOED and value in (None, [], "")):
            raise _refused(f"{where}.{name}", f"{where}.{name} is not given to the model: leave it out")
    content = given.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise _refused(f"{where}.content", f"{where}.content must be text, or a list of text parts")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise _refused(f"{where}.content", f"{where}.content has half a character (a lone surrogate)") from None
    return {"role": ROLES[role], "content": content}


def _part(given: Any, where: str) -> str:
    if not isinstance(given, dict) or given.get("type") != "text" or not isinstance(given.get("text"), str):
        raise _refused(where, f'{where} must be {{"type": "text", "text": ...}}: the model reads text alone')
    if extra := [name for name in given if name not in ("type", "text")]:
        raise _refused(f"{where}.{extra[0]}", f"{where}.{extra[0]} is not supported here: leave it out")
    return str(given["text"])
