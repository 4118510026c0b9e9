"""Errors that a user can act on: one clear line each, shown by the command line without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LengthwiseError(Exception):
    """Base of every error that says what the user should do; the command line prints it and exits with 2."""


class UnknownMethod(LengthwiseError):
    """A stack names a method that no room and no installed package provides."""


class MethodCollision(LengthwiseError):
    """Two providers claim the same method name."""


class BadParameter(LengthwiseError):
    """A method was given a parameter that it lacks, or a value of the wrong type or range."""


class StackRefused(LengthwiseError):
    """The methods of a stack (or strategies), or a stack and a model, do not fit together; `reasons` says why."""

    def __init__(self, stack: str, reasons: list[str], kind: str = "stack") -> None:
        self.stack = stack
        self.reasons = reasons
        super().__init__(f"the {kind} '{stack}' is refused: " + "; ".join(reasons))


class NothingFired(LengthwiseError):
    """The stack was attached and the model ran, but a method of the stack was never consulted."""


class BadInput(LengthwiseError):
    """A document, question or length that cannot be used as it is."""


class UnknownModel(LengthwiseError):
    """A model name that is neither packaged, nor a folder, nor a GGUF file, nor reachable on the hub."""


class MissingExtra(LengthwiseError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'lengthwise[{extra}]'")


class SessionError(LengthwiseError):
    """A saved session cannot be used: torn, of another model or stack, or of another format version."""


class StoreError(LengthwiseError):
    """Keys and values cannot be held or read back: no memory, no room on the disk, or a file that cannot be read."""


class UnknownTask(LengthwiseError):
    """A task name that no file of `bench/tasks` and no installed package provides."""


class EndpointError(LengthwiseError):
    """A model's server refused a request, gave something else than a chat completion, or did not answer at all."""


def did_you_mean(name: str, known: Iterable[str], most: int = 2) -> str:
    """What an error about an unknown name ends with: the nearest known ones, '' when none is near."""
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
