"""A Llama in float64, written out: the oracle of methods that change where keys stand or which are seen.

It keeps un-rotated keys and is read in chunks of any size, down to one token. For every layer and chunk a rule says,
for every query and held key, whether it is seen and at what distance. Nothing here is shared with the library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor

import tiny


@dataclass
class Held:
    """What one layer holds: un-rotated keys and values [Hkv, n, D], and where each token stood in the text [n]."""

    layer: int
    k: Tensor
    v: Tensor
    positions: Tensor

    def keep(self, slots: Tensor) -> None:
        self.k, self.v, self.positions = self.k[:, slots], self.v[:, slots], self.positions[slots]


# (held, with the chunk's own keys; queries [Hq, C, D]; their positions [C]) -> seen, distance: [C, n] or [Hq, C, n]
Rule = Callable[[Held, Tensor, Tensor], tuple[Tensor, Tensor]]


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    return queries[:, None] - keys[None]


def plain(held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    d = distances(positions, held.positions)
    return d >= 0, d


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """x [..., D] as D/2 complex numbers, turned by angle [..., D/2]."""
    a, b = x.chunk(2, -1)
    return torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)


class Reference:
    """`read` takes ids [C] and gives logits [C, V]; `factor` scales the query at a position."""

    def __init__(self, model: Any, rule: Rule = plain, factor: Callable[[int], float] | None = None) -> None:
        config = model.config
        self.config, self.rule, self.factor = config, rule, factor
        self.w = {name: p.detach().double() for name, p in model.named_parameters()}
        self.dim = config.hidden_size // config.num_attention_heads
        base = config.rope_parameters["rope_theta"]
        self.theta = base ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        empty = torch.zeros(config.num_key_value_heads, 0, self.dim, dtype=torch.float64)
        self.held = [Held(i, empty, empty, torch.zeros(0, dtype=torch.long)) for i in range(config.num_hidden_layers)]
        self.read_so_far = 0
        self.observers: list[Callable[[Held, Tensor, Tensor], None]] = []

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * self.w[name]

    def scores(self, q: Tensor, k: Tensor, distance: Tensor) -> Tensor:
        """q [Hq, C, D], k [Hkv, n, D], distance [Hq, C, n] -> the logits of RoPE at these distances, [Hq, C, n]."""
        k = k.repeat_interleave(len(q) // len(k), 0)
        turned = turn(q[:, :, None], distance[..., None].double() * self.theta)  # [Hq, C, n, D/2]
        flat = turn(k[:, None], torch.zeros(1, dtype=torch.float64))
        return (turned * flat.conj()).real.sum(-1) * self.dim**-0.5

    def attend(self, held: Held, q: Tensor, positions: Tensor) -> Tensor:
        seen, distance = self.rule(held, q, positions)
        shape = (len(q), q.shape[1], held.k.shape[1])
        if self.factor is not None:
            q = q * torch.tensor([self.factor(int(p)) for p in positions], dtype=torch.float64)[:, None]
        scores = self.scores(q, held.k, distance.expand(shape)).masked_fill(~seen.expand(shape), float("-inf"))
        weights = scores.softmax(-1)
        for observer in self.observers:
            observer(held, weights, positions)
        return weights @ held.v.repeat_interleave(len(q) // len(held.v), 0)

    def read(self, ids: Tensor) -> Tensor:
        x = self.w["model.embed_tokens.weight"][ids]
        positions = torch.arange(self.read_so_far, self.read_so_far + len(ids))
        for held in self.held:
            at = f"model.layers.{held.layer}."
            h = self.norm(x, at + "input_layernorm.weight")
            q, k, v = (
                (h @ self.w[f"{at}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, self.dim)).transpose(0, 1)
                for name in "qkv"
            )
            held.k, held.v = torch.cat([held.k, k], 1), torch.cat([held.v, v], 1)
            held.positions = torch.cat([held.positions, positions])
            out = self.attend(held, q, positions).transpose(0, 1).flatten(1)
            x = x + out @ self.w[at + "self_attn.o_proj.weight"].T
            h = self.norm(x, at + "post_attention_layernorm.weight")
            gate, up = (h @ self.w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (torch.nn.functional.silu(gate) * up) @ self.w[at + "mlp.down_proj.weight"].T
        self.read_so_far += len(ids)
        return self.norm(x, "model.norm.weight") @ self.w["lm_head.weight"].T

    def read_all(self, ids: Tensor, chunk: int) -> Tensor:
        return torch.cat([self.read(part) for part in ids.split(chunk)])


@functools.cache
def model_of(name: str, peaked: float = 1.0) -> Any:
    """A tiny Llama with a vocabulary for texts without repeated tokens, which would tie in the first layer.

    `peaked` multiplies the queries.
    """
    config = tiny.CONFIGS[name]()
    config.vocab_size = 512
    torch.manual_seed(1)
    model = tf.LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= peaked
    return model


def text(length: int, seed: int = 0) -> Tensor:
    """Tokens [length] for `model_of`, none of them twice."""
    return torch.randperm(511, generator=torch.Generator().manual_seed(seed))[:length] + 1
