"""SEA: sparse attention where an estimated attention matrix is large (Lee et al. 2023, arXiv 2310.01777)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.attention import _blocks, _estimator
from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Blocks, View
from lengthwise.core.spec import Method, Spec, param
from lengthwise.errors import BadInput
from lengthwise.kernels.attend.lists import SLOTS, BlockLists


@dataclass(frozen=True)
class Sea(Blocks):
    """A mask from an estimate of linear cost, and exact attention on the mask.

        E_ib = decoder(log phi(q_i) . sum_{j in b} phi(k_j)),  P = softmax over bins b and what is near
        mask = the top * Hkv / width pairs (KV group, bin) of largest P, the maximum over 64 queries and their heads

    Keys fall into at most `bins` bins, whose width starts at 64 and doubles as the sequence outgrows them: the estimate
    of a query costs the same at any length. Keys after the last whole bin are always seen. `params` is a file of
    features and a decoder distilled from the model's own attention (`scripts/fit_sea.py`); without it the features are
    random (FAVOR+), nothing is decoded, and the mask is little better than chance.
    """

    params: str | None = param(None, "file of a distilled estimator; none: untrained")
    top: int = param(512, "keys that a query sees besides those near it, on the mean over heads")
    bins: int = param(256, "bins of the estimate, an even number")

    spec: ClassVar[Spec] = Spec(
        name="sea",
        family="attention",
        summary="sparse attention where a distilled estimate of linear cost says that the weights are",
        formula="E_ib = decoder(log phi(q_i) . sum_{j in b} phi(k_j)); mask = top-k of softmax(E) over heads and bins; "
        "out = softmax over mask of q . k",
        seams=("blocks",),
        papers=(10,),
        source="arXiv 2310.01777, section 3: kernel estimate of m columns, decoder, top-k over heads, sparse mask; "
        "256 columns as released for language models, whose top of 64 single keys is ours of 8 blocks",
        exact_when="the input is no longer than `top`",
        refuses="methods that drop, move or code keys, or give them several positions; params of another model",
        simplified="a mask for every 64 queries of a KV group, of bins of at least 64 keys, where the paper's is for "
        "every query and head; the decoder sees the kernel's estimate alone, not its values, and convolves along keys "
        "only; the model is not tuned along, so the learned mixture with the mean of values is left out",
        neutral={"top": 1 << 30},
        test="tests/oracle/test_sea.py",
    )

    def validate(self) -> None:
        """Sizes."""
        self.require(self.top >= SLOTS, f"top must be at least {SLOTS}")
        self.require(self.bins >= 2 and self.bins % 2 == 0, "bins must be an even number of at least 2")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The estimator must be of a model of this shape."""
        reasons = super().check(model, others)
        if self.params is None:
            return reasons
        try:
            shape = _loaded(self.params, _stamp(self.params)).shape
        except BadInput as error:
            return [*reasons, str(error)]
        if model is not None and shape != (len(model.layer_kinds), model.heads, model.kv_heads, model.head_dim):
            reasons.append(
                f"{self.params} is for {shape[0]} layers of {shape[1]} heads ({shape[2]} of keys) of {shape[3]}, not "
                f"for this {model.model_type}: distil one with scripts/fit_sea.py"
            )
        return reasons

    def lists(self, view: View) -> BlockLists | None:
        """The bins that the estimate points to, and what is near, as blocks; None while everything is seen anyway."""
        n, count = view.kv.n, len(view.positions)
        width = SLOTS
        while n > width * self.bins:
            width *= 2
        if n // width * width <= self.top:
            return None
        estimator = self._given(view.facts)
        bins = self._sums(view, estimator, width)
        stop = _blocks.limits(view)
        whole = torch.arange(n - count, n, SLOTS) // width
        score = self._score(view, estimator, bins, whole, width)
        wanted = max(1, round(self.top * score.shape[0] / width))
        flat = score.transpose(0, 1).flatten(1)
        best = flat.topk(min(wanted, flat.shape[1]), dim=-1)
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(1, best.indices, best.values > 0)
        chosen = chosen.unflatten(1, (score.shape[0], -1)).transpose(0, 1).cpu()
        block = torch.arange(int(stop.max()))
        each = width // SLOTS
        mask = chosen[..., (block // each).clamp(max=chosen.shape[-1] - 1)] & (block // each < whole[:, None])
        return BlockLists.of((mask | (block // each >= whole[:, None])) & (block < stop[:, None]))

    def _given(self, facts: ModelFacts) -> _estimator.Estimator:
        if self.params is None:
            return _untrained(len(facts.layer_kinds), facts.heads, facts.kv_heads, facts.head_dim)
        return _loaded(self.params, _stamp(self.params))

    def _sums(self, view: View, estimator: _estimator.Estimator, width: int) -> Tensor:
        """Features summed up by bin [Hkv, bins, F]; tokens that came since the last call are added."""
        k = _blocks.keys(view)
        read, held = int(view.state.get("read", 0)), int(view.state.get("width", width))
        sums: Tensor = view.state.get("sums", k.new_zeros(k.shape[0], self.bins, 0, dtype=torch.float32))
        new = estimator.of_keys(view.layer, k[:, read:], view.scale)
        if read == 0:
            sums = new.new_zeros(k.shape[0], self.bins, new.shape[-1])
        while held < width:
            pairs = sums.unflatten(1, (-1, 2)).sum(2)
            sums, held = torch.cat([pairs, torch.zeros_like(pairs)], 1), held * 2
        place = torch.arange(read, view.kv.n, device=sums.device) // width
        view.state["sums"] = sums = sums.index_add(1, place, new)
        view.state["read"], view.state["width"] = torch.tensor(view.kv.n), torch.tensor(width)
        view.receipt.pairs += new.shape[0] * new.shape[1] * new.shape[2] // 2
        return sums

    def _score(self, view: View, estimator: _estimator.Estimator, bins: Tensor, whole: Tensor, width: int) -> Tensor:
        """The largest estimated share of a bin among 64 queries and the heads of a KV group: [Hkv, QB, whole bins]."""
        q, k, out = _blocks.queries(view), _blocks.keys(view), []
        most, dim, group = max(1, int(whole.max())), q.shape[2], q.shape[0] // k.shape[0]
        fixed, each = estimator.multiplications()
        for tile, (rows, before) in enumerate(zip(q.split(SLOTS, 1), whole.tolist(), strict=True)):
            near, stop = k[:, before * width :], view.start + min(len(view.positions), SLOTS * (tile + 1))
            near = near[:, : stop - before * width].repeat_interleave(group, 0).float()
            logits = rows.float() @ near.transpose(1, 2) * view.scale
            place = torch.arange(before * width, stop, device=q.device)
            asking = torch.arange(stop - rows.shape[1], stop, device=q.device)
            local = logits.masked_fill(place > asking[:, None], float("-inf")).logsumexp(-1)
            first = torch.full((rows.shape[1],), before, device=q.device)
            shares = estimator.shares(view.layer, rows, bins[:, :most], first, local, view.scale)[..., :-1].exp()
            out.append(shares.amax(1).unflatten(0, (-1, group)).amax(1))
            view.receipt.pairs += rows.shape[1] * (fixed + each * most) // (2 * dim) + logits.numel() // 2
        return torch.stack(out, 1)


def _stamp(path: str) -> int:
    """When the file was last changed, so that what is remembered of it is not stale."""
    return Path(path).stat().st_mtime_ns if Path(path).exists() else 0


@functools.lru_cache(maxsize=8)
def _loaded(path: str, stamp: int) -> _estimator.Estimator:
    return _estimator.load(path)


@functools.lru_cache(maxsize=8)
def _untrained(layers: int, heads: int, kv_heads: int, dim: int) -> _estimator.Estimator:
    return _estimator.Estimator(layers, heads, kv_heads, dim).requires_grad_(False)
