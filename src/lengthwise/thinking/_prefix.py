"""Ways to have a server go on from a text that is put into the assistant's turn, thinking section included.

All of them send a plain prompt to /v1/completions, made by the model's own chat template and followed by the text:
chat completions cannot do it for reasoning models. With vLLM's `continue_final_message` the templates of the Qwen3
family put an empty thinking section before the text and those of DeepSeek-R1 cut off all before its end (vLLM issue
28089); llama.cpp refuses a trailing assistant message while thinking is on (llama.cpp issue 21889); DeepSeek's
`prefix` takes finished thinking, and says nothing of going on with it. The text is cut into tokens anew, which may be
others than those that the model wrote.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from lengthwise.errors import BadInput, EndpointError
from lengthwise.thinking.chain import Messages, Tags
from lengthwise.thinking.tags import SWITCH, render

Continuation = Literal["none", "tokenizer", "vllm", "llama.cpp"]
CONTINUATIONS: dict[Continuation, str] = {
    "none": "the server cannot go on from a text",
    "tokenizer": "the prompt is made here by the tokenizer's chat template, and sent as token ids",
    "vllm": "vLLM's /tokenize applies the chat template, and the prompt is sent as token ids",
    "llama.cpp": "llama.cpp's /apply-template makes the prompt, which is sent as text",
}
Post = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]  # (path from the server's root, body) -> reply
TAIL = 32  # tokens at the end of a prompt that are looked at for the opening tag


@dataclass(frozen=True)
class Head:
    """A prompt up to where the chain's text begins: made by the template, then `lead`."""

    prompt: str | tuple[int, ...]
    lead: str = ""


class Prefix:
    """Makes prompts as `kind` says. `post` asks the server; `tokenizer` is that of the model, for "tokenizer"."""

    def __init__(self, kind: Continuation, model: str, tags: Tags, tokenizer: Any, post: Post) -> None:
        if kind == "tokenizer" and tokenizer is None:
            raise BadInput(
                "continuation 'tokenizer' needs the model's tokenizer (its folder or name): it makes the prompt"
            )
        self.kind, self.model, self.tags, self.tokenizer, self.post = kind, model, tags, tokenizer, post

    async def head(self, messages: Messages, think: bool) -> Head:
        """The prompt of messages, inside an open thinking section; without `think`, after an empty one."""
        if self.kind == "tokenizer":
            return Head(render(messages, self.tokenizer, self.tags, think))
        asked: dict[str, Any] = {"messages": [dict(m) for m in messages]}
        if not think:
            asked["chat_template_kwargs"] = {SWITCH: False}
        prompt: str | tuple[int, ...]
        if self.kind == "llama.cpp":
            prompt = tail = await self._text("/apply-template", asked)
        else:
            prompt = await self._ids(asked | {"add_generation_prompt": True})
            tail = await self._text("/detokenize", {"model": self.model, "tokens": list(prompt[-TAIL:])})
        opened = tail.rstrip().endswith(self.tags.open)
        lead = "" if opened else self.tags.open
        if not think:
            lead = "" if tail.rstrip().endswith(self.tags.close) else lead + self.tags.close
        return Head(prompt, lead)

    async def whole(self, head: Head, text: str) -> str | list[int]:
        """The prompt with the text after it, as the server is given it."""
        if isinstance(head.prompt, tuple):
            after = f"{head.lead}{text}"
            return [*head.prompt, *(await self._ids({"prompt": after, "add_special_tokens": False}) if after else ())]
        whole = f"{head.prompt}{head.lead}{text}"
        if self.kind == "tokenizer":
            return [int(i) for i in self.tokenizer.encode(whole, add_special_tokens=False)]
        return whole

    async def _ids(self, body: dict[str, Any]) -> tuple[int, ...]:
        tokens = (await self.post("/tokenize", {"model": self.model} | body)).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(t, int) for t in tokens):
            raise EndpointError("the server's /tokenize gave no tokens: is it vLLM? (continuation 'vllm' needs it)")
        return tuple(tokens)

    async def _text(self, path: str, body: dict[str, Any]) -> str:
        prompt = (await self.post(path, body)).get("prompt")
        if not isinstance(prompt, str):
            raise EndpointError(f"the server's {path} gave no text: is it what continuation '{self.kind}' says?")
        return prompt
