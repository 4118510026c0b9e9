"""Integer forms of keys and values: asymmetric uniform codes for groups of channels of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Stores
from lengthwise.core.spec import Method, param
from lengthwise.kernels import Coded


@dataclass(frozen=True)
class IntCodec:
    """x ~ lo + step * code, code in 0..2^bits-1, lo and step in float16 for each token, head and group of channels."""

    bits: int
    group: int

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """[n, H, D] -> codes uint8 [n, H, D * bits / 8], lo and step float16 [n, H, D / group]."""
        grouped = x.float().reshape(*x.shape[:-1], -1, min(self.group, x.shape[-1]))
        lo, hi = grouped.amin(-1), grouped.amax(-1)
        lo = lo.half()
        # a step of 0 (all equal) decodes to lo whatever the code
        step = ((hi - lo.float()) / (2**self.bits - 1)).clamp(min=0).half()
        scaled = (grouped - lo.float()[..., None]) / step.float().clamp(min=1e-7)[..., None]
        codes = scaled.round().clamp(0, 2**self.bits - 1).to(torch.uint8).flatten(-2)
        if self.bits == 4:
            codes = codes[..., ::2] | (codes[..., 1::2] << 4)
        return codes.contiguous(), lo, step

    def decode(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The inverse, up to half a step: [n, H, D]."""
        codes, lo, step = parts
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        grouped = codes.reshape(*codes.shape[:-1], lo.shape[-1], -1).float()
        return (grouped * step.float()[..., None] + lo.float()[..., None]).flatten(-2).to(dtype)

    def coded(self, parts: tuple[Tensor, ...]) -> Coded | None:
        """Eight bits are read by the kernels as they are; nibbles are not."""
        return Coded(*(x.transpose(0, 1) for x in parts)) if self.bits == 8 else None


@dataclass(frozen=True)
class Integers(Stores):
    """A `format` of 8 or 4 bits behind a residual of recent tokens in the model's own dtype."""

    group: int = param(64, "channels that share a scale (at most the head dimension)")
    residual: int = param(128, "recent tokens that stay in 16 bits")

    bits = 8

    def validate(self) -> None:
        """Sizes that make sense."""
        self.require(self.group >= 2 and self.residual >= 0, "group must be at least 2 and residual at least 0")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Groups must tile the head dimension."""
        if model is not None and model.head_dim % min(self.group, model.head_dim):
            return [f"group={self.group} does not divide the head dimension {model.head_dim} of {model.model_type}"]
        return []

    def codec(self, facts: ModelFacts) -> IntCodec:
        """The integer code."""
        return IntCodec(self.bits, self.group)

    def hot_tokens(self, facts: ModelFacts) -> int:
        """The residual."""
        return self.residual
