"""Attention over block lists from its definition: one mask for every (head, query, key), softmax in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.kernels.attend.lists import SLOTS, BlockLists
from lengthwise.kernels.attend.request import Request, Result
from lengthwise.kernels.library import Coded

_ROWS = 256  # queries at a time: bounds the masks and scores


def attend(request: Request) -> Result:
    """The oracle of `lengthwise.kernels.attend`: the same result, on any device."""
    r = request
    spread = r.heads // r.kv_heads
    keys, values = [_plain(x).repeat_interleave(spread, 0) for x in r.k], _plain(r.v).repeat_interleave(spread, 0)
    outs, lses, pairs = [r.q[0].new_empty(r.heads, 0, r.value_dim)], [keys[0].new_empty(r.heads, 0)], 0
    for a in range(0, r.rows, _ROWS):
        b = min(a + _ROWS, r.rows)
        distance = r.q_positions[a:b, None] - r.k_positions[None]
        allowed = listed(r.lists, r.heads, a, b, r.slots).to(distance.device)
        for window, sinks in r.rules:
            allowed = allowed & ((distance < window) | (r.k_positions < sinks))
        scores = torch.full(allowed.shape, float("-inf"), device=distance.device)
        seen = torch.zeros_like(allowed)
        for (low, high), query, key in zip(r.frames, r.q, keys, strict=True):
            here = allowed & (distance >= max(low, 0)) & (distance < high)
            logits = query[:, a:b].float() @ key.transpose(1, 2) * r.scale
            if r.softcap is not None:
                logits = r.softcap * torch.tanh(logits / r.softcap)
            scores = torch.where(here, logits, scores)
            seen |= here
        lse = torch.logsumexp(scores, -1)
        weights = torch.where(seen, torch.exp(scores - lse[..., None]), 0.0)
        # a slot that nobody sees may hold anything, and 0 * NaN is NaN
        outs.append((weights @ values.masked_fill(~seen.any(1)[..., None], 0.0)).to(r.q[0].dtype))
        lses.append(lse)
        pairs += int(seen.sum())
    return torch.cat(outs, 1), torch.cat(lses, 1), pairs


def listed(lists: BlockLists | None, heads: int, start: int, stop: int, slots: int) -> Tensor:
    """Whether the lists let a head's queries start..stop see a slot: bool [heads, stop - start, slots]."""
    if lists is None:
        return torch.ones(heads, stop - start, slots, dtype=torch.bool)
    mask = lists.mask(-(-slots // SLOTS)).repeat_interleave(SLOTS, 2)[:, :, :slots] | lists.column_mask(slots)
    mask = mask[:, torch.arange(start, stop) // lists.query_block]
    return mask.repeat_interleave(heads // len(mask), 0)


def _plain(x: Tensor | Coded) -> Tensor:
    return x.decode() if isinstance(x, Coded) else x.float()
