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
    share), Hkv or Hq; QB = ceil(queries / query_block), and query_block is a multiple of 64. `columns` int32 are single
    slots that the same queries may see besides: ascending in every list, and outside its blocks; `column_offsets` count
    them as `offsets` does the blocks.
    """

    offsets: Tensor
    blocks: Tensor
    query_block: int = SLOTS
    columns: Tensor | None = None
    column_offsets: Tensor | None = None

    def __post_init__(self) -> None:
        if self.offsets.dtype != torch.int64 or self.offsets.ndim != 2 or self.offsets.shape[1] < 1:
            raise BadInput("block lists need offsets in int64, [G, QB + 1]")
        if self.blocks.dtype != torch.int32 or self.blocks.ndim != 1:
            raise BadInput("block lists need blocks in int32, [nnz]")
        if self.query_block < SLOTS or self.query_block % SLOTS:
            raise BadInput(f"query_block must be a multiple of {SLOTS}, not {self.query_block}")
        if self.columns is None or self.column_offsets is None:
            if self.columns is not None or self.column_offsets is not None:
                raise BadInput("columns of block lists need their offsets, and offsets their columns")
            return
        if self.column_offsets.dtype != torch.int64 or self.column_offsets.shape != self.offsets.shape:
            raise BadInput(f"column offsets must be int64 {list(self.offsets.shape)}, as those of the blocks")
        if self.columns.dtype != torch.int32 or self.columns.ndim != 1:
            raise BadInput("columns of block lists must be int32, [m]")

    @staticmethod
    def of(mask: Tensor, query_block: int = SLOTS) -> BlockLists:
        """The lists of a boolean mask [G, QB, key blocks]."""
        return BlockLists(*_rows(mask), query_block)

    def with_columns(self, slots: Tensor) -> BlockLists:
        """These lists and the slots of a boolean mask [G, slots], or [G, QB, slots], that lie outside their blocks."""
        outside = ~self.mask(-(-slots.shape[-1] // SLOTS)).repeat_interleave(SLOTS, -1)[..., : slots.shape[-1]]
        offsets, columns = _rows(outside & (slots if slots.ndim == 3 else slots[:, None]))
        return BlockLists(self.offsets, self.blocks, self.query_block, columns, offsets)

    def column_mask(self, slots: int) -> Tensor:
        """The columns as a boolean mask [G, QB, slots]; BadInput for ids or offsets that do not fit it."""
        if self.columns is None or self.column_offsets is None:
            return torch.zeros(self.offsets.shape[0], self.offsets.shape[1] - 1, slots, dtype=torch.bool)
        seen = _marked(self.column_offsets, self.columns, slots, "slot")
        if bool((seen & self.mask(-(-slots // SLOTS)).repeat_interleave(SLOTS, -1)[..., :slots]).any()):
            raise BadInput("a block list names a slot of one of its blocks")
        return seen

    def pages(self) -> Tensor:
        """The lists of one query block as the pages of `decode`: int32 [G, P], padded with -1."""
        if self.columns is not None:
            raise BadInput("pages are whole blocks: block lists with columns have none")
        lists = [self.blocks[a:b] for a, b in self.offsets[:, :2].tolist()]
        if len({x.shape for x in lists}) == 1:  # as `top_blocks` makes them
            return torch.stack(lists)
        return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)

    def mask(self, key_blocks: int) -> Tensor:
        """The lists as a boolean mask [G, QB, key_blocks]; BadInput for ids or offsets that do not fit it."""
        return _marked(self.offsets, self.blocks, key_blocks, "block")


def _rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a boolean mask [G, QB, n] in CSR form: offsets [G, QB + 1] and ids."""
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(-1).flatten().cumsum(0)])
    groups, rows = mask.shape[:2]
    index = torch.arange(groups)[:, None] * rows + torch.arange(rows + 1)
    return counts[index], mask.nonzero()[:, 2].to(torch.int32)


def _marked(offsets: Tensor, ids: Tensor, count: int, what: str) -> Tensor:
    """The inverse of `_rows`: bool [G, QB, count]."""
    groups, rows = offsets.shape[0], offsets.shape[1] - 1
    flat = torch.cat([offsets[:, :-1].flatten(), offsets[-1:, -1]])
    joined = bool((offsets[1:, 0] == offsets[:-1, -1]).all())
    lengths = flat.diff()
    if flat[0] != 0 or flat[-1] != len(ids) or not joined or bool((lengths < 0).any()):
        raise BadInput(f"the offsets of block lists must ascend from 0 to the number of {what} ids")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise BadInput(f"a block list names a {what} outside the {count} there are")
    seen = torch.zeros(groups * rows, count, dtype=torch.int32)
    list_of = torch.repeat_interleave(torch.arange(groups * rows), lengths)
    seen.index_put_((list_of, ids.long()), torch.ones_like(ids), accumulate=True)
    if bool((seen > 1).any()):
        raise BadInput(f"a block list names a {what} twice")
    return seen.bool().view(groups, rows, count)
