"""What a session remembers beside keys and values: surprisals of the tokens read, and attention by position."""

from __future__ import annotations

import torch
from torch import Tensor


class Surprise:
    """Surprisals -ln p(x_i | x_<i) in nats of every token read, and the turn in which it was read, per row by position.

    `last_logits` [B, V] score the first token of the next pass.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.turns: list[Tensor] = []
        self.last_logits: Tensor | None = None

    def learn(self, logits: Tensor, ids: Tensor, pads: list[int], begun: int, turn: int) -> None:
        """After a forward pass of turn `turn` that began at column `begun`: logits [B, C, V], ids [B, C]."""
        if not self.values:
            self.values = [torch.empty(0) for _ in pads]
            self.turns = [torch.empty(0, dtype=torch.long) for _ in pads]
        logp = torch.log_softmax(logits.float(), dim=-1)
        for row, pad in enumerate(pads):
            skip = min(max(0, pad - begun), ids.shape[1])
            own = ids[row, skip:]
            if len(own) == 0:
                continue
            new = torch.full((len(own),), float("nan"))
            new[1:] = -logp[row, skip:-1].gather(1, own[1:, None])[:, 0].cpu()
            if self.last_logits is not None and begun > pad:
                new[0] = -torch.log_softmax(self.last_logits[row].float(), -1)[own[0]].cpu()
            # nothing predicted the first token: it counts as the most surprising of its segment
            new = torch.where(new.isnan(), new[1:].max() if len(new) > 1 else torch.tensor(0.0), new)
            self.values[row] = torch.cat([self.values[row], new])
            self.turns[row] = torch.cat([self.turns[row], torch.full((len(own),), turn)])
        self.last_logits = logits[:, -1]


class Watch:
    """Attention by position, the raw material of evidence: the strongest head of every layer and query, summed.

    Most heads spread their weight over what is near; the maximum over heads keeps those that look something up.
    """

    def __init__(self) -> None:
        self.mass: dict[int, Tensor] = {}

    def add(self, row: int, positions: Tensor, weights: Tensor) -> None:
        """Weights [Hq, C, S] on positions [S]; [H, S] or [H, C, S] where heads differ, each for Hq / H in a row."""
        mass = self.mass.get(row, torch.empty(0))
        top = int(positions.max()) + 1
        if top > len(mass):
            mass = torch.cat([mass, torch.zeros(max(top, 2 * len(mass)) - len(mass))])
        if positions.dim() == 1:
            mass.index_add_(0, positions, weights.amax(0).sum(0).float().cpu())
        else:
            heads, rows = positions.shape[0], weights.shape[1]
            strongest = weights.unflatten(0, (heads, -1)).amax(1).transpose(0, 1).flatten(1).float().cpu()
            places = positions.cpu() if positions.dim() == 3 else positions[:, None].expand(-1, rows, -1)
            places = places.transpose(0, 1).flatten(1)
            mass[:top] += torch.zeros(rows, top).scatter_reduce_(1, places, strongest, "amax").sum(0)
        self.mass[row] = mass
