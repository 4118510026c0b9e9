"""How errors end: one line on stderr and an exit code, never a traceback unless LENGTHWISE_DEBUG is set."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback

import typer

from lengthwise.errors import LengthwiseError

DONE, FAILED, CANNOT, INTERRUPTED, CLOSED = 0, 1, 2, 130, 141
_MRO = typer.BadParameter.__mro__
UsageProblem: type[Exception] = next(c for c in _MRO if c.__name__ == "ClickException")  # typer may bring its own click


def report(error: BaseException) -> int:
    """Write the one line for `error`, if it deserves one, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED if error.code else DONE
    if os.environ.get("LENGTHWISE_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):  # whoever read the output has had enough
        return CLOSED
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        say("interrupted")
        return INTERRUPTED
    text, code = describe(error)
    say(text)
    return code


def describe(error: BaseException) -> tuple[str, int]:
    """(what to tell the user, exit code)."""
    if isinstance(error, LengthwiseError):
        return str(error), int(getattr(error, "exit_code", CANNOT))
    if isinstance(error, UsageProblem):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "lengthwise"
        message = str(error.format_message()).rstrip(". ")  # type: ignore[attr-defined]
        return f"{message[:1].lower()}{message[1:]} ({path} --help)", CANNOT
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or out_of_memory:
        return "out of memory: a shorter input or another stack may fit (lengthwise plan says which)", CANNOT
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"the disk is full{where} (LENGTHWISE_CACHE and TMPDIR choose other places)", CANNOT
        return f"{error.strerror or error}{where}", CANNOT
    return f"unexpected {type(error).__name__}: {error} (a bug: LENGTHWISE_DEBUG=1 shows where)", FAILED


def say(text: str) -> None:
    """One line on stderr, whatever line breaks the text has."""
    with contextlib.suppress(OSError):  # nobody may listen to stderr any more
        print(f"lengthwise: error: {' '.join(text.split())}", file=sys.stderr, flush=True)


def encode_anything() -> None:
    """Let a terminal that lacks a character show another one instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def close(code: int) -> int:
    """Flush stdout; when nobody reads it any more, keep the interpreter from complaining at its end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return report(error)
    return code
