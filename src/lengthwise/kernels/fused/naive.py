"""RMSNorm, rotary embedding and SiLU times as a Llama layer of transformers computes them, operator by operator."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Statistics in float32, rounded to the dtype of x, then times the weight."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Each half of the channels with the other, in the dtype of q; cos and sin broadcast against q and k."""
    return q * cos + _other_half(q) * sin, k * cos + _other_half(k) * sin


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate), rounded, times up."""
    return torch.nn.functional.silu(gate) * up


def _other_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
