"""The estimator of SEA: what share of a query's attention lies in each bin of keys, by a kernel and a small decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lengthwise.attention._plain import attending
from lengthwise.core import compat
from lengthwise.errors import BadInput

FLOOR = -15.0  # logarithm of a share that counts as none
NAMES = ("wq", "wk", "up", "up_bias", "down", "down_bias")


class Estimator(nn.Module):
    """Estimated attention by bins of keys, for every layer.

    A bin is the sum of its keys' features, phi(k) = exp(w k - |k|^2 / 2) of k * sqrt(scale), so that phi(q) . bin
    estimates the sum of exp(scale q . k) (FAVOR+). The decoder corrects its logarithm: two convolutions along the bins
    with the heads as channels, the second of which starts at zero. wq [L, Hq, F, D] and wk [L, Hkv, F, D] start as the
    same random orthogonal features.
    """

    def __init__(self, layers: int, heads: int, kv_heads: int, dim: int, features: int = 32, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        wk = torch.stack([_orthogonal(features, dim, draw) for _ in range(layers * kv_heads)])
        wk = wk.view(layers, kv_heads, features, dim)
        self.wk = nn.Parameter(wk)
        self.wq = nn.Parameter(wk.repeat_interleave(heads // kv_heads, 1))
        spread = 1 / math.sqrt(3 * (heads + 1))
        self.up = nn.Parameter(torch.randn(layers, 2 * heads, heads + 1, 3, generator=draw) * spread)
        self.up_bias = nn.Parameter(torch.zeros(layers, 2 * heads))
        self.down = nn.Parameter(torch.zeros(layers, heads, 2 * heads, 3))
        self.down_bias = nn.Parameter(torch.zeros(layers, heads))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers, query heads, key heads, head dimension."""
        return (*self.wq.shape[:2], self.wk.shape[1], self.wk.shape[3])  # type: ignore[return-value]

    def multiplications(self) -> tuple[int, int]:
        """For one query in all heads: those of its features, and those for each bin."""
        _, heads, _, dim = self.shape
        features = self.wq.shape[2]
        return heads * features * dim, heads * features + 3 * 2 * heads * (2 * heads + 1)

    def of_keys(self, layer: int, k: Tensor, scale: float) -> Tensor:
        """Features [Hkv, n, F] float32 of keys [Hkv, n, D]: what is summed up in a bin."""
        return _features(k, self.wk[layer], scale).clamp(max=60).exp()

    def shares(self, layer: int, q: Tensor, bins: Tensor, whole: Tensor, local: Tensor, scale: float) -> Tensor:
        """Logarithms [Hq, R, m + 1] of the shares of attention of queries [Hq, R, D] in m bins, and in what is near.

        Query r may look at the first whole[r] of the bins [Hkv, m, F]; `local` [Hq, R] is the logsumexp of its logits
        on the keys after them.
        """
        m, group = bins.shape[1], q.shape[0] // bins.shape[0]
        features = _features(q, self.wq[layer], scale)
        most = features.amax(-1, keepdim=True)
        estimate = (features - most).exp() @ bins.repeat_interleave(group, 0).transpose(1, 2)
        estimate = estimate.clamp(min=1e-30).log() + most - math.log(features.shape[-1])
        back = whole[:, None] - torch.arange(m, device=q.device)
        there = back > 0
        estimate = estimate.masked_fill(~there, float("-inf"))
        total = torch.cat([estimate, local[..., None]], -1).logsumexp(-1, keepdim=True)
        x = (estimate - total).clamp(min=FLOOR)
        channels = torch.cat([x / -FLOOR, back.clamp(min=0).float().log1p()[None] / 5]).transpose(0, 1)
        y = nn.functional.conv1d(channels, self.up[layer], self.up_bias[layer], padding=1).relu()
        y = nn.functional.conv1d(y, self.down[layer], self.down_bias[layer], padding=1).transpose(0, 1)
        logits = (x + y).masked_fill(~there, float("-inf"))
        return torch.cat([logits, local[..., None] - total], -1).log_softmax(-1)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        save_file({name: getattr(self, name).detach().contiguous() for name in NAMES}, str(path))


