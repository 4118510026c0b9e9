"""The linear layer by torch's own operator."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] times weight [N, K], plus bias [N]."""
    return functional.linear(x, weight, bias)
