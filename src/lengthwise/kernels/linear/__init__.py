"""A linear layer for one token, as a decoding step needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.linear import cpu, naive

__all__ = ["linear"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, threads: int | None = None) -> Tensor:
    """x [..., K] times weight [N, K], plus bias [N]: [..., N].

    One vector of a dtype that the kernels read goes through them, where no gradient is wanted: its sums are float32 in
    an order that does not depend on the threads. All else is torch's operator. Raises BadInput for shapes that do not
    fit.
    """
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        raise BadInput(f"linear got {list(x.shape)} for a weight {list(weight.shape)}")
    one = x.numel() == x.shape[-1] and x.stride(-1) == 1 == weight.stride(1) and weight.numel() > 0
    known = x.dtype in _DTYPES and x.dtype == weight.dtype and (bias is None or x.dtype == bias.dtype)
    recorded = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (x, weight, bias))
    if not one or not known or recorded or library.backend(x.device) != "cpu":
        return naive.linear(x, weight, bias)
    return cpu.linear(x, weight, bias, threads)
