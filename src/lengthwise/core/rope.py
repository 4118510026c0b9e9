"""Rotary embedding at any positions and frequencies, in the model's own layout (half, interleaved, partial)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise import kernels
from lengthwise.core import fused

Apply = Callable[..., tuple[Tensor, Tensor]]


class Rope:
    """A copy of a model's rotary module and its apply function.

    `rotate` does the arithmetic in float32, whatever the model's dtype. `layer_type` is given for models that keep
    one set of frequencies for each layer type (Gemma 3).
    """

    def __init__(self, module: nn.Module, apply: Apply, layer_type: str | None = None) -> None:
        self.module = copy.deepcopy(module)
        self.apply = apply
        self.layer_type = layer_type
        self._memo: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

    @property
    def inv_freq(self) -> Tensor:
        """Inverse frequencies [rotary_dim / 2], float32."""
        name = f"{self.layer_type}_inv_freq" if self.layer_type else "inv_freq"
        return getattr(self.module, name).detach().float()  # type: ignore[no-any-return]

    def with_frequencies(self, inv_freq: Tensor, scaling: float) -> Rope:
        """The same layout with other inverse frequencies; cos and sin are multiplied by `scaling`."""
        new = Rope(self.module, self.apply, self.layer_type)
        prefix = f"{self.layer_type}_" if self.layer_type else ""
        setattr(new.module, f"{prefix}inv_freq", inv_freq.to(self.inv_freq.device))
        setattr(new.module, f"{prefix}attention_scaling", scaling)
        return new

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [1, n, rotary_dim] in float32 for positions [n]."""
        for known, angles in self._memo:
            if known.shape == positions.shape and torch.equal(known, positions):
                return angles
        like = torch.empty(0, dtype=torch.float32, device=self.inv_freq.device)
        extra = (self.layer_type,) if self.layer_type else ()
        cos, sin = self.module(like, positions[None].to(like.device), *extra)
        self._memo = [(positions.clone(), (cos.float(), sin.float())), *self._memo[:3]]
        return self._memo[0][1]

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x [H, n, D] at integer positions [n]; returns x's dtype."""
        cos, sin = self.angles(positions)
        xf = x[None].float()
        if fused.turns_halves(self.apply) and fused.usable(x) and cos.shape[-1] == x.shape[-1]:
            return kernels.rotary(xf, xf[:, :0], cos, sin)[0][0].to(x.dtype)
        return self.apply(xf, xf[:, :1], cos, sin)[0][0].to(x.dtype)


class Identity(nn.Module):
    """Stands in for a rotary module and rotates nothing: cos = 1, sin = 0, in the module's own output form."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = [original]  # a list keeps it out of the module tree

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Ones and zeros in the shape of the module's cos and sin."""
        cos, sin = self.original[0](*args, **kwargs)
        return torch.ones_like(cos), torch.zeros_like(sin)
