"""k-means by direction, all heads at once, the same result at every run."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 50


def kmeans(x: Tensor, count: int) -> Tensor:
    """Labels [H, n] in 0..count-1 of x [H, n, D] float32: Lloyd's rounds on x / |x| from k-means++ seeds."""
    x = torch.nn.functional.normalize(x, dim=-1)
    centers = _seeds(x, count)
    labels = torch.full(x.shape[:2], -1, device=x.device)
    for _ in range(_ROUNDS):
        # the nearest centre: |x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2)
        new = (x @ centers.transpose(1, 2) - centers.square().sum(-1)[:, None] / 2).argmax(-1)
        if torch.equal(new, labels):
            break
        labels = new
        moved, sizes = means(x, labels, count)
        centers = torch.where(sizes[..., None] > 0, moved, centers)
    return labels


def means(x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean [H, count, D] and size [H, count] (float32) of every cluster of x [H, n, D]; 0 where there is no member."""
    sums = torch.zeros(x.shape[0], count, x.shape[2], device=x.device)
    sums.scatter_add_(1, labels[..., None].expand_as(x), x)
    sizes = torch.zeros(sums.shape[:2], device=x.device).scatter_add_(1, labels, torch.ones_like(x[..., 0]))
    return sums / sizes.clamp(min=1)[..., None], sizes


def _seeds(x: Tensor, count: int) -> Tensor:
    """k-means++: each next centre is drawn with a chance that grows with the squared distance to those there are."""
    generator = torch.Generator(device=x.device).manual_seed(0)
    heads = torch.arange(x.shape[0], device=x.device)
    nearest = torch.ones(x.shape[:2], device=x.device)
    seeds = []
    for _ in range(count):
        picked = torch.multinomial(nearest.clamp(min=1e-12), 1, generator=generator)[:, 0]
        seeds.append(x[heads, picked])
        distance = (x - seeds[-1][:, None]).square().sum(-1)
        nearest = distance if len(seeds) == 1 else torch.minimum(nearest, distance)
    return torch.stack(seeds, 1)
