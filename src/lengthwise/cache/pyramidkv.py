"""PyramidKV: SnapKV's rule with budgets that shrink from layer to layer (Cai et al. 2024, arXiv 2406.02069)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.cache._evict import Votes
from lengthwise.core.seams import View
from lengthwise.core.spec import Spec, param


@dataclass(frozen=True)
class Pyramidkv(Votes):
    """As `snapkv`, but the full-attention layer l of L keeps the window and b_l voted tokens.

    b_l = high - l (high - low) / (L - 1), low = (budget - w) / beta, high = 2 (budget - w) - low: `budget` on average.
    When there are not `high` tokens before the window, the first layer keeps them all and the last one more.
    """

    window: int = param(8, "last tokens: their queries vote, and they stay")
    beta: int = param(20, "how steep: the last layer keeps 1/beta of the average beside the window")

    spec: ClassVar[Spec] = Spec(
        name="pyramidkv",
        family="cache",
        summary="as snapkv, with more tokens in the lower layers and fewer in the higher ones",
        formula="layer l keeps top_b_l of v_n (snapkv) and the last w; b_l = high - l (high-low)/(L-1), "
        "low = (budget-w)/beta, high = 2(budget-w) - low",
        seams=("keep",),
        source="arXiv 2406.02069, section 4; window, kernel, pooling and beta of its released runs",
        exact_when="no more than `budget` tokens are read",
        refuses="methods that move keys, give them several positions, or select by position",
        simplified="heads that share keys vote together; layers are counted among the full-attention ones",
        neutral={"budget": 1 << 20},
        test="tests/oracle/test_evict.py",
    )

    def validate(self) -> None:
        """Sizes that fit each other."""
        super().validate()
        self.require(self.beta >= 1, "beta must be at least 1")

    def layer_budget(self, view: View) -> int:
        """The window and the layer's share."""
        mean = self.budget - self.window
        low = mean // self.beta
        high = min(2 * mean - low, view.kv.n - self.window)
        low = 2 * mean - high if high < 2 * mean - low else low
        layers = view.facts.full_layers
        if layers == 1:
            return self.budget
        above = sum(kind == "full" for kind in view.facts.layer_kinds[: view.layer])
        return self.window + high - above * (high - low) // (layers - 1)
