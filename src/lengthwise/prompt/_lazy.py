"""A reading in which every token is computed only as deep as it is wanted, and deeper when it is wanted again.

Each token has a depth: the layers that it has been through. Its keys and values exist in those layers, and its hidden
state before the next one is kept. A forward pass goes down the layers with a set of active tokens. In a layer, the
active tokens that have not been through it are computed: they see the active tokens before them. Where tokens are
pruned, the set shrinks to those that the newest token looks at most; whoever is left behind stays at its depth until
a later pass has it in its set again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lengthwise import kernels
from lengthwise.core import attend as attention
from lengthwise.core.attach import Run
from lengthwise.core.frames import NATIVE
from lengthwise.core.session import LayerSlot, Session
from lengthwise.errors import BadInput

SPARE = 64  # tokens for which there is room beside those of the first pass
NONE = -1  # a token that has no keys and values in a layer


class LazySession(Session):
    """A session of one sequence. `kept` says what share of the active tokens goes on after a layer; others all."""

    def __init__(self, run: Run, kept: Mapping[int, float], name: str) -> None:
        super().__init__(run)
        self.kept, self.name = kept, name
        self.depth = torch.empty(0, dtype=torch.long)  # [n] layers that every token has been through
        self.hidden = torch.empty(0)  # [n, H] what goes into the next layer
        self.slots = [torch.empty(0, dtype=torch.long) for _ in self.layers]  # [n] where a token lies in a layer
        self.angles: dict[str, tuple[Tensor, Tensor]] = {}  # cos and sin [1, n, R] of every kind of layer
        self.active = self.rows = torch.empty(0, dtype=torch.long)  # in the layer in progress, ascending
        self.new = 0  # tokens of the pass in progress that were not there before
        self.importance = torch.empty(0)
        self.revived = 0

    def begin(self, mask: Tensor | None, batch: int, tokens: int) -> None:
        """Before a forward pass."""
        if batch != 1:
            raise BadInput(f"{self.name} reads one sequence at a time, not a batch of {batch}")
        super().begin(mask, batch, tokens)

    @contextmanager
    def attached(self) -> Iterator[LazySession]:
        """Have the model's layers ask this session what to compute, in passes that are given it."""
        hooks = []
        layers: Any = self.run.anatomy.decoder.layers
        try:
            for index, layer in enumerate(layers):
                hooks.append(layer.register_forward_pre_hook(partial(self._before, index), with_kwargs=True))
                hooks.append(layer.register_forward_hook(partial(self._after, index), with_kwargs=True))
            yield self
            self._account()
        finally:
            for hook in hooks:
                hook.remove()

    def _mine(self, kwargs: Mapping[str, Any]) -> bool:
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        return cache is self

    def _before(self, index: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Put the hidden states of the tokens that are to be computed before the layer, at their own positions."""
        if not self._mine(kwargs):
            return None
        if index == 0:
            self._enter(args[0] if args else kwargs["hidden_states"])
        kind = self.run.facts.layer_kinds[index]
        cos, sin = kwargs["position_embeddings"]
        known = self.angles.get(kind)
        if known is None:
            self.angles[kind] = cos, sin
        elif known[0].shape[1] < len(self.depth):
            self.angles[kind] = torch.cat([known[0], cos], 1), torch.cat([known[1], sin], 1)
        rows = self.active[self.depth[self.active] == index]
        self.revived += 0 if index == 0 else int((~torch.isin(rows, self.rows)).sum())
        self.rows = rows
        cos, sin = self.angles[kind]
        where = rows.to(self.hidden.device)
        kwargs = {**kwargs, "position_embeddings": (cos[:, where], sin[:, where]), "position_ids": where[None]}
        states = self.hidden[where][None]
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}

    def _enter(self, hidden: Tensor) -> None:
        """New tokens, at depth 0; all tokens are active in the first layer."""
        self.new = hidden.shape[1]
        self.depth = torch.cat([self.depth, torch.zeros(self.new, dtype=torch.long)])
        self.hidden = hidden[0].clone() if len(self.hidden) == 0 else torch.cat([self.hidden, hidden[0]])
        more = torch.full((self.new,), NONE)
        self.slots = [torch.cat([s, more]) for s in self.slots]
        self.active = torch.arange(len(self.depth))

    def _after(self, index: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take the tokens that were computed one layer deeper, and leave the unimportant ones behind."""
        if not self._mine(kwargs):
            return
        out = output[0] if isinstance(output, tuple) else output
        self.hidden[self.rows.to(out.device)] = out[0]
        self.depth[self.rows] = index + 1
        count = math.ceil(self.kept.get(index, 1.0) * len(self.active))
        if count < len(self.active):
            self.run.ledger.acted[self.name] += 1
            self.active = self.active[most_important(self.importance, count)]

    def attend(self, slot: LayerSlot, q: Tensor, scale: float, softcap: float | None) -> Tensor:
        """Attention of the tokens being computed over the active ones: q [1, Hq, R, D] -> [1, R, Hq, D]."""
        assert slot.new is not None
        (k, v), slot.new = slot.new, None
        kv, rows, active, where = slot.rows[0], self.rows, self.active, self.slots[slot.index]
        position = slot.plan.position
        if position is not None:
            factor = position.query_factor(self.run.facts, rows, slot.index)
            q = q if factor is None else q * factor.to(q)[:, None]
            self.run.count(slot.plan, [], 0)
        if kv.n == 0:  # what stays behind here takes no room
            kv.reserve(len(rows) + SPARE, 1 << 40)
        where[rows] = torch.arange(kv.n, kv.n + len(rows))
        kv.append({NATIVE: k[0]}, v[0], rows)
        slots = where[active]
        keys, values = kv.keys[NATIVE].read(0, kv.n), kv.values.read(0, kv.n)
        if not torch.equal(slots, torch.arange(kv.n)):
            keys, values = (x.index_select(1, slots.to(x.device)) for x in (keys, values))
        receipt = self.run.ledger.layers[slot.index]
        rules, outs = slot.plan.rules, []
        lse = torch.empty(0)
        for a in range(0, len(rows), self.run.block):
            some = rows[a : a + self.run.block]
            seen = int(torch.searchsorted(active, some[-1], right=True))  # nobody sees what comes later
            out, lse, pairs = kernels.attend(
                (q[0, :, a : a + len(some)],),
                (keys[:, :seen],),
                values[:, :seen],
                q_positions=some,
                k_positions=active[:seen],
                rules=rules,
                scale=scale,
                softcap=softcap,
            )
            outs.append(out)
            receipt.pairs += pairs
            receipt.bytes_read += 2 * seen * keys.shape[0] * keys.shape[2] * keys.element_size()
        watch = self.watch if slot.plan.kind == "full" else None
        if slot.index in self.kept or watch is not None:
            weights = self._last_weights(slot, q[0, :, -1:], keys, lse[:, -1:], scale, softcap)
            self.importance = weights[:, 0].mean(0)
            if watch is not None:
                watch.add(0, active, weights)
        before = len(self.depth) - self.new
        receipt.queries += len(rows)
        receipt.dense_pairs += q.shape[1] * (self.new * before + self.new * (self.new + 1) // 2)
        slot.seen = len(self.depth)
        self.run.account([slot])
        return torch.cat(outs, 1).transpose(0, 1)[None].to(q.dtype)

    def _last_weights(
        self, slot: LayerSlot, q: Tensor, keys: Tensor, lse: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        """The softmax weights [Hq, 1, S] of the newest token, q [Hq, 1, D], on the active ones."""
        mask = torch.ones(1, len(self.active), dtype=torch.bool)
        for window, sinks in slot.plan.rules:
            mask &= (self.active[-1] - self.active < window) | (self.active < sinks)
        return attention.weights(q, keys, lse, scale=scale, mask=mask.to(q.device), softcap=softcap).cpu()

    def _account(self) -> None:
        """Say what was computed."""
        if len(self.depth):
            share = float(self.depth.sum()) / (len(self.depth) * len(self.layers))
            self.run.ledger.notes.append(
                f"{self.name} computed {share:.0%} of all tokens in all layers; {self.revived:,} of them came back"
            )


def most_important(importance: Tensor, count: int) -> Tensor:
    """Indices [count], ascending, of the largest `importance` [n], of equals the first; the last is always there."""
    wanted = importance.double().clone()
    wanted[-1] = math.inf
    return wanted.argsort(descending=True, stable=True)[:count].sort().values
