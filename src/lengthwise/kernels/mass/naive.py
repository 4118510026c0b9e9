"""The mass of key blocks from its definition: the oracle, and the path without a compiled kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.kernels.attend.lists import SLOTS
from lengthwise.kernels.mass.request import Request

_ROWS = 256  # queries at a time: bounds the scores


def block_mass(request: Request) -> tuple[Tensor, int]:
    """Softmax of the folded queries over the keys, summed over blocks: [Hkv, C * group, B] float32, and pairs."""
    r, (q, q_positions) = request, request.folded()
    (heads, rows, _), slots = q.shape, r.k.shape[1]
    out, pairs = q.new_zeros(heads, rows, -(-slots // SLOTS), dtype=torch.float32), 0
    keys = r.k.float().transpose(1, 2)
    for a in range(0, rows, _ROWS):
        seen = (r.k_positions <= q_positions[a : a + _ROWS, None]).to(q.device)
        logits = q[:, a : a + _ROWS].float() @ keys * r.scale
        if r.softcap is not None:
            logits = r.softcap * torch.tanh(logits / r.softcap)
        weights = logits.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
        padded = torch.nn.functional.pad(weights, (0, -slots % SLOTS))
        out[:, a : a + _ROWS] = padded.unflatten(-1, (-1, SLOTS)).sum(-1)
        pairs += int(seen.sum()) * heads
    return out, pairs
