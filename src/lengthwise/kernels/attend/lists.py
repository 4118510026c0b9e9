"""Block lists: which blocks of 64 key slots a block of queries may see, for each head or group of heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.errors import BadInput

SLOTS = 64  # key slots of a block, and the step of query_block


@dataclass(frozen=True)
class BlockLists:
    """Lists in CSR form: query block b of head (group) g may see blocks[offsets[g, b] : offsets[g, b + 1]].

    `offsets` int64 [G, QB + 1] counts through all lists: offsets[0, 0] = 0, offsets[g + 1, 0] = offsets[g, QB].
    `blocks` int32 [nnz] are ids of blocks of 64 key slots, in any order, each at most once in a list. G is 1 (all heads
    share), Hkv or Hq; QB = ceil(queries / query_block), and query_block is a multiple of 64.
    """

    offsets: Tensor
    blocks: Tensor
    query_block: int = SLOTS

    def __post_init__(self) -> None:
        if self.offsets.dtype != torch.int64 or self.offsets.ndim != 2 or self.offsets.shape[1] < 1:
            raise BadInput("block lists need offsets in int64, [G, QB + 1]")
        if self.blocks.dtype != torch.int32 or self.blocks.ndim != 1:
            raise BadInput("block lists need blocks in int32, [nnz]")
        if self.query_block < SLOTS or self.query_block % SLOTS:
            raise BadInput(f"query_block must be a multiple of {SLOTS}, not {self.query_block}")

    @staticmethod
    def of(mask: Tensor, query_block: int = SLOTS) -> BlockLists:
        """The lists of a boolean mask [G, QB, key blocks]."""
        counts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(-1).flatten().cumsum(0)])
        groups, rows = mask.shape[:2]
        index = torch.arange(groups)[:, None] * rows + torch.arange(rows + 1)
        return BlockLists(counts[index], mask.nonzero()[:, 2].to(torch.int32), query_block)

    def pages(self) -> Tensor:
        """The lists of one query block as the pages of `decode`: int32 [G, P], padded with -1."""
        lists = [self.blocks[a:b] for a, b in self.offsets[:, :2].tolist()]
        return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)

    def mask(self, key_blocks: int) -> Tensor:
        """The lists as a boolean mask [G, QB, key_blocks]; BadInput for ids or offsets that do not fit it."""
        groups, rows = self.offsets.shape[0], self.offsets.shape[1] - 1
        flat = torch.cat([self.offsets[:, :-1].flatten(), self.offsets[-1:, -1]])
        joined = bool((self.offsets[1:, 0] == self.offsets[:-1, -1]).all())
        lengths = flat.diff()
        if flat[0] != 0 or flat[-1] != len(self.blocks) or not joined or bool((lengths < 0).any()):
            raise BadInput("the offsets of block lists must ascend from 0 to the number of block ids")
        if len(self.blocks) and not 0 <= int(self.blocks.min()) <= int(self.blocks.max()) < key_blocks:
            raise BadInput(f"a block list names a block outside the {key_blocks} there are")
        seen = torch.zeros(groups * rows, key_blocks, dtype=torch.int32)
        list_of = torch.repeat_interleave(torch.arange(groups * rows), lengths)
        seen.index_put_((list_of, self.blocks.long()), torch.ones_like(self.blocks), accumulate=True)
        if bool((seen > 1).any()):
            raise BadInput("a block list names a block twice")
        return seen.bool().view(groups, rows, key_blocks)
