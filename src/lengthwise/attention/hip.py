"""HiP: the keys that a block of queries sees are found by a tree search in O(log T) scores (arXiv 2406.09827)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.attention import _blocks
from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Blocks, View
from lengthwise.core.spec import Spec, param
from lengthwise.kernels.attend.lists import SLOTS, BlockLists


@dataclass(frozen=True)
class Hip(Blocks):
    """First tokens, a window, and `top` keys between them for each 64 queries of a head, found by halving.

    The keys between are cut into top / leaf ranges of equal size. Then, until a range has no more than `leaf` keys:
    each is cut in two halves, the middle key of every half is scored by the largest q . k of the 64 queries, and the
    top / leaf best halves stay. That is 2 top / leaf scores for each query and level, log2(T / top) levels: O(T log T)
    for a whole text, where exact top-k needs O(T^2). It rests on keys beside each other scoring alike.
    """

    top: int = param(512, "keys that are chosen for each 64 queries of a head")
    leaf: int = param(2, "keys that are chosen together")
    sinks: int = param(64, "first tokens that are always seen")
    window: int = param(256, "last tokens that are always seen")

    spec: ClassVar[Spec] = Spec(
        name="hip",
        family="attention",
        summary="first tokens, a window, and keys found for each block of queries by a tree search",
        formula="ranges of [sinks, window): split each in two, score max_i q_i . k_middle, keep the top/leaf best, "
        "until a range has <= leaf keys",
        seams=("blocks",),
        papers=(26,),
        source="arXiv 2406.09827, section 3 and algorithm 1; k = 512, key blocks of 2; sinks and window are ours",
        exact_when="first tokens, window and `top` keys are all there are",
        refuses="methods that drop, move or code keys, or give them several positions",
        simplified="blocks of 64 queries instead of 32; the middle key stands for a range whatever its size; keys are "
        "not offloaded",
        neutral={"top": 1 << 30},
        test="tests/oracle/test_hip.py",
    )

    def validate(self) -> None:
        """Positive sizes."""
        self.require(self.top >= self.leaf >= 1, "leaf must be at least 1 and top at least leaf")
        self.require(self.sinks >= 0 and self.window >= 1, "sinks must be at least 0 and window at least 1")

    def lists(self, view: View) -> BlockLists | None:
        """The lists of every head; None while everything is seen anyway."""
        sinks, local = _blocks.blocks_of(self.sinks), _blocks.blocks_of(self.window) + 1
        stop = _blocks.limits(view)
        if (int(stop.max()) - sinks - local) * SLOTS <= self.top:
            return None
        q, k = _blocks.queries(view), _blocks.keys(view)
        first, last = sinks * SLOTS, ((stop - local).clamp(min=sinks) * SLOTS).to(q.device)
        edges, scores = search(q, k, first, last, self.top // self.leaf, self.leaf)
        view.receipt.pairs += scores
        ends = _blocks.both_ends(stop, sinks, local).expand(len(q), -1, -1)
        marks = torch.zeros(*edges[0].shape[:2], view.kv.n + 1, dtype=torch.int32, device=q.device)
        ones = torch.ones_like(edges[0], dtype=torch.int32)
        marks.scatter_add_(-1, edges[0], ones).scatter_add_(-1, edges[1], -ones)
        return BlockLists.of(ends).with_columns((marks.cumsum(-1) > 0)[..., :-1].cpu())

    def tokens_seen(self, length: int, facts: ModelFacts) -> int:
        """First tokens and window in whole blocks, and the chosen keys."""
        return min(length, (_blocks.blocks_of(self.sinks) + _blocks.blocks_of(self.window) + 1) * SLOTS + self.top)


def search(q: Tensor, k: Tensor, first: int, last: Tensor, ranges: int, leaf: int) -> tuple[tuple[Tensor, Tensor], int]:
    """The ranges that the tree search finds among the keys [first, last): starts and stops [Hq, QB, ranges], and pairs.

    q [Hq, C, D], k [Hkv, n, D], `last` [QB] for each 64 queries. Ranges do not overlap; some may be empty.
    """
    heads, count, dim = q.shape
    tiles, group = len(last), heads // k.shape[0]
    padded = torch.nn.functional.pad(q, (0, 0, 0, tiles * SLOTS - count)).float().view(heads, tiles, SLOTS, dim)
    real = torch.arange(tiles * SLOTS, device=q.device).view(tiles, SLOTS, 1) < count
    cuts = torch.arange(ranges + 1, device=q.device)
    edges = first + (last - first)[:, None] * cuts // ranges
    start, stop = (edges[None, :, i : ranges + i].expand(heads, -1, -1).contiguous() for i in (0, 1))
    keys_of = (torch.arange(heads, device=q.device) // group)[:, None, None]
    pairs = 0
    while int((stop - start).max()) > leaf:
        done = (stop - start).amax(-1, keepdim=True) <= leaf
        middle = torch.where(done, stop, (start + stop + 1) // 2)  # a search that has ended stays as it is
        start, stop = torch.cat([start, middle], -1), torch.cat([middle, stop], -1)
        rows = k[keys_of, ((start + stop) // 2).clamp(max=k.shape[1] - 1)].float()  # [Hq, QB, 2 ranges, D]
        score = (padded @ rows.transpose(-1, -2)).masked_fill(~real, float("-inf")).amax(2)
        score = score.masked_fill(stop <= start, float("-inf"))
        pairs += int(((stop > start) & ~done).sum(-1).sum(0) @ real.sum((1, 2)))
        # in order of place, so that equal scores are always broken alike
        best = score.sort(dim=-1, descending=True, stable=True).indices[..., :ranges].sort(-1).values
        start, stop = start.gather(-1, best), stop.gather(-1, best)
    return (start, stop), pairs
