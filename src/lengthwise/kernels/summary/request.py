"""What a choice of blocks asks for, checked once for every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels.attend.lists import SLOTS
from lengthwise.kernels.summary.summaries import Summary

Kind = Literal["mean", "bounds"]
Share = Literal["group", "head"]


@dataclass(frozen=True)
class Request:
    """The arguments of `top_blocks`."""

    q: Tensor
    summary: Summary
    count: int
    limits: Tensor
    kind: Kind
    share: Share
    sinks: int
    local: int
    query_block: int

    @property
    def blocks(self) -> int:
        """Key blocks that are summarized."""
        return self.summary.mean.shape[1]

    @property
    def lists(self) -> int:
        """Lists of a query block: one for each KV head, or for each query head."""
        return self.summary.mean.shape[0] if self.share == "group" else self.q.shape[0]

    def __post_init__(self) -> None:
        shape = self.summary.mean.shape
        if self.q.ndim != 3 or self.q.shape[2] != shape[2] or self.q.shape[0] == 0 or self.q.shape[0] % shape[0]:
            raise BadInput(f"queries {list(self.q.shape)} do not fit summaries {list(shape)}")
        if self.summary.low.shape != shape or self.summary.high.shape != shape:
            raise BadInput("mean, low and high of a summary must have one shape")
        if self.kind not in ("mean", "bounds") or self.share not in ("group", "head"):
            raise BadInput(f"kind is mean or bounds and share group or head, not {self.kind} and {self.share}")
        if min(self.count, self.sinks, self.local) < 0:
            raise BadInput("count and the numbers of blocks that are always seen must be at least 0")
        if self.query_block < SLOTS or self.query_block % SLOTS:
            raise BadInput(f"query_block must be a multiple of {SLOTS}, not {self.query_block}")
        stripes = -(-self.q.shape[1] // self.query_block)
        if self.limits.dtype != torch.int64 or self.limits.shape != (stripes,):
            raise BadInput(f"limits must be int64 with one number for each of {stripes} query blocks")
        if stripes and not 0 <= int(self.limits.min()) <= int(self.limits.max()) <= self.blocks:
            raise BadInput(f"a limit is outside the {self.blocks} blocks that are summarized")
