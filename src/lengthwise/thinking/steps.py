"""Splits a thinking text into its steps, and counts the words with which a model doubts itself."""

from __future__ import annotations

import re
from collections import Counter

MARKERS = (
    "wait|hmm|but|so|now|then|next|first|second|third|finally|therefore|thus|hence|also|because|since|alternatively|"
    "however|actually|maybe|perhaps|check|verify|double-check|recheck|let me|let's|let us|okay|ok|alright|step"
)  # words that begin a step after the end of a sentence
REFLECTIONS = (
    "wait|hmm|alternatively|however|actually|check|double-check|recheck|re-check|verify|reconsider|rethink|"
    "on second thought|let me think again|mistake|reflect"
)

_ENDS = re.compile(rf"\n+|;(?=\s|$)|[.!?][)\]\"'*]*(?=\s+(?:{MARKERS})\b)", re.IGNORECASE)
_REFLECTS = re.compile(rf"(?<![\w-])(?:{REFLECTIONS})\b(?!-)", re.IGNORECASE)


def steps(text: str) -> list[str]:
    """The steps of a thinking text, in order; ``"".join(steps(text)) == text``, and '' has none.

    A step ends at a line break, at a ';' before a blank ("3+4=7; 7+2=9;"), and at the end of a sentence when the next
    one begins with a word that begins steps ("Wait", "So", "Let me", "Step 2"; `MARKERS`). Line breaks stay with the
    step before them, other blanks with the one after. Blanks alone are no step. Code is split like any other lines.
    """
    parts: list[str] = []
    start = 0
    for stop in [*(m.end() for m in _ENDS.finditer(text)), len(text)]:
        part, start = text[start:stop], stop
        if (not part.strip() and parts) or (part and parts and not parts[-1].strip()):
            parts[-1] += part
        elif part:
            parts.append(part)
    return parts


def reflections(text: str) -> Counter[str]:
    """How often each word or phrase of `REFLECTIONS` is in `text`, in lower case; ``.total()`` is their number."""
    return Counter(found.lower() for found in _REFLECTS.findall(text))
