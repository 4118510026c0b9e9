"""Work done in a forked child, for tests that bound a process's resources or kill it."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(work: Callable[[], Any]) -> tuple[int, int]:
    """(process id, file descriptor of a pipe that brings what `work` returned, or nothing if it was killed)."""
    back, forth = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(back)
            try:
                result = True, work()
            except BaseException:
                result = False, traceback.format_exc()
            with os.fdopen(forth, "wb") as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)
    os.close(forth)
    return pid, back


def finish(pid: int, pipe: int) -> Any:
    """What the child returned; None when it was killed. Raises AssertionError with its traceback when it failed."""
    with os.fdopen(pipe, "rb") as back:
        data = back.read()
    os.waitpid(pid, 0)
    if not data:
        return None
    good, result = pickle.loads(data)
    assert good, result
    return result


def run(work: Callable[[], Any]) -> Any:
    """`work()` in a child of its own."""
    return finish(*start(work))


def peak(work: Callable[[], Any]) -> int:
    """By how many bytes this process's resident memory rose at most while `work` ran (Linux only).

    A forked child meets the pages of libraries anew: let it do the like on a small scale before.
    """
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(what: str = "RssAnon") -> int:
    """Bytes of memory of its own that this process has now, or another line of its status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) * 1024
