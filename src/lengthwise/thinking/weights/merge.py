"""Merging a model that thinks long with one that thinks short (papers 93, 222).

Linear (AdaR1, arXiv 2504.21659, stage 1):

    theta = alpha * theta_long + (1 - alpha) * theta_short            alpha = 0.8 in the released code

which is task arithmetic with coefficients that sum to one. DARE-TIES (ReCUT, arXiv 2506.10822, released configuration:
density 0.25, weight 0.25 each, normalised), with the updates t_i = theta_i - theta_base of several models:

    DARE   t_i <- t_i * m / p,  m ~ Bernoulli(p) for every number         p = density
    TIES   s = sign(sum_i w_i t_i);  keep of each w_i t_i what has the sign s
    theta  = theta_base + sum_i kept(w_i t_i) / sum_i w_i [kept]

Both training stages of the papers (preference pairs) are training, and are not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lengthwise.errors import BadParameter
from lengthwise.thinking.weights.delta import check_same

ALPHA = 0.8
DENSITY, WEIGHT = 0.25, 0.25


def linear(long: nn.Module, short: nn.Module, alpha: float = ALPHA) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of alpha * long + (1 - alpha) * short, float32, one at a time: give it to `delta.replaced`.

    `alpha` beyond 0 to 1 extrapolates. At 1 and 0 the weights are exactly those of one model. Raises BadInput when the
    models are not of one architecture.
    """
    check_same(long, short)
    return _linear(long, short, alpha)


def _linear(long: nn.Module, short: nn.Module, alpha: float) -> Iterator[tuple[str, Tensor]]:
    others = dict(short.named_parameters())
    for name, weight in long.named_parameters():
        other = others[name].data.to(weight.device).float()
        if alpha == 0:
            yield name, other
        elif alpha != 1:
            yield name, alpha * weight.data.float() + (1 - alpha) * other


def dare_ties(
    base: nn.Module,
    models: Sequence[nn.Module],
    weights: Sequence[float] | None = None,
    density: float = DENSITY,
    seed: int = 0,
) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of the DARE-TIES merge of `models` that were all trained from `base`, float32, one at a time.

    `weights` are one number a model, `density` the share of every update that is kept; `seed` draws it. Raises BadInput
    when the models are not of one architecture, BadParameter for numbers out of range.
    """
    for model in models:
        check_same(base, model)
    weights = [WEIGHT] * len(models) if weights is None else list(weights)
    if not models or len(weights) != len(models) or min(weights) <= 0:
        raise BadParameter("DARE-TIES needs at least one model, and one weight above 0 for each")
    if not 0 < density <= 1:
        raise BadParameter(f"density {density} is not in 0 to 1")
    return _dare_ties(base, models, weights, density, seed)


def _dare_ties(
    base: nn.Module, models: Sequence[nn.Module], weights: Sequence[float], density: float, seed: int
) -> Iterator[tuple[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    others = [dict(model.named_parameters()) for model in models]
    scale = torch.tensor(weights)
    for name, start in base.named_parameters():
        first = start.data.float().cpu()
        steps = torch.stack([other[name].data.float().cpu() - first for other in others])
        steps = steps * (torch.rand(steps.shape, generator=draw) < density) / density
        each = scale.view(-1, *[1] * first.dim())
        weighted = each * steps
        agree = (weighted.sign() == weighted.sum(0).sign()) & (steps != 0)
        total = (each * agree).sum(0)
        yield name, first + (weighted * agree).sum(0) / torch.where(total > 0, total, 1.0)
