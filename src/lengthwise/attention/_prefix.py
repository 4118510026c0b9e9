"""The two statistics by which NTK-attention stands for a prefix, and how they are made: summed up or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lengthwise.attention._plain import attending
from lengthwise.core import compat
from lengthwise.core.attend import Partial
from lengthwise.errors import BadInput

LEAST = 1e-20  # weight of a prefix that has none, so that its values can still be divided by it
START = 1e-4  # standard deviation of untrained statistics: next to nothing, as in the released code


def feature(x: Tensor) -> Tensor:
    """phi(x) = elu(x / d^(1/4)) + 1 of x [..., D], float32: positive, so that phi(q) . phi(k) can be a weight."""
    return nn.functional.elu(x.float() * x.shape[-1] ** -0.25) + 1


def partial(q: Tensor, z: Tensor, k: Tensor) -> Partial:
    """What the prefix adds to attention: q [..., H, C, D], z [H, D, D], k [H, D] -> out [..., H, C, D], logsumexp.

    Its weight beside exp(q . k_j / sqrt d) of a key is phi(q) . |k|, its values phi(q) z.
    """
    phi = feature(q)
    weight = (phi @ k.float().abs()[..., None])[..., 0].clamp(min=LEAST)
    return (phi @ z.float()) / weight[..., None], weight.log()


def summed(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Of an explicit prefix: keys and values [H, m, D] -> z = phi(K)^T V [H, D, D], k = phi(K)^T 1 [H, D]."""
    phi = feature(keys)
    return phi.transpose(1, 2) @ values.float(), phi.sum(1)


class Prefix(nn.Module):
    """z [L, H, D, D] and k [L, H, D] of every layer and query head: d^2 + d numbers, however long the prefix is."""

    def __init__(self, layers: int, heads: int, dim: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.randn(layers, heads, dim, dim) * START)
        self.k = nn.Parameter(torch.randn(layers, heads, dim) * START)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, query heads, head dimension."""
        layers, heads, dim = self.k.shape
        return layers, heads, dim

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        save_file({"z": self.z.detach().contiguous(), "k": self.k.detach().contiguous()}, str(path))


def load(path: str | Path) -> Prefix:
    """The prefix that `save` wrote. Raises BadInput for a file that is missing or is something else."""
    try:
        with safe_open(str(path), framework="pt") as file:
            found = {name: file.get_tensor(name) for name in ("z", "k")}
        prefix = Prefix(*found["k"].shape)
        prefix.load_state_dict(found)
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:
        raise BadInput(
            f"{path} is not a file of an NTK-attention prefix: write one with scripts/fit_prefix.py"
        ) from error
    return prefix.requires_grad_(False)


def fit(
    model: PreTrainedModel,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int = 100,
    rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Prefix:
    """Learn the prefix by which a frozen `model` best predicts given texts.

    `batches(step)` gives input ids and labels [B, N] (-100: not scored); Adam's `rate` as published. `progress` hears
    (step, steps, loss in nats).
    """
    facts = compat.model_facts(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prefix = Prefix(len(facts.layer_kinds), facts.heads, facts.head_dim)
    optimizer = torch.optim.Adam(prefix.parameters(), lr=rate)
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        with attending(model, attend_beside(prefix)):
            for step in range(steps):
                ids, labels = batches(step)
                loss = model(ids, labels=labels, use_cache=False).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if progress is not None:
                    progress(step + 1, steps, float(loss.detach()))
    finally:
        for p, needed in before:
            p.requires_grad_(needed)
    return prefix.requires_grad_(False)


def attend_beside(prefix: Prefix) -> Callable[[nn.Module, Tensor, Tensor, Tensor, float], Tensor]:
    """Causal attention with the prefix, for whole sequences, through which gradients pass."""

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        layer, n, group = int(module.layer_idx), q.shape[2], q.shape[1] // k.shape[1]  # type: ignore[arg-type]
        k, v = k.repeat_interleave(group, 1).float(), v.repeat_interleave(group, 1).float()
        seen = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        logits = (q.float() @ k.transpose(2, 3) * scale).masked_fill(~seen, float("-inf"))
        lse = logits.logsumexp(-1, keepdim=True)
        out, weight = partial(q, prefix.z[layer], prefix.k[layer])
        share = torch.sigmoid(weight[..., None] - lse)  # of the prefix among all weight
        return (out * share + (logits.softmax(-1) @ v) * (1 - share)).to(q.dtype)

    return attend
