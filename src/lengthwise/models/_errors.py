"""The one error of this room that the house does not have."""

from __future__ import annotations

from lengthwise.errors import LengthwiseError


class ModelError(LengthwiseError):
    """A model that is known or present but cannot be fetched, read or kept."""


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, or its type's name: libraries below like to write paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
