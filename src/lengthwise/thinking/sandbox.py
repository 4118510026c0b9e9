"""Runs Python that a model wrote, as a calculator: no files, no network, no other processes, little time and memory.

A child process imports a few standard modules, gives up all system calls but those that compute with what it has (a
seccomp filter of the Linux kernel, which cannot be taken back), and runs the code. What was printed comes back.

It does not protect from holes in the kernel, nor from the text itself: what the code prints goes into the chain, and
can mislead the model as any text can. The code may use all of one core until its time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from lengthwise.errors import BadInput
from lengthwise.thinking._sandbox_child import NOT_LOCKED

CHILD = Path(__file__).with_name("_sandbox_child.py")


@dataclass(frozen=True)
class Ran:
    """What a piece of code printed, and "done", "time", "output" (too much of it) or "died" (memory, mostly)."""

    text: str
    reason: str


def available() -> str:
    """Why code cannot be run on this machine, '' when it can."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        return ""
    return "code can be kept from files and the network only on Linux on x86-64"


async def run_python(code: str, *, seconds: int = 5, memory: int = 512 * 2**20, most: int = 2000) -> Ran:
    """Run `code` for at most `seconds` of CPU time in `memory` bytes, and return at most `most` characters of output.

    The output is what it printed, and the exception that ended it as one line. Raises BadInput where code cannot be
    locked in.
    """
    if why := available():
        raise BadInput(f"the code is not run: {why}")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-X", "utf8", str(CHILD), str(seconds), str(memory)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
        env={},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    out, reason = bytearray(), "done"
    try:
        async with asyncio.timeout(seconds + 5):  # its own limit is on CPU time; starting takes a moment, too
            with contextlib.suppress(ConnectionError):
                child.stdin.write(code.encode(errors="replace"))
                await child.stdin.drain()
            child.stdin.close()
            while part := await child.stdout.read(4096):
                out += part
                if len(out) > 4 * most:
                    reason = "output"
                    break
            else:
                await child.wait()
    except TimeoutError:
        reason = "time"
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == NOT_LOCKED:
        raise BadInput("the code is not run: the kernel refused to lock it in (seccomp is not allowed here)")
    if reason == "done" and child.returncode:
        reason = "time" if child.returncode == -signal.SIGXCPU else "died"
    text = out.decode(errors="replace")
    if len(text) > most:
        text, reason = text[:most], "output" if reason == "done" else reason
    return Ran(text, reason)
