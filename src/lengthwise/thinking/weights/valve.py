"""CoT-Valve (paper 36): a direction in the space of weights along which chains get shorter, and its training.

    theta(alpha) = theta + alpha * D        alpha = 0 the model as it is, 1 the trained one, beyond 1 extrapolates
    D = (s / r) * up @ down                 a LoRA update of rank r on every linear layer of the decoder

Three ways to train D (arXiv 2502.09601, sections 3.2 and 3.3), that differ in their examples alone:

    CoT-Valve     max_D  p(chain, answer | question; theta + D)             on short chains
    CoT-Valve++   max_D  p(chain, answer | question; theta + beta * D)      beta = 1 - (m - m_min) / (m_max - m_min)
    CoT-Valve+P   the first, on stages of ever shorter chains

where m is a chain's length among those of its question. Without training, D is the difference between a checkpoint
that reasons and its base: `delta.between`. Published settings (appendix A.2, Llama): rank 32, s = 64, AdamW with weight
decay 0.01, batch 64, peak rate 4e-5 with cosine decay; wrong chains are filtered out by whoever makes the examples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lengthwise.errors import BadInput, BadParameter
from lengthwise.thinking.weights.delta import Delta

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """What to write after a prompt: the thinking, its closing tag and the answer, in the model's own form.

    `prompt` ends inside the thinking section; `beta` is the share of the direction at which it is written.
    """

    prompt: str
    chain: str
    beta: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How a direction is trained; the published settings by default. `epochs` are passes over each stage."""

    rank: int = 32
    scale: float = 64.0
    rate: float = 4e-5
    decay: float = 0.01
    batch: int = 64
    epochs: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        real = all(0 < number < math.inf for number in (self.rate, self.scale))
        if min(self.rank, self.batch, self.epochs) < 1 or not real:
            raise BadParameter("rank, batch and epochs must be at least 1, rate and scale above 0")


def betas(lengths: Sequence[int]) -> list[float]:
    """Equation 4: the length factor of every chain of one question, 1 the shortest, 0 the longest; 1 if all agree."""
    low, high = min(lengths), max(lengths)
    return [1.0 if high == low else 1 - (m - low) / (high - low) for m in lengths]


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stages: Sequence[Sequence[Example]],
    recipe: Recipe | None = None,
    tell: Callable[[int, int, float], None] | None = None,
) -> Delta:
    """A direction trained on `stages` of examples, one after another; the model is left as it was.

    `tell(step, steps, loss)` is called after every step; the loss is in nats a token. Raises BadInput for examples that
    are empty or longer than the model's window, and for models without linear layers.
    """
    recipe = recipe or Recipe()
    data = [[_encode(example, tokenizer, model) for example in stage] for stage in stages]
    if not data or not all(data):
        raise BadInput("there is nothing to train on: every stage needs examples")
    draw = random.Random(recipe.seed)
    per_stage = [recipe.epochs * math.ceil(len(stage) / recipe.batch) for stage in data]
    steps, done = sum(per_stage), 0
    with _branch(model, recipe) as branch:
        optimiser = torch.optim.AdamW(branch.weights(), lr=recipe.rate, weight_decay=recipe.decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for stage in data:
            for _ in range(recipe.epochs):
                order = draw.sample(stage, len(stage))
                for start in range(0, len(order), recipe.batch):
                    loss = _loss(model, branch, order[start : start + recipe.batch])
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
                    schedule.step()
                    done += 1
                    if tell is not None:
                        tell(done, steps, loss.item())
        about = {"made": "CoT-Valve", "rank": str(recipe.rank), "stages": str(len(data)), "steps": str(steps)}
        return branch.delta(about)


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    prompt: int
    beta: float


class _Branch:
    """LoRA beside the linear layers of a decoder; `beta` [batch] scales it for each example."""

    def __init__(self, layers: dict[str, nn.Linear], recipe: Recipe) -> None:
        draw = torch.Generator().manual_seed(recipe.seed)
        self.scale, self.beta = recipe.scale / recipe.rank, torch.ones(1)
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in layers.items():
            rank = min(recipe.rank, *layer.weight.shape)
            down = torch.randn(rank, layer.in_features, generator=draw) * layer.in_features**-0.5
            up = torch.zeros(layer.out_features, rank)
            place = layer.weight.device
            self.pairs[name] = up.to(place).requires_grad_(), down.to(place).requires_grad_()

    def weights(self) -> list[Tensor]:
        return [tensor for pair in self.pairs.values() for tensor in pair]

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        up, down = self.pairs[name]

        def add(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
            branch = (given[0].float() @ down.T) @ up.T
            beta = self.beta.to(out.device).view(-1, *[1] * (out.dim() - 1))
            added: Tensor = (self.scale * beta * branch).to(out.dtype)
            return out + added

        return add

    def delta(self, about: dict[str, str]) -> Delta:
        parts = {f"{n}.weight": (self.scale * up.detach(), down.detach()) for n, (up, down) in self.pairs.items()}
        return Delta(parts, about)


@contextmanager
def _branch(model: PreTrainedModel, recipe: Recipe) -> Iterator[_Branch]:
    """The model with a branch beside its linear layers and its own weights frozen; all as before afterwards."""
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if not layers:
        raise BadInput(f"{type(model).__name__} has no linear layers to put a direction on")
    branch = _Branch(layers, recipe)
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    mode = model.training
    hooks = [layer.register_forward_hook(branch.hook(name)) for name, layer in layers.items()]
    try:
        model.eval()  # no dropout: the frozen model is the one that will be used
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield branch
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)
        model.train(mode)


def _encode(example: Example, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> _Row:
    prompt, chain = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (example.prompt, example.chain))
    window = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not prompt or not chain:
        raise BadInput("an example needs a prompt and a chain")
    if window is not None and len(prompt) + len(chain) > window:
        raise BadInput(
            f"an example has {len(prompt) + len(chain):,} tokens, the model's window {window:,}: leave it out"
        )
    return _Row([*prompt, *chain], len(prompt), example.beta)


def _loss(model: PreTrainedModel, branch: _Branch, rows: Sequence[_Row]) -> Tensor:
    """-log p of the chains' tokens, the mean over all of them."""
    longest = max(len(row.ids) for row in rows)
    place = next(model.parameters()).device
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows], device=place)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows], device=place)
    wanted = mask.bool().clone()
    for index, row in enumerate(rows):
        wanted[index, : row.prompt] = False
    branch.beta = torch.tensor([row.beta for row in rows])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    counted = wanted[:, 1:]
    return nn.functional.cross_entropy(logits[counted].float(), ids[:, 1:][counted])
