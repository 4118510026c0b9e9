"""GemFilter: the tokens that an early layer looks at are all that the model reads (arXiv 2409.17422)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Choice, Keeps, Look, Positions, Prompts
from lengthwise.core.spec import Method, Spec, param

DEPTH = 0.47  # of the layers lie below the one that chooses: 19 of 40 in the paper's Mistral Nemo


@dataclass(frozen=True)
class GemFilter(Prompts):
    """Runs the layers below `layer` on everything, keeps the tokens its last query scores highest, reads those anew.

        s_i = sum_h q_h(last) . k_h(i),   S = avgpool_pool(s),   keep the `top` largest of S, in the order of the text

    What is kept goes through the whole model with positions of its own, so that keys, values and memory of the answer
    are those of `top` tokens. Which layer finds what is asked for differs from model to model, and layers next to it
    may find nothing: the paper takes 13 of 32 (Llama 3.1), 19 of 40 (Mistral Nemo) and 19 of 32 (Phi 3.5).
    """

    top: int = param(1024, "tokens of the text that are kept, as far as they fit the window")
    layer: int | None = param(None, "the layer that chooses, from 0; none: the nearest to 0.47 of the depth")
    pool: int = param(5, "tokens over which scores are averaged; odd")

    spec: ClassVar[Spec] = Spec(
        name="gemfilter",
        family="prompt",
        summary="an early layer's last query chooses the tokens that the whole model then reads",
        formula="s_i = sum_h q_h(last) k_h(i) in `layer`, averaged over `pool` tokens; the `top` highest, in order",
        seams=("prompt",),
        papers=(126,),
        source="arXiv 2409.17422, Algorithm 1; pooling and layers of the released code "
        "(github.com/SalesforceAIResearch/GemFilter)",
        exact_when="the text is no longer than `top` and fits the window",
        refuses="a layer that the model lacks or that slides; methods that count positions in the cache",
        simplified="chooses among the tokens of the text: the question and what frames it are always kept, where the "
        "paper chooses among all; the text is read anew for every question",
        bounded=True,
        neutral={"top": "1m"},
        test="tests/oracle/test_gemfilter.py",
    )

    def validate(self) -> None:
        """A number of tokens, a layer, an odd width."""
        self.require(self.top >= 1, "top must be at least 1")
        self.require(self.layer is None or self.layer >= 0, "layer must be at least 0")
        self.require(self.pool >= 1 and self.pool % 2 == 1, "pool must be odd and at least 1")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The layer must be one of full attention, and every token must have a position of its own."""
        reasons = []
        if model is not None and model.layer_kinds and self.layer is not None:
            count = len(model.layer_kinds)
            if self.layer >= count:
                reasons.append(f"layer={self.layer} is not one of the model's {count}, which are counted from 0")
            elif model.layer_kinds[self.layer] != "full":
                reasons.append(f"layer={self.layer} sees a sliding window only: choose a layer of full attention")
        for other in others:
            if isinstance(other, Positions) and other.in_cache:
                reasons.append(f"gemfilter scores tokens where they stand, and {other.spec.name} counts in the cache")
            elif isinstance(other, Keeps) and other.needs_surprise:
                reasons.append(f"gemfilter stops before the logits, which {other.spec.name} keeps tokens by")
        return reasons

    def choose(self, length: int, limit: int, look: Look) -> Choice:
        """The `top` tokens of highest score; ties go to the earlier one."""
        if length <= min(self.top, limit):
            return Choice(((0, length),))
        layer = early_layer(look.facts.layer_kinds) if self.layer is None else self.layer
        return Choice(spans_of(best(look.early(layer), min(self.top, limit), self.pool)))

    def passes(self, length: int, limit: int) -> list[tuple[int, int]] | None:
        """The whole text, and then what is kept; that the first pass ends early is not counted."""
        kept = min(self.top, limit)
        return [(length, 1)] if length <= kept else [(length, 1), (kept, 1)]


def early_layer(kinds: Sequence[str]) -> int:
    """The layer of full attention that lies nearest to DEPTH; the lower of two."""
    full = [i for i, kind in enumerate(kinds) if kind == "full"]
    return min(full, key=lambda i: (abs(i - math.floor(DEPTH * len(kinds) + 0.5)), i))


def best(scores: Tensor, count: int, pool: int) -> Tensor:
    """Indices [count], ascending, of the highest `scores` [n], averaged over the `pool` tokens around each."""
    finite = torch.where(scores.isinf(), scores[~scores.isinf()].min(), scores)  # unseen: no better than the worst
    smooth = torch.nn.functional.avg_pool1d(
        finite[None].double(), pool, stride=1, padding=pool // 2, count_include_pad=False
    )[0]
    return smooth.argsort(descending=True, stable=True)[:count].sort().values


def spans_of(tokens: Tensor) -> tuple[tuple[int, int], ...]:
    """Runs [start, stop) of consecutive `tokens` [n], which ascend."""
    edges = [0, *((tokens.diff() != 1).nonzero()[:, 0] + 1).tolist(), len(tokens)]
    return tuple((int(tokens[a]), int(tokens[b - 1]) + 1) for a, b in pairwise(edges))
