"""Attention over block lists from its definition: one mask for every (head, query, key), softmax in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lengthwise.core.frames import FAR
from lengthwise.kernels.attend.lists import SLOTS, BlockLists
from lengthwise.kernels.library import Coded

Result = tuple[Tensor, Tensor, int]
_ROWS = 256  # queries at a time: bounds the masks and scores


def attend(
    q: Sequence[Tensor],
    k: Sequence[Tensor | Coded],
    v: Tensor | Coded,
    *,
    q_positions: Tensor,
    k_positions: Tensor,
    lists: BlockLists | None = None,
    frames: Sequence[tuple[int, int]] = ((0, FAR),),
    rules: Sequence[tuple[int, int]] = (),
    scale: float,
    softcap: float | None = None,
    threads: int | None = None,
) -> Result:
    """The oracle of `lengthwise.kernels.attend`: same arguments, same result, on any device."""
    heads, rows, slots = *q[0].shape[:2], v.shape[1]
    spread = heads // v.shape[0]
    keys, values = [_plain(x).repeat_interleave(spread, 0) for x in k], _plain(v).repeat_interleave(spread, 0)
    outs, lses, pairs = [q[0].new_empty(heads, 0, v.shape[2])], [keys[0].new_empty(heads, 0)], 0
    for a in range(0, rows, _ROWS):
        b = min(a + _ROWS, rows)
        distance = q_positions[a:b, None] - k_positions[None]
        allowed = listed(lists, heads, a, b, slots).to(distance.device)
        for window, sinks in rules:
            allowed = allowed & ((distance < window) | (k_positions < sinks))
        scores = torch.full(allowed.shape, float("-inf"), device=distance.device)
        seen = torch.zeros_like(allowed)
        for (low, high), query, key in zip(frames, q, keys, strict=True):
            here = allowed & (distance >= max(low, 0)) & (distance < high)
            logits = query[:, a:b].float() @ key.transpose(1, 2) * scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            scores = torch.where(here, logits, scores)
            seen |= here
        lse = torch.logsumexp(scores, -1)
        weights = torch.where(seen, torch.exp(scores - lse[..., None]), 0.0)
        # a slot that nobody sees may hold anything, and 0 * NaN is NaN
        outs.append((weights @ values.masked_fill(~seen.any(1)[..., None], 0.0)).to(q[0].dtype))
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
