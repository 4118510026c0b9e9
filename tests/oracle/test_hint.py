"""Hints and the code that follows them; and that the code cannot get out."""

from __future__ import annotations

import asyncio
import sys

import pytest

from lengthwise.errors import BadInput, BadParameter
from lengthwise.thinking import Thought, sandbox, think
from lengthwise.thinking.registry import parse, refusals
from lengthwise.thinking.sandbox import run_python
from lengthwise.thinking.strategies.hint import _code
from scripted import Scripted

HERE = sandbox.available() == ""
locked = pytest.mark.skipif(not HERE, reason=sandbox.available())


def run(sampler: Scripted, strategy: str) -> Thought:
    return asyncio.run(think("what is it?", sampler, strategy))


@pytest.mark.parametrize("times", [1, 3])
def test_the_hint_stands_where_the_thinking_would_end(times: int) -> None:
    sampler = Scripted(lambda q, n: "one</think>no", after=lambda text, n: " more</think>yes")
    (chain,) = run(sampler, f"hint:{times}").chains
    assert chain.thinking == "one" + " Wait, maybe using Python here is a good idea. more" * times
    assert (chain.reason, chain.answer) == ("closed", "yes")


def test_the_hint_follows_words() -> None:
    def after(text: str, number: int) -> str:
        return " three\nAlternatively<x</think>yes" if text.endswith("idea.") and "three" not in text else " y</think>z"

    sampler = Scripted(lambda q, n: "one\nWait<two</think>no", after=after)
    (chain,) = run(sampler, "hint:times=2,at=words").chains
    hint = ", maybe using Python here is a good idea."
    assert chain.thinking == f"one\nWait{hint} three\nAlternatively{hint} y"
    (chain,) = run(sampler, "hint:times=1,at=words").chains
    assert chain.thinking == f"one\nWait{hint} three\nAlternatively<x"


def test_only_python_that_is_closed_by_the_next_fence_is_run() -> None:
    assert _code("so\n```python\nprint(1)\n") == "print(1)\n"
    assert _code("so\n```py title\nprint(1)\n") == "print(1)\n"
    assert _code("so\n") == ""  # the fence that comes opens a block
    assert _code("```python\nprint(1)\n```\nand ") == ""
    assert _code("```python\nprint(1)\n```\nand\n```Python\nprint(2)\n") == "print(2)\n"
    assert _code("```bash\nls\n") == ""
    assert _code("```output\n3\n") == ""
    assert _code("```\nprint(1)\n") == ""


@locked
def test_code_is_run_and_its_output_put_back() -> None:
    def after(text: str, number: int) -> str:
        if text.endswith("good idea."):
            return "\n```python\nprint(6*7)\n```"
        return "</think>" + text.rpartition("```output\n")[2].split("\n")[0]

    sampler = Scripted(lambda q, n: "one</think>no", after=after)
    thought = run(sampler, "hint:run=true")
    assert thought.answer == "42"
    assert thought.chains[0].thinking.endswith("```python\nprint(6*7)\n```\n```output\n42\n```\n")
    sampler = Scripted(lambda q, n: "one</think>no", after=lambda text, n: "\n```python\nprint(6*7)\n```</think>x")
    assert "42" not in run(sampler, "hint").chains[0].thinking  # off unless asked for


@locked
def test_output_cannot_end_the_block_or_the_thinking() -> None:
    def after(text: str, number: int) -> str:
        return "</think>yes" if "output" in text else "```python\nprint('`'*3 + '<'+'/think>' + '<think'+'>no')\n```"

    sampler = Scripted(lambda q, n: "one</think>no", after=after)
    (chain,) = run(sampler, "hint:run=true").chains
    assert chain.thinking.endswith("```output\n'''no\n```\n")
    assert chain.answer == "yes"


@locked
def test_no_more_blocks_are_run_than_allowed() -> None:
    def after(text: str, number: int) -> str:
        blocks = text.count("```python")
        return f"\n```python\nprint({blocks}+100)\n```" if blocks < 3 else "</think>done"

    thought = run(Scripted(lambda q, n: "```python\nprint(100)\n```", after=after), "hint:run=true,blocks=2")
    said = thought.chains[0].thinking
    assert "```output\n100\n" in said
    assert "```output\n101\n" in said
    assert "(not run: 2 blocks have been run)" in said


@locked
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("print(sum(range(5)))", "10"),
        ("import math\nprint(math.comb(6, 3))", "20"),
        ("print(1)\n1/0", "1\nZeroDivisionError: division by zero (line 2)"),
        ("a = = 2", "SyntaxError: invalid syntax (<code>, line 1)"),
        ("print('é')", "é"),
        ("raise SystemExit(3)", ""),
    ],
)
def test_code_computes(code: str, says: str) -> None:
    got = asyncio.run(run_python(code))
    assert (got.text.strip(), got.reason) == (says, "done")


@locked
@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open('file', 'w')",
        "import os; os.listdir('/')",
        "import os; os.remove('/tmp/nothing')",
        "import os; os.fork()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.kill(1, 0)",
    ],
)
def test_code_cannot_get_out(code: str) -> None:
    assert "not permitted" in asyncio.run(run_python(code)).text.lower()


@locked
def test_system_calls_fail_however_they_are_made() -> None:
    code = (
        "import ctypes\ncall = ctypes.CDLL(None, use_errno=True).syscall\n"
        "for n in (2, 41, 42, 49, 56, 57, 59, 62, 101, 257, 319, 321, 322, 425, 435, 437, 0x40000000 + 41):\n"
        "    print(call(n, 0, 0, 0), ctypes.get_errno())\n"
    )
    lines = asyncio.run(run_python(code)).text.splitlines()
    assert lines == ["-1 1"] * 17  # open, socket, connect, bind, clone, fork, execve, kill, ptrace, openat, ...


@locked
def test_code_is_bounded_in_time_memory_and_output() -> None:
    async def all_of_them() -> list[sandbox.Ran]:
        codes = ["while True: pass", "x = bytearray(600 * 2**20)", "while True: print('y' * 99)", "print('z' * 3000)"]
        return [await run_python(code, seconds=1) for code in codes]

    time, memory, much, long = asyncio.run(all_of_them())
    assert time.reason == "time"
    assert memory.text.startswith("MemoryError")
    assert (much.reason, len(much.text), long.reason, len(long.text)) == ("output", 2000, "output", 2000)


@locked
def test_a_cancelled_run_leaves_no_process() -> None:
    async def cancelled() -> int | None:
        made: list[asyncio.subprocess.Process] = []
        create = asyncio.create_subprocess_exec

        async def spy(*args, **options):  # type: ignore[no-untyped-def]
            made.append(await create(*args, **options))
            return made[-1]

        asyncio.create_subprocess_exec = spy  # type: ignore[assignment]
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await run_python("while True: pass")
        finally:
            asyncio.create_subprocess_exec = create
        return made[0].returncode

    assert asyncio.run(cancelled()) == -9


def test_where_code_cannot_be_locked_in_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BadInput, match="only on Linux"):
        asyncio.run(run_python("print(1)"))
    assert "hint:run=true cannot run code here" in refusals(parse("hint:run=true"), None)[0]
    assert refusals(parse("hint"), None) == []


@pytest.mark.parametrize("strategy", ["hint:0", "hint:at=start", "hint:blocks=0", "hint:seconds=0"])
def test_values_out_of_range_are_refused(strategy: str) -> None:
    with pytest.raises(BadParameter):
        parse(strategy)
