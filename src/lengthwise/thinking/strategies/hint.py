"""Hint-infer: a hint is put into the thinking, and code that the model writes after it can be run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lengthwise.core.spec import param
from lengthwise.thinking import sandbox
from lengthwise.thinking.strategy import Closes, End, Put, Strategy, StrategySpec, Watches

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Sampler, Tags
    from lengthwise.thinking.work import State, Work

HINT = "maybe using Python here is a good idea."
FENCE = "```"
_OPEN = re.compile(r"```(\w*)[^\n]*\n(.*)\Z", re.DOTALL)
RAN = "hint: blocks run"


@dataclass(frozen=True)
class Hint(Closes, Watches):
    """Where the thinking would end (or after 'Wait' and 'Alternatively'), a hint is put, and the model goes on.

    With `run`, a closed block of Python is run (`lengthwise.thinking.sandbox`: no files, no network, no processes) and
    what it printed is put after it as a block called 'output', which the model goes on from.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="hint",
        summary="puts a hint into the thinking, 'maybe using Python', and can run the code that follows",
        formula="text</think> -> text + 'Wait, ' + hint, `times` times; ```python code``` -> + ```output result```",
        parts=("close", "watch"),
        papers=(83,),
        source="START (https://arxiv.org/abs/2503.04625), Hint-infer",
        main="times",
        needs=("prefix",),
        needs_tags=True,
        simplified="one hint instead of a library of hints by purpose; code has the standard library's modules for "
        "computing and nothing else, and runs on Linux on x86-64 only; no training on the chains (Hint-RFT)",
        test="tests/oracle/test_hint.py",
    )
    times: int = param(1, "how often the hint is put into a chain")
    at: Literal["end", "words"] = param("end", "end: where the thinking would end; words: after Wait and Alternatively")
    hint: str = param(HINT, "the hint")
    run: bool = param(False, "run blocks of Python that the model closes, locked in")
    blocks: int = param(8, "most blocks that are run in a chain")
    seconds: int = param(5, "CPU time of one block")

    def validate(self) -> None:
        """A hint, and room for it."""
        self.require(min(self.times, self.blocks, self.seconds) > 0, "times, blocks and seconds must be above 0")
        self.require(bool(self.hint.strip()), "hint must not be empty")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """Code must be locked in."""
        why = sandbox.available() if self.run else ""
        return [f"hint:run=true cannot run code here: {why}"] if why else []

    def instead(self, state: State) -> str | None:
        """The hint, in place of the end."""
        if self.at != "end" or state.closes >= self.times:
            return None
        return ("" if not state.thinking or state.thinking[-1].isspace() else " ") + f"Wait, {self.hint}"

    def stops(self, tags: Tags) -> tuple[str, ...]:
        """Words that hints follow, and the ends of blocks."""
        return (*(("Wait", "Alternatively") if self.at == "words" else ()), *((FENCE,) if self.run else ()))

    async def look(self, work: Work, state: State) -> End | Put | None:
        """A hint after a word, a result after a block."""
        given = state.memory.get("hint", 0)
        if self.at == "words" and state.stop in ("Wait", "Alternatively") and given < self.times:
            state.memory["hint"] = given + 1
            return Put(f", {self.hint}")
        if self.run and state.stop == FENCE and (code := _code(state.thinking)):
            ran = state.memory[RAN] = state.memory.get(RAN, 0) + 1
            result = (
                await self._result(code, state.tags)
                if ran <= self.blocks
                else f"(not run: {self.blocks} blocks have been run)"
            )
            return Put(f"\n{FENCE}output\n{result}\n{FENCE}\n")
        return None

    async def _result(self, code: str, tags: Tags | None) -> str:
        """What the code printed, without what would end its block or the section, and why it was stopped if it was."""
        got = await sandbox.run_python(code, seconds=self.seconds)
        text = got.text.strip().replace(FENCE, "'''")
        for tag in (tags.open, tags.close) if tags else ():
            text = text.replace(tag, "")
        why = {"time": "(stopped: out of time)", "output": "(cut: too much output)", "died": "(stopped: out of memory)"}
        return "\n".join(filter(None, [text, why.get(got.reason, "")])) or "(no output)"


def _code(thinking: str) -> str:
    """The Python of the block that is open at the end of `thinking`, '' when none is or it is of something else."""
    parts = thinking.split(FENCE)
    if len(parts) % 2:  # an even number of fences: the one that comes opens a block
        return ""
    found = _OPEN.match(FENCE + parts[-1])
    return found[2] if found and found[1].lower() in ("python", "py", "python3") else ""
