"""Train a prefix for `ntk-attention` on a frozen model and a text, beside explicit prefixes of m tokens.

    python scripts/fit_prefix.py --model pocket-reader --text topics --out prefix.safetensors
    lengthwise compare --stack "ntk-attention:params=prefix.safetensors" ...

Prints the loss on held-out text without a prefix, with the d^2 + d numbers for each head, and with trained keys and
values of m tokens (P-tuning v2), all trained alike, with what each of them holds.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise import models
from lengthwise.attention import _prefix
from lengthwise.attention._plain import attending
from lengthwise.bench.filler import filler
from lengthwise.core import compat


class Explicit(nn.Module):
    """Keys and values of m tokens before every sequence: [2, L, Hkv, m, D]."""

    def __init__(self, layers: int, heads: int, m: int, dim: int) -> None:
        super().__init__()
        self.kv = nn.Parameter(torch.randn(2, layers, heads, m, dim) * 0.1)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention with them."""
        own, n = self.kv[:, int(module.layer_idx)], q.shape[2]  # type: ignore[arg-type]
        k, v = (torch.cat([x.expand(len(q), -1, -1, -1), y], 2) for x, y in zip(own, (k, v), strict=True))
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        seen = torch.cat([torch.ones(n, own.shape[2], dtype=torch.bool), seen], 1)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-reader")
    parser.add_argument("--text", default="topics", help="story, topics, or a text file; its last tenth is held out")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--explicit", default="1,16,64", help="lengths m of the explicit prefixes; empty: none")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--pieces", type=int, default=2000, help="sentences of text")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model, tokenizer = models.load(given.model)
    model = model.float().requires_grad_(False)
    text = "".join(filler(given.text, random.Random(given.seed)).take(given.pieces))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    cut = len(ids) * 9 // 10
    held_out = ids[cut : cut + len(ids[cut:]) // given.length * given.length].view(-1, given.length)[:64]
    facts = compat.model_facts(model)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(given.seed * 10_000 + step)
        starts = torch.randint(0, cut - given.length, (given.batch,), generator=draw).tolist()
        some = torch.stack([ids[a : a + given.length] for a in starts])
        return some, some

    @torch.no_grad()
    def loss_with(attend: Any) -> float:
        with attending(model, attend):
            return float(model(held_out, labels=held_out, use_cache=False).loss)

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 25 == 0:
            print(f"  step {step}/{steps}: {loss:.3f}", file=sys.stderr)

    with torch.no_grad():
        print(f"no prefix: loss {float(model(held_out, labels=held_out, use_cache=False).loss):.3f}", flush=True)
    prefix = _prefix.fit(model, batches, steps=given.steps, rate=given.rate, seed=given.seed, progress=progress)
    if given.out:
        prefix.save(given.out)
    size = sum(p.numel() for p in prefix.parameters())
    print(f"ntk-attention: loss {loss_with(_prefix.attend_beside(prefix)):.3f}, {size:,} numbers", flush=True)
    for m in map(int, filter(None, given.explicit.split(","))):
        torch.manual_seed(given.seed)
        explicit = Explicit(len(facts.layer_kinds), facts.kv_heads, m, facts.head_dim)
        optimizer = torch.optim.Adam(explicit.parameters(), lr=given.rate)
        with attending(model, explicit.attend):
            for step in range(given.steps):
                some, labels = batches(step)
                loss = model(some, labels=labels, use_cache=False).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        loss = loss_with(explicit.attend)
        print(f"explicit prefix of {m}: loss {loss:.3f}, {explicit.kv.numel():,} numbers", flush=True)


if __name__ == "__main__":
    main()
