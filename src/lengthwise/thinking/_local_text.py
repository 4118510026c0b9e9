"""The ids of a chain and the text they stand for: grown token by token, cut at stop strings, added to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

BROKEN = "\ufffd"  # what a decoder writes for a character of which bytes are missing


class Words:
    """Encodes and decodes with a tokenizer, without special tokens put in or left out."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.decode: Callable[[tuple[int, ...]], str] = functools.lru_cache(1 << 16)(self._decode)
        some = tokenizer.convert_ids_to_tokens(self._encode("a"))
        self._leads = bool(some) and str(some[0]).startswith("\u2581")  # a blank is put before every text

    def encode(self, text: str) -> list[int]:
        """Ids of a text that goes on from another one."""
        if self._leads and text and not text.startswith(" "):
            start = self._encode("\n")
            whole = self._encode("\n" + text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _decode(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class _Stop:
    """A stop string that came: the text before it ends inside or before id `index`, after `rest` of that id's text.

    `clean`: it ended where a token ends.
    """

    string: str
    index: int
    rest: str
    clean: bool


@dataclass
class Script:
    """`ids` begin with the prompt's, `start` of them; `text` is what follows, without a stop string that just came.

    Characters whose bytes are not all there are not in the text until they are.
    """

    words: Words
    ids: list[int]
    text: str = ""
    start: int = 0
    ends: list[int] = field(default_factory=list)  # length of the text after each id behind the prompt
    own: int = 0  # ids behind the prompt from which on the model has written; stop strings lie in these
    stopped: _Stop | None = None
    _window: tuple[int, int] = (0, 0)  # ids [a, b) stand for text that is out; [a, ...) are decoded for more

    @classmethod
    def of(cls, words: Words, prompt: Sequence[int]) -> Script:
        """Nothing written yet."""
        n = len(prompt)
        return cls(words, list(prompt), start=n, _window=(max(0, n - 1), n))

    def copy(self) -> Script:
        """The same, to go its own way."""
        return Script(
            self.words, list(self.ids), self.text, self.start, list(self.ends), self.own, self.stopped, self._window
        )

    def grow(self, token: int, stops: Sequence[str]) -> str:
        """One more token of the model's; returns the stop string that came with it, which is cut off, or ''."""
        before = len(self.text)
        self.ids.append(token)
        a, b = self._window
        whole = self.words.decode(tuple(self.ids[a:]))
        if not whole.endswith(BROKEN):
            self.text += whole[len(self.words.decode(tuple(self.ids[a:b]))) :]
            self._window = (b, len(self.ids))
        self.ends.append(len(self.text))
        return self._cut(before, stops) if len(self.text) > before else ""

    def settle(self, text: str = "") -> int:
        """Forget the stop string that came, unless `text` begins with it; then add `text`. Returns ids unchanged."""
        kept, stop, self.stopped = len(self.ids), self.stopped, None
        if stop is not None:
            if stop.clean and text.startswith(stop.string):
                self.text += stop.string
                text = text[len(stop.string) :]
            else:
                again = stop.string if text.startswith(stop.string) else ""
                kept = self.start + stop.index
                del self.ids[kept:], self.ends[stop.index :]
                self._add(stop.rest + again, len(stop.rest))
                text = text[len(again) :]
            self._mark()
        if text:
            self._add(text)
            self._mark()
        return kept

    def _add(self, text: str, there: int = 0) -> None:
        """Ids of `text`; all but its first `there` characters are new to the text, too."""
        more = self.words.encode(text) if text else []
        self.ids += more
        self.text += text[there:]
        self.ends += [len(self.text)] * len(more)

    def _mark(self) -> None:
        """What comes now is the model's own."""
        self.own = len(self.ends)
        self._window = (max(0, len(self.ids) - 1), len(self.ids))

    def _cut(self, before: int, stops: Sequence[str]) -> str:
        """Cut at the stop string that ends first in what came after `before` characters; the longest of several."""
        first = self.ends[self.own - 1] if self.own else 0
        found = []
        for stop in stops:
            at = self.text.find(stop, max(first, before - len(stop) + 1)) if stop else -1
            if at >= 0:
                found.append((at + len(stop), at, stop))
        if not found:
            return ""
        end, at, stop = min(found)
        index = next(i for i in range(self.own, len(self.ends)) if self.ends[i] > at)
        begun = self.ends[index - 1] if index else 0
        while index > self.own and self.ends[index - 1] == (self.ends[index - 2] if index > 1 else 0):
            index -= 1  # the first bytes of the same character
        self.stopped = _Stop(stop, index, self.text[begun:at], end == len(self.text))
        self.text = self.text[:at]
        return stop
