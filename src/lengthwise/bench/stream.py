"""Generated items without end, and the final answer of a text; what tasks beyond retrieval are built from."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from typing import TypeVar

from lengthwise.bench.keys import Supply, endless_keys

T = TypeVar("T")


def stream(seed: float, make: Callable[[random.Random, int], T]) -> Supply[T]:
    """Items make(draw, index) for index 0, 1, and so on."""
    draw = random.Random(seed)
    return Supply(make(draw, index) for index in itertools.count())


def names(seed: float) -> Supply[str]:
    """Distinct names without end."""
    return Supply(endless_keys(random.Random(seed)))


def final(answer: str) -> str:
    """What follows the thinking: the text after the last </think>, or the whole text."""
    return answer.rpartition("</think>")[2]


def integers(text: str) -> list[int]:
    """All whole numbers of a text."""
    return [int(n) for n in re.findall(r"-?\d+", text)]
