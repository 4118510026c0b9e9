"""Calls of the attention kernel with what nobody sees poisoned, and their check against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lengthwise.core.frames import FAR
from lengthwise.kernels import library
from lengthwise.kernels.attend import BlockLists, Coded, cpu, naive
from lengthwise.kernels.attend.request import Request, Result

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# out and logsumexp, absolute and relative: rounding of the result, and of the weights in bfloat16
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 1e-3), torch.float16: (2e-3, 1e-4)}
needs_kernels = pytest.mark.skipif(not library.available(), reason=library.describe())


@dataclass
class Case:
    """Arguments of one call, from a seed. Lanes are views into larger buffers of NaN."""

    heads: int = 6
    kv_heads: int = 2
    rows: int = 100
    slots: int = 200
    dim: int = 32
    value_dim: int | None = None
    dtype: torch.dtype = torch.float32
    frames: tuple[tuple[int, int], ...] = ((0, FAR),)
    rules: tuple[tuple[int, int], ...] = ()
    groups: int = 0  # heads of the lists; 0: no lists
    query_block: int = 64
    share: float = 0.6
    gaps: bool = False
    coded: bool = False
    softcap: float | None = None
    spread: float = 1.0
    seed: int = 0
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        value_dim = self.value_dim or self.dim
        blocks = -(-self.slots // 64)
        lists = None
        if self.groups:
            shape = self.groups, -(-self.rows // self.query_block), blocks
            lists = shuffled(BlockLists.of(torch.rand(shape, generator=g) < self.share, self.query_block), g)
        k_positions = torch.arange(self.slots)
        if self.gaps:  # evicted: positions with holes, the queries among the last keys and beyond
            k_positions = torch.randperm(2 * self.slots + 1, generator=g)[: self.slots].sort().values
        last = int(k_positions[-1]) if self.slots else 0
        q_positions = torch.arange(self.rows) + max(0, last + 1 - self.rows + 5 * self.gaps)
        self.options = {
            "q_positions": q_positions,
            "k_positions": k_positions,
            "lists": lists,
            "frames": self.frames,
            "rules": self.rules,
            "scale": self.dim**-0.5,
            "softcap": self.softcap,
        }
        sees = self.sees()
        q = torch.randn(len(self.frames), self.heads, self.rows, self.dim, generator=g)
        self.q = [poisoned(x * self.spread, self.dtype, token_major=True) for x in q]
        self.k: list[Any] = []
        for seen in sees:
            k = torch.randn(self.kv_heads, self.slots, self.dim, generator=g)
            self.k.append(self.lane(k, seen))
        self.v: Any = self.lane(
            torch.randn(self.kv_heads, self.slots, value_dim, generator=g), torch.stack(sees).any(0)
        )

    def lane(self, x: Tensor, seen: Tensor) -> Any:
        if not self.coded:
            return poisoned(x.masked_fill(~seen[..., None], float("nan")), self.dtype)
        groups = self.dim // 16
        grouped = x.unflatten(-1, (groups, -1))
        low, step = grouped.amin(-1), (grouped.amax(-1) - grouped.amin(-1)) / 255
        codes = ((grouped - low[..., None]) / step.clamp(min=1e-6)[..., None]).round().flatten(-2)
        low = low.masked_fill(~seen[..., None], float("nan"))
        view = torch.full((x.shape[1] + 3, x.shape[0], x.shape[2]), 255, dtype=torch.uint8)[2:-1].transpose(0, 1)
        view.copy_(codes)
        return Coded(view, poisoned(low, torch.float16), poisoned(step, torch.float16, token_major=True))

    def sees(self) -> list[Tensor]:
        """For each frame the slots [Hkv, S] that some query of the group sees."""
        found = []
        for low, high in self.frames:
            only = {**self.options, "frames": ((low, high),), "scale": 1.0}
            ones, eye = torch.ones(self.kv_heads, self.slots, 1), torch.eye(self.slots).expand(self.kv_heads, -1, -1)
            out, _, _ = naive.attend(Request([torch.ones(self.heads, self.rows, 1)], [ones], eye, **only))
            found.append((out > 0).unflatten(0, (self.kv_heads, -1)).flatten(1, 2).any(1))
        return found

    def request(self) -> Request:
        """The call that is asked of a backend."""
        return Request(self.q, self.k, self.v, **self.options)


def shuffled(lists: BlockLists, g: torch.Generator) -> BlockLists:
    flat = torch.cat([lists.offsets[:, :-1].flatten(), lists.offsets[-1:, -1]])
    blocks = lists.blocks.clone()
    for a, b in zip(flat[:-1].tolist(), flat[1:].tolist()):
        blocks[a:b] = blocks[a:b][torch.randperm(b - a, generator=g)]
    return BlockLists(lists.offsets, blocks, lists.query_block)


def poisoned(x: Tensor, dtype: torch.dtype, token_major: bool = False) -> Tensor:
    """x as a view with odd strides into a buffer of NaN."""
    heads, slots, dim = x.shape
    shape = (slots + 3, heads + 1, dim + 1) if token_major else (heads + 1, slots + 3, dim + 5)
    buffer = torch.full(shape, float("nan"), dtype=dtype)
    view = (buffer.transpose(0, 1) if token_major else buffer)[:heads, 1 : slots + 1, 1 : dim + 1]
    return view.copy_(x)


def check(case: Case, run: Callable[..., Result] = cpu.attend, **more: Any) -> None:
    """A backend against the oracle on the same case."""
    out, lse, pairs = run(case.request(), **more)
    oracle = Request([x.float() for x in case.q], case.k, case.v, **case.options)
    expected, expected_lse, expected_pairs = naive.attend(oracle)
    assert not expected.isnan().any()
    assert out.dtype == case.dtype
    assert lse.dtype == torch.float32
    assert pairs == expected_pairs
    near, near_lse = TOLERANCE[case.dtype]
    if case.coded and case.dtype == torch.bfloat16:
        near_lse = 3e-2  # the codes are read as bfloat16
    if expected_lse.nan_to_num(neginf=0).amax() > 100:
        near, near_lse = max(near, 1e-4), max(near_lse, 1e-4)  # a score of 1,000 is only known to 6e-5
    torch.testing.assert_close(out.float(), expected, atol=near, rtol=near)
    torch.testing.assert_close(lse, expected_lse, atol=near_lse, rtol=near_lse)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one query": {"rows": 1, "slots": 63},
    "63": {"rows": 63, "slots": 63},
    "65": {"rows": 65, "slots": 65, "kv_heads": 6},
    "1000": {"rows": 130, "slots": 1000, "kv_heads": 1},
    "no keys": {"rows": 5, "slots": 0},
    "before all keys": {"rows": 300, "slots": 200},
    "window": {"rules": ((50, 4),), "rows": 150},
    "two rules": {"rules": ((90, 0), (30, 70)), "rows": 150},
    "frames": {"frames": ((0, 33), (33, FAR))},
    "frames with a hole": {
        "frames": ((0, 20), (64, FAR), (20, 60)),
        "gaps": True,
        "rules": ((250, 9),),
    },
    "gaps": {"gaps": True, "rows": 70, "slots": 330},
    "lists shared": {"groups": 1, "rows": 200, "slots": 500},
    "lists by group": {"groups": 2, "rows": 200, "slots": 500},
    "lists by head": {"groups": 6, "rows": 200, "slots": 500, "frames": ((0, 100), (100, FAR))},
    "lists of 128": {"groups": 2, "rows": 300, "slots": 500, "query_block": 128},
    "empty lists": {"groups": 2, "rows": 200, "slots": 500, "share": 0.1},
    "softcap": {"softcap": 2.0, "rows": 70, "spread": 3.0},
    "large scores": {"spread": 60.0, "slots": 700},
    "values wider": {"dim": 48, "value_dim": 80},
    "odd dims": {"dim": 33, "value_dim": 7},
    "one channel": {"dim": 1, "value_dim": 1},
    "codes": {"coded": True, "rows": 70},
}
