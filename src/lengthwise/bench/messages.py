"""A sample as one user message of a chat, and how long it is."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from lengthwise.bench.framing import Framing
from lengthwise.bench.task import Sample
from lengthwise.core.remote import BYTES_PER_TOKEN, FRAME_TOKENS


class Messages:
    """How long samples are as one user message, counted by a tokenizer or estimated from their bytes.

    The estimate is 3.2 bytes of UTF-8 a token. English words have 4 to 5, so samples of prose come out shorter than
    asked for, not longer; rows of numbers and hexadecimal keys may come out longer.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.framing = Framing(tokenizer, "plain") if tokenizer is not None else None
        self._few = lru_cache(maxsize=4096)(self.count)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        if self.framing is not None:
            return len(self.framing.ids(text))
        return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)

    def text(self, sample: Sample) -> str:
        """The user message: the document, a blank line, the question and how the answer should begin."""
        return sample.document + self._asked(sample)

    def _asked(self, sample: Sample) -> str:
        begin = f" Answer with one line that begins with: {sample.prefix}" if sample.prefix else ""
        return f"\n\n{sample.question}{begin}"

    def answer_tokens(self, sample: Sample) -> int:
        """The most tokens to write: the prefix, which the model repeats, the right answer and the spare ones."""
        return self._few(sample.prefix + sample.answer) + sample.spare

    def size(self, sample: Sample) -> int:
        """Tokens of the message, the server's template around it and the answer."""
        return self.count(sample.document) + self._few(self._asked(sample)) + FRAME_TOKENS + self.answer_tokens(sample)

    def digest(self) -> str:
        """What of the counting a sample depends on."""
        return f"estimate-{BYTES_PER_TOKEN}" if self.framing is None else f"messages-{self.framing.digest()}"