def load(path: str | Path) -> Estimator:
    """The estimator that `save` wrote. Raises BadInput for a file that is missing or is something else."""
    try:
        with safe_open(str(path), framework="pt") as file:
            found = {name: file.get_tensor(name).float() for name in NAMES}
        (layers, heads, features, dim), kv_heads = found["wq"].shape, found["wk"].shape[1]
        estimator = Estimator(layers, heads, kv_heads, dim, features)
        estimator.load_state_dict(found)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"{path} is not a file of a SEA estimator: write one with scripts/fit_sea.py") from error
    return estimator.requires_grad_(False)


def fit(
    model: PreTrainedModel,
    texts: Sequence[Tensor],
    *,
    steps: int = 400,
    rows: int = 128,
    width: int = 64,
    features: int = 32,
    rate: float = 1e-2,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Estimator:
    """Distil the attention of a frozen `model` into an estimator: KL of the shares in bins of `width` keys.

    `texts` are ids [N], N a multiple of `width`; each is read once, and its queries and keys are kept meanwhile. Every
    step scores `rows` queries of each layer of one text. `progress` hears (step, steps, mean KL
    in nats).
    """
    facts = compat.model_facts(model)
    estimator = Estimator(len(facts.layer_kinds), facts.heads, facts.kv_heads, facts.head_dim, features, seed)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(seed)
    passes = [layers_of(model, ids) for ids in texts]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        picked = torch.randint(width, len(texts[step % len(texts)]), (rows,), generator=draw)
        losses = []
        for layer, q, k, scale in passes[step % len(texts)]:
            near, far = teacher(q[:, picked], k, picked, scale, width)
            bins = estimator.of_keys(layer, k, scale).unflatten(1, (-1, width)).sum(2)
            got = estimator.shares(layer, q[:, picked], bins, picked // width, near, scale)
            losses.append(nn.functional.kl_div(got.clamp(min=2 * FLOOR), far, reduction="sum") / far[..., 0].numel())
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps, float(loss.detach()))
    return estimator.requires_grad_(False)


@torch.no_grad()
def layers_of(model: PreTrainedModel, ids: Tensor) -> list[tuple[int, Tensor, Tensor, float]]:
    """One plain pass over ids [N]: for every layer its number, rotated q [Hq, N, D] and k [Hkv, N, D], and scale."""
    taken: list[tuple[int, Tensor, Tensor, float]] = []

    def take(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        taken.append((int(module.layer_idx), q[0].float(), k[0].float(), scale))  # type: ignore[arg-type]
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)

    with attending(model, take):
        model(ids[None], use_cache=False)
    return taken


def teacher(q: Tensor, k: Tensor, rows: Tensor, scale: float, width: int) -> tuple[Tensor, Tensor]:
    """Of queries [Hq, R, D] at positions [R] on keys [Hkv, N, D]: the logsumexp [Hq, R] of the logits from their own
    bin on, and the exact shares [Hq, R, N / width + 1] of the bins before, that near part last.
    """
    group = q.shape[0] // k.shape[0]
    logits = q @ k.repeat_interleave(group, 0).transpose(1, 2) * scale
    place = torch.arange(k.shape[1])
    logits = logits.masked_fill(place > rows[:, None], float("-inf"))
    own = place >= (rows // width * width)[:, None]
    near = logits.masked_fill(~own, float("-inf")).logsumexp(-1)
    bins = logits.softmax(-1).masked_fill(own, 0.0).unflatten(-1, (-1, width)).sum(-1)
    return near, torch.cat([bins, 1 - bins.sum(-1, keepdim=True)], -1).clamp(min=0)


def _features(x: Tensor, w: Tensor, scale: float) -> Tensor:
    """Logarithms of the features [H, n, F] of x [H, n, D]."""
    x = x.float() * math.sqrt(scale)
    return x @ w.transpose(1, 2) - x.square().sum(-1, keepdim=True) / 2


def _orthogonal(features: int, dim: int, draw: torch.Generator) -> Tensor:
    """Random directions [F, D], orthogonal in blocks of D, with the lengths of normal vectors."""
    blocks = []
    for _ in range(-(-features // dim)):
        q, r = torch.linalg.qr(torch.randn(dim, dim, generator=draw))
        blocks.append(q * r.diagonal().sign())  # uniform over rotations, which q alone is not
    lengths = torch.randn(features, dim, generator=draw).square().sum(1, keepdim=True).sqrt()
    return torch.cat(blocks)[:features] * lengths
