"""SirLLM: keep the tokens of highest surprisal, with decay over turns (Yao et al. 2024, arXiv 2405.12528)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Keeps, Positions, View
from lengthwise.core.spec import Method, Spec, param

SLACK = 64  # tokens freed at once while decoding


@dataclass(frozen=True)
class Sirllm(Positions, Keeps):
    """First tokens, the most surprising tokens, and the most recent ones in what room is left.

    A token's entropy is its surprisal e_i = -ln p(x_i | x_<i) under the model and the cache it had; after k turns it
    counts e_i * decay^k. A turn is a piece of input read after an answer (or at the start). Positions are counted
    inside the cache.
    """

    sinks: int = param(4, "first tokens that are always kept")
    entropy: int = param(1000, "tokens kept for their surprisal (less what is coming in)")
    recent: int = param(1000, "tokens kept for being recent, at least")
    decay: float = param(1.0, "factor on the entropies for every turn (.7 and .9 in the paper's dialogues)")

    in_cache = True
    needs_surprise = True

    spec: ClassVar[Spec] = Spec(
        name="sirllm",
        family="cache",
        summary="keeps surprising tokens beside sinks and recent ones; entropies decay over dialogue turns",
        formula="keep {n < s} + top_(c_e - coming) of e_n * decay^turns, e_n = -ln p(x_n|x_<n), then the most recent",
        seams=("position", "keep"),
        papers=(94,),
        source="arXiv 2405.12528, section 3; layout of the released code, entropy by the paper's formula "
        "(the released code gathers the logits of the token before)",
        exact_when="the input fits the cache",
        refuses="a cache beyond the trained window; a forward pass longer than half the cache",
        simplified=f"while decoding it frees {SLACK} tokens at a time",
        bounded=True,
        neutral={"entropy": 1 << 20},
        test="tests/oracle/test_sirllm.py",
    )

    @property
    def size(self) -> int:
        """Tokens that the cache may hold."""
        return self.sinks + self.entropy + self.recent

    def validate(self) -> None:
        """Sizes that make sense."""
        self.require(min(self.sinks, self.entropy, self.recent) >= 0, "sizes must be at least 0")
        self.require(self.size >= 8, "sinks + entropy + recent must be at least 8")
        self.require(0 < self.decay <= 1, "decay must be in (0, 1]")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Positions inside the cache must be trained ones."""
        if model is not None and model.window < self.size < 1 << 20:
            return [f"sinks + entropy + recent = {self.size} is beyond the trained window of {model.window}"]
        return []

    def keep(self, view: View) -> Tensor | None:
        """Make room for the block when it would not fit."""
        n, coming = view.kv.n, len(view.positions)
        if n + coming <= self.size:
            return None
        coming = max(coming, min(SLACK, self.size // 8))
        room = max(self.size - coming, self.sinks)
        kept = torch.zeros(n, dtype=torch.bool)
        kept[: self.sinks] = True
        assert view.surprise is not None
        assert view.ages is not None
        worth = view.surprise * self.decay ** view.ages.float()
        count = min(max(0, self.entropy - coming), room - self.sinks, n)
        kept[worth.sort(descending=True, stable=True).indices[:count]] = True
        left = room - int(kept.sum())
        recent = (~kept).nonzero()[:, 0].flip(0)[: max(0, left)]
        kept[recent] = True
        return kept.nonzero()[:, 0]

    def tokens_held(self, length: int, model: ModelFacts) -> int:
        """The cache."""
        return min(length, self.size)
