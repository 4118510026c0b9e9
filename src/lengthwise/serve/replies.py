"""Answers in the protocol's words: completions, chunks of a stream, and what was paid for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lengthwise.serve.asked import Asked
from lengthwise.thinking import Sampler, Thought, Written

VERSION = 1
CHUNK = 64  # characters of one chunk of a finished text


@dataclass(frozen=True)
class Reply:
    """One answer on its way to a client; `model` is the name that the client knows."""

    id: str
    created: int
    model: str
    asked: Asked

    def completion(self, thought: Thought, sampler: Sampler) -> dict[str, Any]:
        """The whole answer."""
        chain = _chosen(thought)
        message: dict[str, Any] = {"role": "assistant", "content": thought.text, "refusal": None}
        if self.asked.reasoning:
            message["reasoning_content"] = _thinking(chain, sampler)
        finish = _finish(chain, self.asked, sampler)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(thought, sampler),
            "lengthwise": self._ledger(thought, sampler),
        }

    def chunks(self, thought: Thought, sampler: Sampler) -> Iterator[dict[str, Any]]:
        """What follows `opening`: reasoning if asked for, the answer, its end with the ledger, usage if asked for."""
        chain = _chosen(thought)
        if self.asked.reasoning:
            yield from (self._chunk({"reasoning_content": piece}) for piece in _pieces(_thinking(chain, sampler)))
        yield from (self._chunk({"content": piece}) for piece in _pieces(thought.text))
        yield self._chunk({}, _finish(chain, self.asked, sampler)) | {"lengthwise": self._ledger(thought, sampler)}
        if self.asked.include_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(thought, sampler)}

    def opening(self) -> dict[str, Any]:
        """The first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _ledger(self, thought: Thought, sampler: Sampler) -> dict[str, Any]:
        """How the answer came about and what it cost; chains without their texts."""
        kept = ("answer", "reason", "thinking_tokens", "answer_tokens", "put_tokens", "finished", "weight")
        told = thought.to_json()
        return {
            "version": VERSION,
            "strategy": thought.strategy,
            "answer": thought.answer,
            "confidence": thought.confidence,
            "spent": told["spent"],
            "most_thinking": self.asked.most_thinking,
            "most_answer": self.asked.most_answer,
            "chains": [{name: chain[name] for name in kept} for chain in told["chains"]],
            "notes": list(dict.fromkeys([*thought.notes, *getattr(sampler, "notes", ())])),
        }


def usage(thought: Thought, sampler: Sampler) -> dict[str, Any]:
    """All tokens that were paid for: those of every chain, of cancelled ones and of side questions, too.

    `reasoning_tokens` are those that the client does not see in the answer.
    """
    spent, chain = thought.spent, _chosen(thought)
    written = spent.thinking_tokens + spent.answer_tokens + spent.other_tokens
    if chain is None:  # a text that a strategy made from several
        seen = min(written, sampler.count(thought.text))
    else:
        seen = chain.tokens if sampler.tags is None else chain.answer_tokens
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": spent.prompt_tokens + written,
        "completion_tokens_details": {"reasoning_tokens": written - seen},
    }


def _chosen(thought: Thought) -> Written | None:
    """The chain whose text is the answer, if it is a chain's."""
    ended = [c for c in thought.chains if c.reason != "cancelled"]
    return next((c for c in ended if c.text == thought.text and c.answer == thought.answer), None)


def _thinking(chain: Written | None, sampler: Sampler) -> str:
    """What the chosen chain thought; without thinking sections that is its answer, and nothing of its own."""
    return "" if chain is None or sampler.tags is None else chain.thinking


def _finish(chain: Written | None, asked: Asked, sampler: Sampler) -> str:
    """'length' when the answer was cut off, or never begun, at a limit; an answer just as long as its limit counts."""
    if chain is None:
        return "stop"
    if sampler.tags is None:
        return "length" if chain.reason == "budget" else "stop"
    cut = chain.reason == "unfinished" or chain.answer_tokens >= asked.most_answer
    return "length" if cut else "stop"


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + CHUNK] for start in range(0, len(text), CHUNK))
