"""Keys and values in 8 bits behind a 16-bit residual (after KIVI, arXiv 2402.02750)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.cache._integers import Integers
from lengthwise.core.spec import Spec


@dataclass(frozen=True)
class Int8(Integers):
    """Stores tokens older than the residual in 8 bits; they are decoded as they are read."""

    bits = 8

    spec: ClassVar[Spec] = Spec(
        name="int8",
        family="cache",
        summary="8-bit keys and values with a 16-bit residual of recent tokens",
        formula="x ~ lo + step * code, step = (max-min)/(2^8-1) per token, head and group of channels",
        seams=("format",),
        source="after KIVI, arXiv 2402.02750 (residual 128)",
        exact_when="the input is no longer than the residual",
        refuses="groups that do not divide the head dimension",
        simplified="keys are coded per token, like values (KIVI: per channel over groups of tokens), "
        "so that any eviction can move codes without coding them again",
        neutral={"residual": 1 << 20},
        test="tests/oracle/test_store.py",
    )
