"""The plain model, as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.spec import Method, Spec


@dataclass(frozen=True)
class Dense(Method):
    """Claims no seam: plain causal attention through the house's cache and step. The neutral element of stacks."""

    spec: ClassVar[Spec] = Spec(
        name="dense",
        family="attention",
        summary="plain causal attention; the neutral element of every stack",
        formula="out_m = sum_{n<=m} softmax_n(q_m . k_n / sqrt(d)) v_n",
        seams=(),
        exact_when="always",
        neutral={},
        test="tests/contract/test_neutral.py",
    )
