"""Draws tokens from logits, for many chains at once, so that what a chain gets does not depend on the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.thinking.chain import Settings


@dataclass
class Draw:
    """What a chain draws with: its settings, its own random numbers, and the ids written so far in it."""

    settings: Settings
    source: random.Random
    ids: Sequence[int]


@dataclass
class Drawn:
    """A token, log p(token) under the model at temperature 1 if that was asked for, or what the logits hook raised."""

    token: int = -1
    logprob: float = 0.0
    error: Exception | None = None


def draw(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """One token for every row of logits [B, V].

    p = softmax(hook(logits) / temperature) in float32; top_p keeps the fewest most likely tokens whose p sum to at
    least top_p; the token is where the running sum of p passes u, one uniform number of the row's own source.
    Temperature 0 takes the most likely token.
    """
    logits = logits.float().cpu()
    out = [Drawn() for _ in draws]
    used = logits
    for i, one in enumerate(draws):
        if one.settings.logits is not None:
            used = logits.clone() if used is logits else used
            try:
                used[i] = one.settings.logits(logits[i].clone(), one.ids)
            except Exception as error:  # whatever it is, it is this chain's
                out[i].error = error
    tokens = used.argmax(-1)
    hot = [i for i, one in enumerate(draws) if one.settings.temperature > 0]
    if hot:
        heat = torch.tensor([draws[i].settings.temperature for i in hot])
        p = torch.softmax(used[hot] / heat[:, None], -1)
        for k, i in enumerate(hot):
            if draws[i].settings.top_p < 1:
                p[k] = _nucleus(p[k], draws[i].settings.top_p)
        sums = p.double().cumsum(-1)
        u = torch.tensor([draws[i].source.random() for i in hot], dtype=torch.float64)
        found = torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True)[:, 0]
        tokens[hot] = found.clamp(max=logits.shape[-1] - 1)
    said = [i for i, one in enumerate(draws) if one.settings.logprobs]
    if said:
        logp = torch.log_softmax(logits[said], -1).gather(1, tokens[said][:, None])[:, 0].tolist()
        for i, value in zip(said, logp, strict=True):
            out[i].logprob = value
    for drawn, token in zip(out, tokens.tolist(), strict=True):
        drawn.token = token
    return out


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """p [V] with zeros for all but the fewest most likely tokens that sum to at least top_p."""
    values, order = p.sort(descending=True, stable=True)
    before = values.cumsum(-1) - values
    kept = torch.zeros_like(p)
    kept[order] = torch.where(before < top_p, values, 0.0)
    return kept
