"""Checks the chains of the small problems (lengthwise.bench.problems) step by step, by each step's own arithmetic.

    PYTHONPATH=benchmarks lengthwise think ... --strategy best-of-n:verifier=step_checker:check

A step is right when it follows from the one before: a sum of what is written, a carry taken over, a move made on the
list, a value that was given. What is not checked: whether every term of the question was used, and in which order. A
step that the chain takes back ('wait', or another pass after 'check:') counts as right.
"""

from __future__ import annotations

import re

SUM = re.compile(r"(\d+)\+(\d+)=(\d+);?$")
CARRY = re.compile(r"(\d+)\+(\d+)\+(\d+)=(\d+);?$")
MOVE = re.compile(r"(push \d|drop|swap|reverse): ([\d ]+?);?$")
GIVEN = re.compile(r"(\w+)=(\w+);?$")


def check(question: str, steps: list[str]) -> list[float]:
    """1.0 for each step that holds, 0.0 for each other; a last step of digits alone is the answer."""
    out = [1.0] * len(steps)
    start = _start(question)
    state, written = start, ""  # what the next step goes on from; the digits of an addition, from the right
    begun = 0
    for index, step in enumerate(steps):
        line = step.strip()
        if line.startswith(("check:", "wait; check:")):
            out[begun:index] = [1.0] * (index - begun)  # another pass takes the place of this one
            state, written, begun, line = start, "", index, line.partition("check:")[2].strip()
        if line.startswith("wait"):
            out[max(index - 1, begun)] = 1.0
            continue
        taken_back = index + 1 < len(steps) and steps[index + 1].strip() == "wait;"
        if found := CARRY.match(line):
            x, y, carry, result = map(int, found.groups())
            right = x + y + carry == result and carry == (int(state) if state else 0)
            after, digits = str(result // 10), str(result % 10) + written
        elif found := SUM.match(line):
            a, b, result = map(int, found.groups())
            right = (a + b) % 10 == result and found[1] == state
            after, digits = found[3], written
        elif found := MOVE.match(line):
            right = _move(state, found[1]) == found[2]
            after, digits = found[2], written
        elif found := GIVEN.match(line):
            right = bool(re.search(rf"\b{found[1]}={found[2]}\b", question))
            after, digits = found[2], written
        elif index == len(steps) - 1 and re.fullmatch(r"[\d ]+\.?", line):
            right = line.rstrip(".") == ((state if state != "0" else "") + written if written else state)
            after, digits = state, written
        else:
            right, after, digits = not line, state, written
        out[index] = float(right)
        if not taken_back:
            state, written = after, digits
    return out


def _start(question: str) -> str:
    """What the first step goes on from: the first term of a sum, the list, or nothing."""
    if found := re.search(r"list ([\d ]+) after", question):
        return found[1]
    found = re.search(r"What is (\d)\+.* mod 10", question)
    return found[1] if found else ""


def _move(state: str, name: str) -> str:
    items = state.split()
    if name.startswith("push"):
        items.append(name[-1])
    elif name == "drop":
        items = items[1:]
    elif name == "reverse":
        items.reverse()
    elif items:
        items[0], items[-1] = items[-1], items[0]
    return " ".join(items)
