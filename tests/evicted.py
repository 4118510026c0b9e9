"""A Llama in float64 whose key heads hold different tokens: the oracle of methods that evict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reference import Held, Reference

Keep = Callable[["Evicting", int, int], list[list[int]] | None]


class Evicting:
    """Reads pass by pass, in blocks; before each block `keep(self, layer, coming)` gives slots for every key head.

    `places[layer][head]` are the positions held; `rows[layer]` the softmax rows [Hq, n] of all queries so far, each
    over what was held then. `passes` are the lengths of the passes before the present one.
    """

    def __init__(self, model: Any, keep: Keep, block: int = 1 << 30) -> None:
        self.keep, self.block = keep, block
        self.reference = Reference(model, self.rule)
        self.reference.observers.append(self.note)
        self.heads = model.config.num_key_value_heads
        self.group = model.config.num_attention_heads // self.heads
        layers = range(model.config.num_hidden_layers)
        self.places: list[list[list[int]]] = [[[] for _ in range(self.heads)] for _ in layers]
        self.rows: list[list[Tensor]] = [[] for _ in layers]
        self.passes: list[int] = []
        self.this_pass = 0

    def rule(self, held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.tensor(self.places[held.layer]).repeat_interleave(self.group, 0)
        d = positions[None, :, None] - places[:, None, :]
        return d >= 0, d

    def note(self, held: Held, weights: Tensor, positions: Tensor) -> None:
        self.rows[held.layer] += list(weights.unbind(1))

    def read(self, ids: Tensor) -> Tensor:
        out, self.this_pass = [], len(ids)
        for part in ids.split(self.block):
            for held in self.reference.held:
                kept = self.keep(self, held.layer, len(part))
                if kept is not None:
                    self.drop(held, kept)
                first = self.reference.read_so_far
                for places in self.places[held.layer]:
                    places.extend(range(first, first + len(part)))
            out.append(self.reference.read(part))
        self.passes.append(len(ids))
        return torch.cat(out)

    def read_all(self, ids: Tensor, passes: Sequence[int]) -> Tensor:
        return torch.cat([self.read(part) for part in ids.split(list(passes))])

    def drop(self, held: Held, kept: list[list[int]]) -> None:
        held.k = torch.stack([k[slots] for k, slots in zip(held.k, kept, strict=True)])
        held.v = torch.stack([v[slots] for v, slots in zip(held.v, kept, strict=True)])
        held.positions = held.positions[: len(kept[0])]
        layer = self.places[held.layer]
        for head, slots in enumerate(kept):
            layer[head] = [layer[head][s] for s in slots]

    @property
    def reading_ended(self) -> bool:
        """Whether this is a pass of one token after one of several."""
        return self.this_pass == 1 and bool(self.passes) and self.passes[-1] > 1


def top(scores: list[float], count: int) -> list[int]:
    """Slots of the `count` highest scores, ascending; of equal ones the last."""
    return sorted(sorted(range(len(scores)), key=lambda s: (-scores[s], -s))[:count])
