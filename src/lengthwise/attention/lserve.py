"""LServe: streaming heads beside heads that read only chosen pages (arXiv 2502.14866)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.attention import _blocks
from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Blocks, View
from lengthwise.core.spec import Method, Spec, param
from lengthwise.errors import BadParameter
from lengthwise.kernels.attend.lists import SLOTS, BlockLists

LOGICAL = 16  # keys of a logical page: bounds are tighter over fewer keys


@dataclass(frozen=True)
class Lserve(Blocks):
    """Streaming heads see first and last tokens, in prefill and decode. The others read pages when they decode.

        u_L = max over heads of sum_d max(q_d min_d(L), q_d max_d(L)) for every logical page L of 16 keys
        a physical page P of 64 keys scores max_{L in P} u_L;  pages = the budget / 64 of largest score

    A choice of pages holds for `reuse` decoded tokens; first and last page belong to it. Which heads stream is found
    once for a model: `python -m lengthwise.attention lserve --model M --out F.json`, then `lserve:gates=F.json`.
    """

    gates: str | None = param(None, "JSON file that says which KV heads stream; none: no head does")
    sinks: int = param(128, "first tokens that a streaming head sees")
    window: int = param(256, "last tokens that a streaming head sees")
    budget: int = param(4096, "keys that a decoded token reads in the other heads, in whole pages of 64")
    reuse: int = param(4, "decoded tokens for which a choice of pages holds")

    spec: ClassVar[Spec] = Spec(
        name="lserve",
        family="attention",
        summary="streaming heads, and pages chosen by two levels of bounds, again only every few tokens",
        formula="streaming head: n < s or m-n < w; others when decoding: top-(budget/64) pages P of "
        "max_{L in P} sum_d max(q_d min_d(L), q_d max_d(L)), chosen every `reuse` tokens",
        seams=("blocks",),
        papers=(72,),
        source="arXiv 2502.14866, sections 3.3 to 3.5: streaming heads, hierarchical paging, reusable selection; sizes "
        "of its evaluation",
        exact_when="no head streams and the input is no longer than the budget",
        refuses="methods that drop, move or code keys, or give them several positions; gates of another model",
        simplified="gates come from where attention lies, not from training as in DuoAttention; streaming heads keep "
        "their older keys in memory; keys are not quantised (add no codec: it is refused)",
        neutral={"budget": 1 << 30},
        test="tests/oracle/test_lserve.py",
    )

    def validate(self) -> None:
        """Sizes, and a file that can be read."""
        self.require(self.sinks >= 0 and self.window >= 1 and self.reuse >= 1, "sinks from 0, window and reuse from 1")
        self.require(self.budget >= 2 * SLOTS, f"budget must be at least two pages of {SLOTS} keys")
        if self.gates is not None:
            read_gates(self.gates)

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The file must be of a model of this shape."""
        reasons = super().check(model, others)
        if model is not None and self.gates is not None:
            layers = read_gates(self.gates)
            if [len(layer) for layer in layers] != [model.kv_heads] * len(model.layer_kinds):
                reasons.append(
                    f"{self.gates} has gates for {len(layers)} layers, the model has {len(model.layer_kinds)} "
                    f"of {model.kv_heads} KV heads: find them anew"
                )
        return reasons

    def lists(self, view: View) -> BlockLists | None:
        """The lists of every KV head; None while all of them see everything."""
        kv_heads = view.kv.values.read(0, 0).shape[0]
        streams = torch.zeros(kv_heads, dtype=torch.bool)
        if self.gates is not None:
            streams = torch.tensor(read_gates(self.gates)[view.layer])
        stop = _blocks.limits(view)
        blocks = int(stop.max())
        all_seen = torch.ones(kv_heads, len(stop), blocks, dtype=torch.bool)
        ends = _blocks.both_ends(stop, _blocks.blocks_of(self.sinks), _blocks.blocks_of(self.window) + 1)
        seen = torch.where(streams[:, None, None], ends, all_seen)
        if len(view.positions) > 1:
            view.state["left"] = 0
        elif view.kv.n > self.budget:
            seen = torch.where(streams[:, None, None], ends, self._pages(view, blocks)[:, None])
        seen &= torch.arange(blocks) < stop[:, None]
        return None if bool((seen | (torch.arange(blocks) >= stop[:, None])).all()) else BlockLists.of(seen)

    def _pages(self, view: View, blocks: int) -> Tensor:
        """The pages [Hkv, blocks] of one decoded token, bool: chosen anew, or as they were."""
        left = int(view.state.get("left", 0))
        if left == 0:
            view.state["pages"] = self._choose(view, blocks)
        view.state["left"] = (left or self.reuse) - 1
        chosen: Tensor = view.state["pages"]
        pages = torch.nn.functional.pad(chosen, (0, blocks - chosen.shape[1]))
        pages[:, [0, blocks - 1]] = True
        if blocks > chosen.shape[1] and blocks > 1:  # a page was opened since: the one before it is full of new keys
            pages[:, chosen.shape[1] - 1 :] = True
        return pages

    def _choose(self, view: View, blocks: int) -> Tensor:
        low, high = self._bounds(view)
        q = _blocks.queries(view).float().unflatten(0, (low.shape[0], -1))[:, :, 0]  # [Hkv, group, D]
        upper = q.clamp(min=0) @ high.transpose(1, 2) + q.clamp(max=0) @ low.transpose(1, 2)
        view.receipt.pairs += 2 * view.q.shape[0] * low.shape[1]
        score = torch.nn.functional.pad(upper.amax(1), (0, -low.shape[1] % (SLOTS // LOGICAL)), value=float("-inf"))
        physical = score.unflatten(-1, (-1, SLOTS // LOGICAL)).amax(-1).cpu()
        physical = torch.nn.functional.pad(physical, (0, blocks - physical.shape[1]), value=float("-inf"))
        physical[:, [0, blocks - 1]] = float("inf")
        pages = torch.zeros_like(physical, dtype=torch.bool)
        return pages.scatter_(1, physical.topk(min(self.budget // SLOTS, blocks), dim=-1).indices, True)

    def _bounds(self, view: View) -> tuple[Tensor, Tensor]:
        """Bounds [Hkv, n // 16, D] of all logical pages that are full; only new ones are computed."""
        k = _blocks.keys(view)
        low: Tensor = view.state.get("low", k[:, :0].float())
        high: Tensor = view.state.get("high", k[:, :0].float())
        new = k[:, low.shape[1] * LOGICAL : view.kv.n // LOGICAL * LOGICAL].float().unflatten(1, (-1, LOGICAL))
        if new.shape[1]:
            view.state["low"] = low = torch.cat([low, new.amin(2)], 1)
            view.state["high"] = high = torch.cat([high, new.amax(2)], 1)
        return low, high


@cache
def read_gates(path: str) -> tuple[tuple[bool, ...], ...]:
    """Which KV heads of every layer stream, from a JSON file. Raises BadParameter for one that is none."""
    try:
        layers = json.loads(Path(path).expanduser().read_text())["streaming"]
        return tuple(tuple(bool(h) for h in layer) for layer in layers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadParameter(
            f"lserve: {path} holds no gates ({error}): write it with python -m lengthwise.attention lserve"
        ) from error
