"""What the frequency-scaling methods share: the check that a model's frequencies are plain RoPE, and the base."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts


def refuse_scaled(model: ModelFacts | None) -> list[str]:
    """Frequencies can be scaled once: a model that already scales its own is refused."""
    if model is None or model.rope_type == "default":
        return []
    return [f"{model.model_type} already scales its rotary frequencies (rope_type '{model.rope_type}')"]


def frequencies(base: float, dim: int) -> Tensor:
    """Plain RoPE inverse frequencies base^(-2i/dim), i = 0..dim/2-1, [dim / 2] float32."""
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
