"""What the evicting methods share: when the reading has ended, what the last queries attend to, the best slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import NATIVE, PLAIN
from lengthwise.core.seams import Keeps, Positions, Selects, View
from lengthwise.core.spec import Method, param


def own_frames(others: Sequence[Method], model: ModelFacts | None) -> list[str]:
    """Those of `others` that give keys more than one position, or move them: reasons."""
    moving = [
        m.spec.name
        for m in others
        if isinstance(m, Positions)
        and (m.in_cache or m.follows_length() or (model is not None and m.frames(model) != PLAIN))
    ]
    return [
        f"keys must stay in the one position frame in which they are weighed, and {name} moves them" for name in moving
    ]


@dataclass(frozen=True)
class Evicts(Keeps):
    """A `keep` that weighs keys where they stand, in one position frame."""

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """One position frame, and nothing that goes by the positions of slots, which differ between heads."""
        selects = [m.spec.name for m in others if isinstance(m, Selects)]
        return own_frames(others, model) + [
            f"what is held differs between layers and heads, and {name} selects by position" for name in selects
        ]


@dataclass(frozen=True)
class Votes(Evicts):
    """SnapKV's rule: the last `window` tokens stay, and those that their queries attend to most.

    v_g,n = pool_n sum_i p_h,i,n, averaged over the query heads h of key head g; p is the softmax over all that is held.
    """

    budget: int = param(1024, "tokens kept in every layer and head when the reading ends, the window included")
    window: int = param(32, "last tokens: their queries vote, and they stay")
    kernel: int = param(7, "tokens over which votes are pooled, an odd number")
    pool: Literal["max", "mean"] = param(
        "max", "how votes are pooled (max: the paper's runs; mean: the code's default)"
    )

    def validate(self) -> None:
        """Sizes that fit each other."""
        self.require(1 <= self.window < self.budget, "window must be at least 1 and below budget")
        self.require(self.kernel >= 1 and self.kernel % 2 == 1, "kernel must be an odd number")

    def layer_budget(self, view: View) -> int:
        """Tokens that the view's layer keeps."""
        return self.budget

    def keep(self, view: View) -> Tensor | None:
        """The voted ones and the window, before the first token that is written."""
        slots, n = None, view.kv.n
        if reading_ended(view) and n > self.budget and (room := self.layer_budget(view)) < n:
            slots = self._voted(view, room - self.window)
        remember(view, self.window)
        return slots

    def _voted(self, view: View, count: int) -> Tensor:
        """Slots [Hkv, count + window]."""
        n = view.kv.n
        votes = last_weights(view)[:, :, : n - self.window].sum(1)
        pool = max_pool1d if self.pool == "max" else avg_pool1d
        votes = pool(votes, self.kernel, stride=1, padding=self.kernel // 2)
        chosen = best(votes.unflatten(0, (view.facts.kv_heads, -1)).mean(1), count)
        return torch.cat([chosen, torch.arange(n - self.window, n).expand(len(chosen), -1)], 1)


def reading_ended(view: View) -> bool:
    """Whether this block is the first token after a pass of several: call it once for every block.

    A pass of several tokens is reading, a pass of one token is writing.
    """
    state = view.state
    alone = len(view.positions) == 1 and view.ends_pass and bool(state.get("pass_over", 1))
    ended = alone and bool(state.get("reading", 0))
    state["reading"], state["pass_over"] = int(not alone), int(view.ends_pass)
    return ended


def remember(view: View, count: int) -> None:
    """Keep the last `count` queries of the layer in the state, rotated as its keys are: [Hq, up to count, D]."""
    q = view.q[:, -count:]
    if view.raw:
        q = view.rope.rotate(q, view.positions[-count:])
    held = view.state.get("queries")
    if held is not None and q.shape[1] < count:
        q = torch.cat([held.to(q.device)[:, q.shape[1] - count :], q], 1)
    view.state["queries"] = q.clone()


def last_weights(view: View) -> Tensor:
    """Softmax weights [Hq, w, n] float32 of the w remembered queries over all that is held, before a block is added.

    The w queries are those of the last w tokens; for w > 1 these must all be held.
    """
    k = view.kv.keys[NATIVE].read(0, view.kv.n).float()
    q = view.state["queries"].to(k.device).float()
    heads, rows, dim = q.shape
    logits = (q.reshape(k.shape[0], -1, dim) * view.scale @ k.transpose(1, 2)).view(heads, rows, -1)
    if view.softcap is not None:
        logits = view.softcap * torch.tanh(logits / view.softcap)
    later = torch.ones(rows, k.shape[1], dtype=torch.bool, device=k.device).triu(k.shape[1] - rows + 1)
    view.receipt.pairs += heads * rows * k.shape[1]
    return torch.softmax(logits.masked_fill(later, float("-inf")), -1)


def best(scores: Tensor, count: int) -> Tensor:
    """Indices [..., count] of the highest scores [..., n], ascending, on the CPU; of equal ones the last."""
    order = scores.flip(-1).sort(descending=True, stable=True).indices[..., :count]
    return (scores.shape[-1] - 1 - order).sort().values.cpu()
