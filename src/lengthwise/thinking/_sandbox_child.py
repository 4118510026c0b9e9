"""The child process of `sandbox`: locks itself in, then runs the code that stands on its standard input.

    python -I -S _sandbox_child.py CPU_SECONDS BYTES

The lock is a seccomp filter (Linux, x86-64) that lets through just the calls below; all others fail with EPERM. Opening
a file, a socket or a process is none of them, so what the code may import has to be imported before.
"""

from __future__ import annotations

import bisect
import cmath
import collections
import copy
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import heapq
import itertools
import json
import math
import numbers
import operator
import random
import re
import resource
import statistics
import string
import struct
import sys
import textwrap
import time
import traceback
import typing

MODULES = (
    bisect, cmath, collections, copy, dataclasses, datetime, decimal, enum, fractions, functools, heapq, itertools,
    json, math, numbers, operator, random, re, statistics, string, textwrap, time, typing,
)  # fmt: skip
CALLS = (
    0, 1, 3, 5, 8,  # read, write, close, fstat, lseek
    9, 10, 11, 12, 25, 28,  # mmap, mprotect, munmap, brk, mremap, madvise
    13, 14, 15, 131,  # rt_sigaction, rt_sigprocmask, rt_sigreturn, sigaltstack
    24, 39, 60, 186, 202, 231,  # sched_yield, getpid, exit, gettid, futex, exit_group
    63, 79, 96, 98, 100, 201, 228, 229, 318,  # uname, getcwd, times and clocks, getrandom
)  # fmt: skip
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
X86_64 = 0xC000003E
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
NOT_LOCKED = 97  # exit code


def lock() -> bool:
    """Give up all system calls but CALLS, for good."""

    def rule(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    rules = [rule(LOAD, 0, 0, 4), rule(EQUAL, 1, 0, X86_64), rule(RETURN, 0, 0, KILL), rule(LOAD, 0, 0, 0)]
    for number in CALLS:
        rules += [rule(EQUAL, 0, 1, number), rule(RETURN, 0, 0, ALLOW)]
    rules.append(rule(RETURN, 0, 0, REFUSE))
    block = ctypes.create_string_buffer(b"".join(rules))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(block)))
    libc, zero = ctypes.CDLL(None), ctypes.c_ulong(0)
    if libc.prctl(NO_NEW_PRIVILEGES, ctypes.c_ulong(1), zero, zero, zero):
        return False
    return not libc.prctl(SECCOMP, ctypes.c_ulong(FILTER), program, zero, zero)


def main() -> None:
    """Read, lock, run, and say in one line what went wrong."""
    code = sys.stdin.read()
    seconds, memory = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not lock():
        sys.exit(NOT_LOCKED)
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    except SystemExit:
        pass
    except BaseException as error:
        lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == "<code>"]
        where = f" (line {lines[-1]})" if lines else ""
        print(f"{type(error).__name__}: {error}{where}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
