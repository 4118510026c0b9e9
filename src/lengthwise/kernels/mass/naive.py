"""The mass of key blocks from its definition: the oracle, and the path without a compiled kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.kernels.attend.lists import SLOTS

_ROWS = 256  # queries at a time: bounds the scores


def block_mass(
    q: Tensor,
    k: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    scale: float,
    softcap: float | None,
    threads: int | None = None,
) -> tuple[Tensor, int]:
    """Softmax of q [Hkv, M, D] over k [Hkv, S, D], summed over blocks: [Hkv, M, B] float32, and pairs scored."""
    (heads, rows, _), slots = q.shape, k.shape[1]
    out, pairs = q.new_zeros(heads, rows, -(-slots // SLOTS), dtype=torch.float32), 0
    keys = k.float().transpose(1, 2)
    for a in range(0, rows, _ROWS):
        seen = (k_positions <= q_positions[a : a + _ROWS, None]).to(q.device)
        logits = q[:, a : a + _ROWS].float() @ keys * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        weights = logits.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
        padded = torch.nn.functional.pad(weights, (0, -slots % SLOTS))
        out[:, a : a + _ROWS] = padded.unflatten(-1, (-1, SLOTS)).sum(-1)
        pairs += int(seen.sum()) * heads
    return out, pairs
