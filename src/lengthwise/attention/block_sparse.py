"""Block-sparse attention: every block of queries sees the blocks of keys that score best for it (MInference, Quest)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lengthwise import kernels
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import NATIVE
from lengthwise.core.seams import Blocks, View
from lengthwise.core.spec import Spec, param
from lengthwise.kernels.attend.lists import SLOTS, BlockLists


@dataclass(frozen=True)
class BlockSparse(Blocks):
    """First tokens, a local window, and the `top` best blocks of 64 keys for each 64 queries of a group of heads.

    All keys stay in memory; what falls is the pairs scored, in prefill and in decode. A block's score is a maximum over
    the queries and the heads that share the list, so that what one query needs is not drowned by the others.
    """

    top: int = param(16, "blocks of 64 keys that are chosen")
    sinks: int = param(128, "first tokens that are always seen")
    window: int = param(1024, "last tokens that are always seen")
    score: Literal["mean", "bounds"] = param("bounds", "mean key of a block, or the bounds of its channels")
    share: Literal["group", "head"] = param("group", "whether the heads of a KV group share their choice")

    spec: ClassVar[Spec] = Spec(
        name="block-sparse",
        family="attention",
        summary="first tokens, a window, and the blocks of keys that score best for each block of queries",
        formula="blocks = top-k over B of max_{q in block, head in group} s(q, B); s = q . mean(B) or "
        "sum_d max(q_d min_d(B), q_d max_d(B))",
        seams=("blocks",),
        source="MInference (arXiv 2407.02490), block-sparse pattern: blocks of 64, mean keys; "
        "Quest (arXiv 2406.10774), equation 1: bounds. Sizes are ours",
        exact_when="the input is no longer than sinks, window and chosen blocks together",
        refuses="methods that drop, move or code keys, or give them several positions",
        simplified="queries are not averaged but take the maximum; no search for a pattern for each head",
        neutral={"window": 1 << 20},
        test="tests/oracle/test_block_sparse.py",
    )

    def validate(self) -> None:
        """Positive sizes."""
        self.require(min(self.top, self.sinks) >= 0 and self.window >= 1, "top and sinks must be at least 0, window 1")

    def lists(self, view: View) -> BlockLists | None:
        """The lists of every 64 queries; None while everything is seen anyway."""
        n, count = view.kv.n, len(view.positions)
        if n <= self.tokens_seen(n, view.facts):
            return None
        last = torch.arange(n - count, n, SLOTS).add(SLOTS).clamp(max=n)  # one past the last query of every 64
        return kernels.top_blocks(
            view.rope.rotate(view.q, view.positions) if view.raw else view.q,
            self._summary(view),
            count=self.top,
            limits=(last + SLOTS - 1) // SLOTS,
            kind=self.score,
            share=self.share,
            always=(-(-self.sinks // SLOTS), -(-self.window // SLOTS) + 1),
        )

    def tokens_seen(self, length: int, facts: ModelFacts) -> int:
        """First tokens, window and chosen blocks, in whole blocks."""
        blocks = -(-self.sinks // SLOTS) + -(-self.window // SLOTS) + 1 + self.top
        return min(length, blocks * SLOTS)

    def _summary(self, view: View) -> kernels.Summary:
        """Summaries of all blocks; only those that have grown since the last call are computed."""
        n, keys = view.kv.n, view.kv.keys[NATIVE]
        whole: Tensor = view.state.get("whole", torch.zeros((), dtype=torch.long))
        start, blocks = int(whole), -(-n // SLOTS)
        room: list[Tensor] = [view.state[name] for name in ("mean", "low", "high") if name in view.state]
        if not room or room[0].shape[1] < blocks:
            like = kernels.summarize(keys.read(0, 0), length=0)
            grown = [x.new_empty(x.shape[0], max(64, 2 * blocks), x.shape[2]) for x in like]
            for new, old in zip(grown, room, strict=False):
                new[:, :start] = old[:, :start]
            room = grown
            view.state |= dict(zip(("mean", "low", "high"), room, strict=True))
        out = kernels.Summary(*(x[:, start:blocks] for x in room))
        kernels.summarize(keys.read(0, n), length=n, start_block=start, out=out)
        view.state["whole"] = torch.tensor(n // SLOTS)
        return kernels.Summary(*(x[:, :blocks] for x in room))
