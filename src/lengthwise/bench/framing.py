"""From a sample to what a model reads: its chat template, or plain text that ends in 'Answer:'."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from lengthwise._reader import Prompt, chat_frame, reads_in_chat, starts_with_bos
from lengthwise.bench.task import Sample
from lengthwise.errors import BadInput

Template = Literal["auto", "plain", "chat"]
TEMPLATES: tuple[Template, ...] = ("auto", "plain", "chat")


class Framing:
    """How samples are put to one model. `template` 'auto' is the tokenizer's chat template if it has one for texts.

    The document, what stands before it and what follows it are encoded apart, so a stack can read them apart.
    Raises BadInput when 'chat' is asked of a tokenizer without a chat template.
    """

    def __init__(self, tokenizer: Any, template: Template = "auto") -> None:
        if template == "chat" and not getattr(tokenizer, "chat_template", None):
            raise BadInput("this model has no chat template: use the plain one")
        self.tokenizer = tokenizer
        self.template: Template = ("chat" if reads_in_chat(tokenizer) else "plain") if template == "auto" else template
        self.head, self.tail = chat_frame(tokenizer) if self.template == "chat" else ("", "")
        self.starts_with_bos = starts_with_bos(tokenizer)
        self._count = lru_cache(maxsize=4096)(lambda text: len(self.ids(text)))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text on its own."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def before(self) -> list[int]:
        """Token ids before the document."""
        if not self.head and self.starts_with_bos:
            return [self.tokenizer.bos_token_id]
        return self.ids(self.head)

    def lead(self) -> str:
        """What stands between the document and the question."""
        return "\n\n" if self.template == "chat" else "\nQuestion:"

    def question(self, sample: Sample) -> str:
        """The question, with the space before it, which belongs to its first token."""
        return sample.question if self.template == "chat" else f" {sample.question}"

    def after(self, sample: Sample) -> str:
        """What follows the question, up to where the model goes on."""
        if self.template == "chat":
            return self.tail + sample.prefix
        return " Answer:" + (f" {sample.prefix}" if sample.prefix else "")

    def prompt(self, sample: Sample) -> tuple[Tensor, list[tuple[int, int]], Prompt]:
        """(document ids [n], the n character spans of its tokens, what is around it)."""
        pieces = (self.before(), self.ids(self.lead()), self.ids(self.question(sample)), self.ids(self.after(sample)))
        head, lead, question, tail = (torch.tensor(p, dtype=torch.long) for p in pieces)
        encoded = self.tokenizer(sample.document, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        document = torch.tensor(encoded["input_ids"], dtype=torch.long)
        return document, list(encoded["offset_mapping"]), Prompt(head, lead, question, tail)

    def text(self, sample: Sample) -> str:
        """The whole prompt as text."""
        return f"{self.head}{sample.document}{self.lead()}{self.question(sample)}{self.after(sample)}"

    def answer_tokens(self, sample: Sample) -> int:
        """The most tokens to write: the right answer's and the spare ones."""
        return self._count(sample.answer) + sample.spare

    def size(self, sample: Sample) -> int:
        """Tokens of the prompt and of the answer together."""
        around = len(self.before()) + sum(
            self._count(t) for t in (self.lead(), self.question(sample), self.after(sample))
        )
        return around + len(self.ids(sample.document)) + self.answer_tokens(sample)

    def digest(self) -> str:
        """What of the tokenizer and the template a sample depends on, as 12 hex digits."""
        probe = 'The pass key for red river is 48213.\n{"key_1": "äöü 漢字"} def f(x): return 0.5'
        key = f"{self.ids(probe)} {len(self.tokenizer)} {self.head!r} {self.tail!r} {self.template} {self.before()}"
        return hashlib.sha256(key.encode()).hexdigest()[:12]
