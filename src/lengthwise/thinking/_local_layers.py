"""What every layer says of answers: final norm and head on what each layer puts out (the logit lens)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise.core import compat
from lengthwise.thinking._local_batch import Batcher, Held

Lens = tuple[list[nn.Module], nn.Module]


def find_lens(decoder: nn.Module) -> Lens | None:
    """(layers, final norm) of a decoder; None where they have other names."""
    layers = next((m for name in ("layers", "h") if isinstance(m := getattr(decoder, name, None), nn.ModuleList)), None)
    names = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
    norm = next((m for name in names if isinstance(m := getattr(decoder, name, None), nn.Module)), None)
    return (list(layers), norm) if layers is not None and norm is not None else None


@torch.no_grad()
def read_layers(
    batcher: Batcher, lens: Lens, held: Held, ids: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[list[float]]:
    """One pass over forks of a chain, each with one of the answers; what every layer says of them."""
    layers, norm = lens
    base, rows = batcher.catch_up(held, ids), batcher.rows
    forks = [rows.fork(base) for _ in answers]
    states: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        last = batcher.forward(forks, [[ids[-1], *a[:-1]] for a in answers])
        seen = [*(norm(rows.part(s, forks)) for s in states[:-1]), last]  # the model has normed the last itself
    finally:
        for hook in hooks:
            hook.remove()
        for row in forks:
            rows.drop(row)
    out = []
    for state in seen:
        logp = torch.log_softmax(compat.logits_of(batcher.model, state).float(), -1)
        out.append([float(logp[i, range(len(a)), list(a)].sum()) for i, a in enumerate(answers)])
    return out
