"""Summaries of key blocks: what the choice of blocks knows about the 64 keys of each."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels.attend.lists import SLOTS


class Summary(NamedTuple):
    """Of every block of 64 keys: `mean` [Hkv, B, D] float32, and `low`, `high` [Hkv, B, D] in the keys' dtype.

    `low` and `high` bound each channel of the block's keys, exactly. The last block may have fewer keys.
    """

    mean: Tensor
    low: Tensor
    high: Tensor


def blank(k: Tensor, length: int, start_block: int) -> Summary:
    """Room for the summaries of blocks start_block.. of `length` slots of k [Hkv, S, D]; BadInput if they misfit."""
    blocks = -(-length // SLOTS)
    if k.ndim != 3 or not 0 <= length <= k.shape[1]:
        raise BadInput(f"keys {list(k.shape)} do not have {length} slots to summarize")
    if not 0 <= start_block <= blocks:
        raise BadInput(f"start_block must be from 0 to the {blocks} blocks of {length} slots, not {start_block}")
    shape = (k.shape[0], blocks - start_block, k.shape[2])
    return Summary(k.new_empty(shape).float(), k.new_empty(shape), k.new_empty(shape))
