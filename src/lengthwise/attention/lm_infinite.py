"""LM-Infinite: Λ-shaped mask and a ceiling on distance (Han et al. 2023, arXiv 2308.16137)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.attention._window import SLACK, Windowed, keep_window
from lengthwise.core.attend import Partial
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import UNROTATED, Frame, Visible, at
from lengthwise.core.seams import View
from lengthwise.core.spec import Method, Spec, param


@dataclass(frozen=True)
class LmInfinite(Windowed):
    """The first `sinks` tokens and a local window, no distance beyond `limit`; optionally a few middle tokens.

    With `top_k` the last query of every forward pass (each decoded token) also sees, in every head of the layers
    from `top_k_layer` on, the k middle keys of largest logit, all of them at distance `top_k_distance`.
    The middle must then be kept, and memory is no longer bounded.
    """

    sinks: int = param(100, "first tokens that are always visible (10 to 100 in the paper)")
    window: int | None = param(None, "local window in tokens; none: the model's trained window")
    limit: int | None = param(None, "ceiling on distance; none: the local window")
    top_k: int = param(0, "middle tokens per head for the last query (5 in the paper's retrieval runs); 0: none")
    top_k_layer: int = param(4, "first layer, counted from 0, that looks for middle tokens")
    top_k_distance: int | None = param(None, "distance at which middle tokens stand; none: half the local window")

    spec: ClassVar[Spec] = Spec(
        name="lm-infinite",
        family="attention",
        summary="Λ mask and distance ceiling; fluent without end, optional top-k middle tokens",
        formula="key n visible to query m iff m-n < w or n < s; rel(m,n) = min(m-n, limit); "
        "last query adds top-k_n of q_m rotated at d_mid . k_n over the middle",
        seams=("position", "select", "keep"),
        papers=(11,),
        source="arXiv 2308.16137, section 4; defaults of the released code for Llama-2",
        exact_when="the input is no longer than the local window",
        refuses="a limit or window beyond the trained window",
        simplified=f"evicts in steps of {SLACK} tokens; what a query sees is exact",
        bounded=True,
        neutral={"window": 1 << 20},
        test="tests/oracle/test_windows.py",
    )

    def validate(self) -> None:
        """Positive sizes, and a limit that lies within the window."""
        self.require(self.sinks >= 0 and self.top_k >= 0, "sinks and top_k must be at least 0")
        self.require(self.window is None or self.window >= 1, "window must be at least 1")
        self.require(self.limit is None or self.limit >= 1, "limit must be at least 1")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """No untrained distances."""
        if model is None:
            return []
        asked = {"window": self.window, "limit": self.limit, "top_k_distance": self.top_k_distance}
        return [
            f"{name}={value} is beyond the trained window of {model.window}"
            for name, value in asked.items()
            if value is not None and model.window < value < 1 << 20
        ]

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """Up to the limit: as it is. Beyond it: query at the limit, key at 0."""
        limit = self.limit or self._window(facts)
        return Frame(high=limit), Frame(low=limit, query=at(limit), key=UNROTATED)

    def visible(self, view: View) -> Visible:
        """Sinks and window."""
        return Visible(rules=((self._window(view.facts), self.sinks),))

    def extras(self, view: View) -> list[Partial]:
        """The top-k middle keys of the last query: out [Hq, C, D] with logsumexp -inf for all other rows."""
        facts, kv = view.facts, view.kv
        window = self._window(facts)
        stop = int(torch.searchsorted(kv.positions, view.stop - 1 - window, right=True))
        wanted = self.top_k and view.ends_pass and view.layer >= self.top_k_layer
        if not wanted or stop - self.sinks < self.top_k:
            return []
        distance = self.top_k_distance or window // 2
        heads, rows, dim = view.q.shape
        q = view.rope.rotate(view.q[:, -1:], torch.tensor([distance]))
        k = kv.keys[UNROTATED].read(self.sinks, stop)
        v = kv.values.read(self.sinks, stop)
        groups = heads // k.shape[0]
        logits = (q.reshape(k.shape[0], groups, dim).float() @ k.float().transpose(1, 2)) * view.scale
        if view.softcap is not None:
            logits = view.softcap * torch.tanh(logits / view.softcap)
        best, slots = logits.topk(self.top_k, dim=-1)  # [Hkv, groups, k]
        chosen = v.gather(1, slots.flatten(1)[..., None].expand(-1, -1, dim)).view(*slots.shape, dim).float()
        lse = torch.full((heads, rows), float("-inf"), device=q.device)
        lse[:, -1] = best.logsumexp(-1).flatten()
        out = torch.zeros(heads, rows, dim, device=q.device)
        out[:, -1] = (best.softmax(-1)[..., None] * chosen).sum(2).reshape(heads, dim)
        view.receipt.pairs += heads * (stop - self.sinks)
        if view.added is not None:
            scores = torch.full((heads, rows, self.top_k), float("-inf"), device=q.device)
            scores[:, -1] = best.flatten(0, 1)
            places = kv.positions[self.sinks + slots.cpu().flatten(0, 1)]  # [Hq, k]
            view.added.append((places[:, None].expand(-1, rows, -1), scores))
        return [(out, lse)]

    def keep(self, view: View) -> Tensor | None:
        """Sinks and window, unless middle tokens may be asked for."""
        return None if self.top_k else keep_window(view, self._window(view.facts), self.sinks)

    def tokens_held(self, length: int, model: ModelFacts) -> int:
        """The cache, the slack, and a block on its way; everything with top_k."""
        return length if self.top_k else self.bound(self._window(model), self.sinks, length)

    def _window(self, facts: ModelFacts) -> int:
        return self.window or facts.window
