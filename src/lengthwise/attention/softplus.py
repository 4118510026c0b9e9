"""Softplus attention with re-weighting, in place of softmax (Gao and Spratling 2025, arXiv 2501.13428)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lengthwise.core.seams import Part, Scores, View
from lengthwise.core.spec import Spec, param

EARLY = 3  # the first rows, from whose few weights the published code takes nothing off


@dataclass(frozen=True)
class Softplus(Scores):
    """Length-scaled softplus attention (LSSA), and the re-weighting that sharpens it (LSSAR). For N keys seen:

        A = softplus(log d * log N * cos(q, k)) / sum;   A' = relu(N A - O)^power / sum,  O = 1, or 0 while N <= 3

    The cosine bounds the logits, log N keeps the entropy of a row as it grows, and the power leaves the weight with the
    few keys that stand out, however many others there are. It is an attention to train a model with
    (`scripts/train_softplus.py`): a model that was trained with softmax does not read with it. `activation=exp` keeps
    the model's own softmax, so that the re-weighting alone can be tried on it, as in the paper's ablation.
    """

    activation: Literal["softplus", "exp"] = param("softplus", "softplus of scaled cosines, or the model's own softmax")
    power: int = param(15, "power of the re-weighting; 0: none")

    spec: ClassVar[Spec] = Spec(
        name="softplus",
        family="attention",
        summary="scaled softplus in place of softmax, sharpened by a power; for models that were trained with it",
        formula="A = softplus(log d log N cos(q, k)) / sum; A' = relu(N A - O)^p / sum, O = 1 (0 for N <= 3); "
        "N: keys that the query sees",
        seams=("score",),
        papers=(174,),
        source="arXiv 2501.13428, equations of LSSA and of the re-weighting; power 15 as in its long-context tables",
        exact_when="activation=exp and power=0",
        refuses="block lists, and methods that add keys of their own choice: their scores come summed up by softmax",
        simplified="no fused kernel: the scores of a block of queries are held at once; a query whose weights are all "
        "equal has nothing above their mean, and keeps them",
        neutral={"activation": "exp", "power": 0},
        test="tests/oracle/test_softplus.py",
    )

    def validate(self) -> None:
        """A power."""
        self.require(self.power >= 0, "power must be at least 0")

    def queries_at_once(self) -> int:
        """A block's scores over all keys are held at once."""
        return 256

    def weigh(self, view: View, parts: Sequence[Part]) -> list[Tensor]:
        """The weights of every part."""
        scores, seen = [], []
        for part in parts:
            q, k = part.q.float(), part.k.float()
            if self.activation == "softplus":
                q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
            grouped = (q.unflatten(0, (k.shape[0], -1)) @ k.transpose(1, 2)[:, None]).flatten(0, 1)
            rows = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
            scores.append(grouped)
            seen.append(rows if part.mask is None else part.mask)
        joined = torch.cat(scores, -1)
        if self.activation == "exp":
            joined = joined * view.scale
            joined = joined if view.softcap is None else view.softcap * torch.tanh(joined / view.softcap)
        weights = weights_of(joined, torch.cat(seen, -1), self.activation, self.power, view.q.shape[-1])
        return list(weights.split([s.shape[-1] for s in scores], -1))


def weights_of(
    scores: Tensor, seen: Tensor, activation: Literal["softplus", "exp"], power: int, head_dim: int
) -> Tensor:
    """Attention weights from scores [..., C, S]: cosines for softplus, logits for exp. `seen` is bool [C, S].

    Gradients pass. Rows sum to 1, or to 0 where nothing is seen.
    """
    count = seen.sum(-1, keepdim=True).to(scores)
    if activation == "softplus":
        scale = math.log(head_dim) * count.clamp(min=1).log()
        raw = torch.nn.functional.softplus(scale * scores) * seen
        first = raw / raw.sum(-1, keepdim=True).clamp(min=1e-30)
    else:
        first = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    if power == 0:
        return first
    above = (first * count - (count > EARLY).to(scores)).clamp(min=0) * seen
    most = above.amax(-1, keepdim=True).detach()
    raised = (above / most.clamp(min=1e-30)) ** power  # over the largest one: N^15 is beyond float32
    return torch.where(most > 0, raised / raised.sum(-1, keepdim=True).clamp(min=1e-30), first)
