"""Representative keys of blocks, for methods that look a block up by a few of its own keys."""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels.attend.lists import SLOTS


def representatives(
    k: Tensor, *, length: int, count: int, scores: Tensor | None = None, start_block: int = 0
) -> Tensor:
    """The `count` keys of every full block with the highest score, best first: [H, blocks, count, D] in k's dtype.

    k [Hkv, S, D]. `scores` [H, S], H a multiple of Hkv: for InfLLM (arXiv 2402.04617, section 3.2) the attention that
    a key drew from the queries after it; None: the norm of the key, H = Hkv. Of equal scores the lower slot is first.
    Blocks start_block..length // 64 - 1 are covered. Raises BadInput for sizes that do not fit.
    """
    stop = length // SLOTS * SLOTS
    if k.ndim != 3 or not 0 <= length <= k.shape[1] or not 0 <= start_block * SLOTS <= stop:
        raise BadInput(f"keys {list(k.shape)} do not have blocks {start_block} to {length // SLOTS}")
    if not 1 <= count <= SLOTS:
        raise BadInput(f"a block has from 1 to {SLOTS} representatives, not {count}")
    keys = k[:, start_block * SLOTS : stop]
    if scores is None:
        scores = keys.float().norm(dim=-1)
    elif scores.ndim != 2 or scores.shape[1] < stop or scores.shape[0] % k.shape[0]:
        raise BadInput(f"scores {list(scores.shape)} do not fit keys {list(k.shape)}")
    else:
        scores = scores[:, start_block * SLOTS : stop]
    keys = keys.repeat_interleave(scores.shape[0] // k.shape[0], 0).unflatten(1, (-1, SLOTS))
    order = scores.unflatten(1, (-1, SLOTS)).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.gather(keys, 2, order[..., None].expand(-1, -1, -1, k.shape[2]))
