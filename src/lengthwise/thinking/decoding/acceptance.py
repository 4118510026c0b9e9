"""The acceptance head of SpecDec++: how likely the target is to accept what a draft model has just drafted.

A stack of residual blocks on the draft's last hidden state of a drafted token, and its training:

    p_i = min(1, p(y_i | x_<i) / q(y_i | x_<i))         the label: y_i drawn from q after the target's own x_<i
    z_i = x_i with probability r, else y_i                token mixing: the head shall see the draft's own tokens
    loss = - sum_{z_i = y_i} (p_i log a_i + w (1 - p_i) log(1 - a_i)) / sum (p_i + w (1 - p_i))

Source: Huang, Guo, Wang, SpecDec++ (arXiv 2405.19715), section 4.2; defaults of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lengthwise.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCKS = 3
WEIGHT = 6.0  # of a rejection: rejections are few
MIX = 0.15  # share of the target's own tokens in what the head is trained on


class AcceptanceHead(nn.Module):
    """Hidden states [..., H] of drafted tokens to logits [...] of their acceptance."""

    def __init__(self, hidden: int, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float32; the sigmoid of one is the probability."""
        x = x.float()
        for block in self.blocks:
            x = x + nn.functional.silu(block(x))
        return self.out(x)[..., 0]  # type: ignore[no-any-return]

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors."""
        from safetensors.torch import save_file

        save_file({name: p.detach().contiguous() for name, p in self.state_dict().items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> AcceptanceHead:
        """A head from the file that `save` wrote; its shape follows from the weights. Raises BadInput."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(str(path))
            head = cls(weights["out.weight"].shape[1], sum(name.startswith("blocks.") for name in weights) // 2)
            head.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise BadInput(f"{path} holds no acceptance head: {error}") from error
        return head.eval()


@dataclass(frozen=True)
class Example:
    """One sequence to train on: mixed ids [n], acceptance [n] in 0 to 1, and which of them count, bool [n]."""

    ids: Tensor
    accepted: Tensor
    counts: Tensor


@torch.no_grad()
def example(
    target: PreTrainedModel, draft: PreTrainedModel, ids: Tensor, prompt: int, generator: torch.Generator, mix: float
) -> Example:
    """What the head learns from ids [n], of which the target wrote all but the first `prompt` >= 1."""
    p, q = (
        m(input_ids=ids[None], use_cache=False).logits[0, prompt - 1 : -1].float().softmax(-1) for m in (target, draft)
    )
    drawn = torch.multinomial(q, 1, generator=generator)
    ratio = (p.gather(1, drawn) / q.gather(1, drawn).clamp(min=1e-30))[:, 0].clamp(max=1.0)
    kept = torch.rand(len(drawn), generator=generator) < mix
    mixed = torch.cat([ids[:prompt], torch.where(kept, ids[prompt:], drawn[:, 0])])
    before = torch.zeros(prompt)
    return Example(mixed, torch.cat([before, ratio]), torch.cat([before.bool(), ~kept]))


def loss_of(logits: Tensor, accepted: Tensor, weight: float = WEIGHT) -> Tensor:
    """Binary cross-entropy of logits [n] against soft labels [n]; rejections weigh `weight` times as much."""
    rejected = 1 - accepted
    total = -(accepted * logsigmoid(logits) + weight * rejected * logsigmoid(-logits)).sum()
    return total / (accepted + weight * rejected).sum()


def fit(
    draft: PreTrainedModel,
    examples: Sequence[Example],
    *,
    steps: int = 400,
    batch: int = 16,
    rate: float = 1e-3,
    weight: float = WEIGHT,
    seed: int = 0,
) -> AcceptanceHead:
    """A head for `draft`, whose own weights stay as they are. Raises BadInput without examples."""
    if not examples:
        raise BadInput("the acceptance head needs sequences that the target wrote")
    states, wanted = [], []
    with torch.no_grad():
        for e in examples:
            hidden = draft(input_ids=e.ids[None], use_cache=False, output_hidden_states=True).hidden_states[-1][0]
            states.append(hidden[e.counts].float())
            wanted.append(e.accepted[e.counts])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AcceptanceHead(states[0].shape[-1])
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        some = torch.randint(len(states), (batch,), generator=generator).tolist()
        loss = loss_of(head(torch.cat([states[i] for i in some])), torch.cat([wanted[i] for i in some]), weight)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return head.eval()
